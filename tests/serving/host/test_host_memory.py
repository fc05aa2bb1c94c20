"""One real host process with the parts of several models: each answers, memory is told, refused and given back."""

import psutil
import pytest
import torch
from torch import nn

from ipnext.artifacts.upload import ingest_directory
from ipnext.model.deployment.host_control import HostedSnapshot
from serving.deltas.export import export_delta
from serving.export import export_model
from serving.weights.row_changes import Rows
from tests.waiting import PATIENCE_SECONDS, until

OTHER = "other"
TABLE_BYTES = 1_000_000 * 16 * 4


class Wide(nn.Module):
    """64 MB of table, or a multiple of that."""

    def __init__(self, times=1):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.zeros(times * 1_000_000, 16), freeze=False)

    def forward(self, ids):
        return self.table(ids).sum(1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A snapshot of 64 MB."""
    directory = tmp_path_factory.mktemp("wide") / "snapshot"
    export_model(Wide().eval(), {"ids": torch.tensor([0, 1])}, directory)
    return directory


def hold(published, directory, number):
    source = ingest_directory(published.store, directory)
    return HostedSnapshot(
        model="wide",
        part="table",
        engine="torch",
        snapshot=number,
        digest=source.manifest.digest,
        uri=source.uri,
        generations=(number,),
    )


@pytest.fixture(scope="module")
def wide(published, directory):
    """A hold of it."""
    return hold(published, directory, 1)


@pytest.fixture(scope="module")
def wider(published, tmp_path_factory):
    """A hold of a snapshot of 256 MB."""
    directory = tmp_path_factory.mktemp("wider") / "snapshot"
    export_model(Wide(times=4).eval(), {"ids": torch.tensor([0, 1])}, directory)
    return hold(published, directory, 1)


@pytest.fixture
def changed(published, directory, tmp_path):
    """A hold of a delta on it: one row of the table."""
    export_delta(directory, {"table.weight": Rows(torch.tensor([7]), torch.ones(1, 16))}, tmp_path / "delta")
    return hold(published, tmp_path / "delta", 2)


def resident(host):
    return psutil.Process(host.process.pid).memory_info().rss


def test_two_models_of_two_parts_live_in_one_host_and_one_leaves_alone(machine, published, toolbox):
    host = machine.start_host("shared")
    click = [published.hold(part, 1) for part in ("sparse", "dense")]
    other = [published.hold(part, 2, model=OTHER) for part in ("sparse", "dense")]
    host.hold(*click, *other)
    state = host.settle()
    assert {(h.model, h.part, h.generation) for h in state.ready} == {
        ("click", "sparse", 1),
        ("click", "dense", 1),
        (OTHER, "sparse", 2),
        (OTHER, "dense", 2),
    }
    assert [s.size_bytes > 0 for s in state.memory.snapshots] == [True] * 4
    request = {"ids": toolbox.example(3)["ids"]}
    mine = toolbox.decode(host.infer_part("sparse", 1, request)).outputs["stamp"].data
    headers = {"x-ipnext-generation": "2"}
    theirs = toolbox.decode(host.infer(f"/parts/{OTHER}/sparse/infer", request, **headers)).outputs["stamp"].data
    assert (mine.tolist(), theirs.tolist()) == ([1] * 3, [2] * 3)

    host.hold(*click)
    until(lambda: len(host.state().memory.snapshots) == 2)
    assert host.infer(f"/parts/{OTHER}/sparse/infer", request, **headers).status_code == 409
    assert host.infer_part("sparse", 1, request).status_code == 200


def test_the_memory_of_an_unloaded_snapshot_goes_back_to_the_system(machine, wide, published):
    host = machine.start_host("unloading")
    host.hold(published.hold("dense", 1))
    host.settle()
    before = resident(host)
    host.hold(published.hold("dense", 1), wide)
    state = host.settle()
    assert resident(host) - before > 0.9 * TABLE_BYTES, "a ready snapshot is in memory, not still in its file"
    assert {s.model: s.size_bytes for s in state.memory.snapshots}["wide"] == TABLE_BYTES
    assert state.memory.used_bytes >= 0.9 * TABLE_BYTES
    host.hold(published.hold("dense", 1))
    until(lambda: resident(host) - before < 0.2 * TABLE_BYTES)


def test_memory_that_a_delta_shares_with_its_parent_is_told_once(machine, wide, changed):
    host = machine.start_host("sharing")
    host.hold(wide)
    before, resident_before = host.settle().memory.used_bytes, resident(host)
    host.hold(wide, changed)
    state = host.settle()
    assert {h.snapshot for h in state.ready} == {1, 2}, state
    assert resident(host) - resident_before > 0.9 * TABLE_BYTES, "both mappings are in memory"
    assert state.memory.used_bytes - before < 0.2 * TABLE_BYTES


def test_a_snapshot_beyond_the_budget_is_refused_and_the_former_one_answers_on(machine, wider, published, toolbox):
    trial = machine.start_host("trial")
    trial.hold(published.hold("dense", 1))
    limit = trial.settle().memory.used_bytes + 2 * TABLE_BYTES  # a fork and a fresh process use different amounts
    trial.end()
    host = machine.start_host("limited", "--memory-bytes", str(limit))
    host.hold(published.hold("dense", 1))
    host.settle()
    host.hold(published.hold("dense", 1), wider)
    state = host.settle()
    (failure,) = state.failures
    assert (failure.model, failure.code) == ("wide", "MemoryExceeded")
    assert f"{limit / 1e6:,.1f} MB are in use" in failure.message
    assert state.memory.budget_bytes == limit
    request = {"features": toolbox.example(2)["features"], **looked_up(2)}
    assert host.infer_part("dense", 1, request).status_code == 200


def looked_up(batch):
    return {
        "embedding": torch.zeros(batch, 4).numpy(),
        "stamp": torch.ones(batch, dtype=torch.int64).numpy(),
    }


def test_a_budget_that_is_no_number_of_bytes_is_refused_at_once(machine):
    host = machine.start_host("bad", "--memory-bytes", "0", wait=False)
    assert host.process.wait(PATIENCE_SECONDS) == 2
