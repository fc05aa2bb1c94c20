"""Steps of another package for single hardware kinds, in a model that is split: real programs, in this process."""

import pytest
import torch
from safetensors.torch import load_file
from temporalio.testing import ActivityEnvironment

from activities.optimization.activities import OptimizationActivities
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from tests.activities.optimization.in_process import SPLIT, WHOLE, cut, derive, export_ranker
from tests.plugin_packages import write_distribution

MODEL = "ranker"
USER = "state:tables.user.weight"

PACKAGE = """
import json
import shutil

from safetensors.torch import load_file, save_file

class Step:
    def check(self, settings):
        pass

    def versions(self):
        return {"cut_steps": "7"}

class Prune(Step):
    def derive(self, source, settings, draft):
        shutil.copyfile(source / "program.json", draft / "program.json")
        tensors = load_file(source / "weights.safetensors")
        table = tensors[settings["table"]]
        table[table.abs() < settings["below"]] = 0
        save_file(tensors, draft / "weights.safetensors")
        return {"zeros": int((table == 0).sum())}

class Rewire(Step):
    def derive(self, source, settings, draft):
        document = json.loads((source / "program.json").read_text())
        for node in document["program"]["graph_module"]["graph"]["nodes"]:
            if node["target"] == "torch.ops.aten.mul.Tensor":
                node["inputs"][1]["arg"] = node["inputs"][0]["arg"]
        (draft / "program.json").write_text(json.dumps(document))
        shutil.copyfile(source / "weights.safetensors", draft / "weights.safetensors")

class Broken(Prune):
    def versions(self):
        raise SystemExit(3)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_ranker(tmp_path_factory.mktemp("plugin") / "whole")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    points = {name.lower(): f"cut_steps:{name}" for name in ("Prune", "Rewire", "Broken")}
    write_distribution(tmp_path / "dist", "cut_steps", PACKAGE, {"ipnext.optimizations": points})
    monkeypatch.syspath_prepend(str(tmp_path / "dist"))


@pytest.fixture
def optimize(house, exported):
    """Publish the whole by a manifest with one step of a plug-in, and run the optimization on its generation."""

    def call(kind, **settings):
        step = {"plugin": {"kind": kind, "settings": settings, "hardware": ["small"], "maxError": 1e9}}
        house.apply_split(MODEL, SPLIT, parts=[WHOLE], optimization=[step])
        with house.store.begin() as unit:
            unit.publish(MODEL, {"whole": ingest_directory(house.artifacts, exported)}, change_id="c1")
        activities = OptimizationActivities(house.store, house.artifacts, cutter=cut, deriver=derive)
        stage = StageInput(model=MODEL, change_id="c1", kind=ChangeKind.PUBLISH, generation=1)
        return ActivityEnvironment().run(activities.optimize_generation, stage)

    return call


def generation(house):
    with house.store.read() as unit:
        return unit.generation(MODEL, 1)


@pytest.mark.usefixtures("installed")
def test_hosts_of_the_kind_load_their_cut_of_what_the_plugin_derived(house, optimize, exported, tmp_path):
    found = optimize("prune", table=USER, below=0.5)
    assert not found.refused, found.summary
    assert generation(house).by_hardware == {"small": {"sparse": 2}}
    with house.store.read() as unit:
        whole, sparse = unit.snapshot(MODEL, "whole", 2), unit.snapshot(MODEL, "sparse", 2)
    assert whole.manifest.producer.items() >= {"step": "prune", "cut_steps": "7"}.items()
    assert (sparse.manifest.parent, sparse.hardware) == (whole.digest, ("small",))
    published = load_file(exported / "weights.safetensors")[USER]
    loaded = load_file(house.artifacts.fetch(sparse.uri, tmp_path / "sparse") / "weights.safetensors")
    [pruned] = [table for name, table in loaded.items() if "user" in name]
    assert torch.equal(pruned, published.where(published.abs() >= 0.5, 0.0))


@pytest.mark.usefixtures("installed")
def test_a_plugin_that_rewires_the_parts_is_refused_by_the_difference(house, optimize):
    found = optimize("rewire")
    assert (found.refused, found.reason) == (True, Reason.SPLIT_REFUSED)
    told = "split: snapshot 2 of whole, derived for small: it can't be cut like that of other hardware kinds: "
    assert found.summary == f"{told}other tensors go to sparse, dense"
    assert generation(house).layout is None


@pytest.mark.usefixtures("installed")
def test_a_plugin_whose_versions_cannot_be_read_is_refused_by_its_name(house, optimize):
    found = optimize("broken")
    assert (found.refused, found.reason) == (True, Reason.OPTIMIZATION_REFUSED)
    assert found.summary == "optimization: broken: the versions of 'broken' ended with SystemExit: 3"


def test_a_plugin_that_this_worker_lacks_is_refused(house, optimize):
    found = optimize("prune", table=USER, below=0.5)
    assert (found.refused, found.reason) == (True, Reason.OPTIMIZATION_REFUSED)
    assert "'prune' is no kind of step here; allowed: none, for none is installed" in found.summary
