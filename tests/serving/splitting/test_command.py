"""`ipnext split` from outside: what it prints, what it writes, its exit statuses, and that a wrong cut is found."""

import asyncio
import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from ipnext.cli.app import app
from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import PartGraph, SnapshotManifest
from serving.deltas.export import export_delta
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model
from serving.graph import plan_graph, run_graph
from serving.protocol.tensors import Tensor
from serving.splitting import split as splitting
from serving.splitting.report import SplitReport
from serving.splitting.split import read_split_program, verify_split

POLICY = {
    "parts": [
        {"name": "sparse", "modules": ["tables.*"], "shard": {"by": "count", "count": 2}, "hardware": ["cpu"]},
        {"name": "middle", "modules": ["middle"]},
    ],
    "default": "dense",
}


class Twice(nn.Module):
    """Its default part comes before and after `middle`; both names of outputs are its own."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(20, 4) for name in ("user", "item")})
        self.first, self.middle, self.last = nn.Linear(11, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, user, item, dense):
        rows = torch.cat([self.tables["user"](user), self.tables["item"](item), dense], 1)
        low = torch.relu(self.first(rows))
        high = torch.relu(self.middle(low))
        return {"score": self.last(low + high).squeeze(1), "best": high.argmax(1)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("split")
    torch.manual_seed(0)
    inputs = {"user": torch.randint(0, 20, (4,)), "item": torch.randint(0, 20, (4,)), "dense": torch.randn(4, 3)}
    save_file(inputs, root / "examples.safetensors")
    export_model(Twice(), inputs, root / "whole")
    (root / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    return root


@pytest.fixture(scope="module")
def written(place):
    result = run(place, "--out", str(place / "out"), "-o", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def run(place, *options, directory="whole"):
    return CliRunner().invoke(app, ["split", str(place / directory), "--policy", str(place / "policy.yaml"), *options])


def test_json_names_parts_segments_and_equality(place):
    result = run(place, "--verify", "-o", "json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [p["name"] for p in answer["parts"]] == ["sparse-0", "sparse-1", "middle", "dense"]
    assert [(s["part"], s["stage"]) for s in answer["segments"]] == [
        ("sparse-0", 0), ("sparse-1", 0), ("dense", 1), ("middle", 2), ("dense", 3),
    ]  # fmt: skip
    first = answer["segments"][0]
    assert (first["bytes"], first["inputs"], first["outputs"]) == (320, ["user"], ["tables_user"])
    assert answer["bit_equal"] == {"1": True, "2": True, "64": True, "257": True}
    assert not list(place.parent.rglob("*ipnext-split*"))


def test_a_delta_is_not_split(place):
    twice = Twice()
    export_delta(place / "whole", {"first.bias": twice.first.bias.detach() + 1}, place / "delta")
    result = run(place, directory="delta")
    assert result.exit_code == 2
    assert "ipnext delta --apply" in result.stderr


def test_without_verify_nothing_is_claimed(place):
    assert json.loads(run(place, "-o", "json").stdout)["bit_equal"] == {}


def test_the_table_shows_parts_segments_graph_and_equality(place):
    text = run(place, "--verify").stdout
    for line in ("sparse-0  320    cpu", "dense-s3  3", "middle  <- dense-s1", "batch 257: equal in every bit"):
        assert line in text


def test_the_picture_shows_every_segment(place, tmp_path):
    assert run(place, "--picture", str(tmp_path / "graph.svg")).exit_code == 0
    words = {element.text for element in ET.parse(tmp_path / "graph.svg").iter() if element.text}
    assert {"request", "sparse-0", "sparse-1", "dense-s1", "middle", "dense-s3"} <= words


def test_out_holds_a_snapshot_for_each_segment_with_its_parent(place, written):
    whole = SnapshotManifest.model_validate_json((place / "whole" / "snapshot.json").read_bytes())
    names = [segment["name"] for segment in written["segments"]]
    assert sorted(path.name for path in (place / "out").iterdir()) == sorted([*names, "graph.json", "split.json"])
    for name in names:
        manifest = SnapshotManifest.model_validate_json((place / "out" / name / "snapshot.json").read_bytes())
        assert (manifest.parent, manifest.engine) == (whole.digest, "torch")
        assert {f.path for f in manifest.files} == {"program.json", "weights.safetensors"}
        assert splitting.read_manifest(place / "out" / name) == manifest
    assert list(load_file(place / "out" / "sparse-0" / "weights.safetensors")) == ["state:tables.user.weight"]


def test_the_graph_runs_on_the_serving_engine_with_equal_bits(place, written):
    graph = PartGraph.model_validate_json((place / "out" / "graph.json").read_bytes())
    loaded = {node.part: load(place / "out" / node.part) for node in graph.nodes}
    whole = load(place / "whole")

    async def call(part, tensors):
        answer = loaded[part].infer({name: tensor.data for name, tensor in tensors.items()})
        return {spec.name: Tensor(spec.datatype, answer[spec.name]) for spec in loaded[part].signature.outputs}

    random = np.random.default_rng(1)
    for batch in (1, 2, 64, 257):
        request = {
            "user": Tensor("INT64", random.integers(0, 20, batch)),
            "item": Tensor("INT64", random.integers(0, 20, batch)),
            "dense": Tensor("FP32", random.standard_normal((batch, 3)).astype(np.float32)),
        }
        plan = plan_graph(graph)
        plan.check_request(request)
        got = asyncio.run(run_graph(plan, request, call))
        expected = whole.infer({name: tensor.data for name, tensor in request.items()})
        assert list(got) == list(expected)
        for name, array in expected.items():
            assert torch.equal(torch.from_numpy(got[name].data), torch.from_numpy(array)), (batch, name)


def test_equal_input_gives_equal_segments(place, written):
    assert run(place, "--out", str(place / "again")).exit_code == 0
    for name in (segment["name"] for segment in written["segments"]):
        first, second = (place / out / name / "snapshot.json" for out in ("out", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_one_changed_weight_of_one_segment_is_found(place, written, tmp_path):
    """The negative control: the last bit of one weight of the middle segment."""
    shutil.copytree(place / "out", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "middle" / "weights.safetensors")
    weights["state:middle.bias"].view(torch.int32)[3] ^= 1 << 12
    save_file(weights, tmp_path / "out" / "middle" / "weights.safetensors")
    report = SplitReport.model_validate(written)
    found = verify_split(report, read_split_program(place / "whole"), place / "whole", tmp_path / "out")
    assert not found.is_equal
    assert False in found.bit_equal.values()
    assert "output 'score' differs in" in found.differences[0]


def test_a_wrong_cut_ends_with_exit_status_1_and_writes_nothing(place, tmp_path, monkeypatch):
    write = splitting.write_segment

    def spoil(plan, name, source, target, **more):
        write(plan, name, source, target, **more)
        if name == "dense-s1":
            weights = load_file(target / "weights.safetensors")
            save_file({key: tensor * 1.5 for key, tensor in weights.items()}, target / "weights.safetensors")

    monkeypatch.setattr(splitting, "write_segment", spoil)
    result = run(place, "--verify", "--out", str(tmp_path / "out"), "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["bit_equal"] == {"1": False, "2": False, "64": False, "257": False}
    assert "error: the split differs" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(place, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InvalidInput("no room")

    monkeypatch.setattr(splitting, "compare", fail)
    assert run(place, "--out", str(tmp_path / "out")).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_examples_are_used_and_checked(place, tmp_path):
    assert run(place, "--verify", "--examples", str(place / "examples.safetensors")).exit_code == 0
    save_file({"user": torch.zeros(2)}, tmp_path / "few.safetensors")
    refused = run(place, "--verify", "--examples", str(tmp_path / "few.safetensors"))
    assert (refused.exit_code, refused.stderr) == (
        2, "error: input 'item' is missing; the inputs are user, item, dense\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: [", "policy: "),
        ("parts: []\ndefault: rest\n", "parts: The list should have at least 1 item"),
        (
            "parts: [{name: a, modules: ['tabels.*']}]\n",
            "parts.0.modules.0: 'tabels.*' matches no module; near it are: tables",
        ),
        ("parts: [{name: a, modules: ['tables.*'], shards: 1}]\n", "parts.0.shards: unknown field"),
    ],
)
def test_a_bad_policy_is_one_line_and_exit_status_2(place, tmp_path, text, message):
    (tmp_path / "policy.yaml").write_text(text)
    result = CliRunner().invoke(app, ["split", str(place / "whole"), "--policy", str(tmp_path / "policy.yaml")])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_a_directory_without_a_snapshot_is_refused(place, tmp_path):
    result = CliRunner().invoke(app, ["split", str(tmp_path), "--policy", str(place / "policy.yaml")])
    assert (result.exit_code, "it has no snapshot.json" in result.stderr) == (2, True)


def test_a_damaged_snapshot_is_refused(place, tmp_path):
    shutil.copytree(place / "whole", tmp_path / "whole")
    with (tmp_path / "whole" / "weights.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    result = CliRunner().invoke(app, ["split", str(tmp_path / "whole"), "--policy", str(place / "policy.yaml")])
    assert (result.exit_code, "its SHA-256 is not" in result.stderr) == (2, True)


def test_a_target_that_is_not_empty_is_refused(place, written):
    result = run(place, "--out", str(place / "out"))
    assert (result.exit_code, "must not exist or be an empty directory" in result.stderr) == (2, True)


def load(directory):
    manifest = SnapshotManifest.model_validate_json((directory / "snapshot.json").read_bytes())
    return TorchEngine().load(directory, manifest, {})
