"""A delta on a compiled parent: the same library with the changed weights, the parent's answers as they were."""

import numpy as np
import pytest
import torch
from torch import nn

from ipnext.errors import LoadFailed
from ipnext.model.registry.registry import SnapshotManifest
from serving.compiling.compile import compile_snapshot
from serving.deltas.export import export_delta
from serving.engines.torch.compiled import CompiledProgram
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model
from serving.host.delta_loader import Chain, LocalSnapshot
from serving.weights.delta_snapshot import read_delta

ROWS, WIDTH = 4000, 16
SETTINGS = {"compile": True}
ASKED = {"ids": np.array([0, 3, 17, ROWS - 1, 3], np.int64)}


class Ranker(nn.Module):
    """A table that is mapped from its file (256 KB), and a matrix that lies turned in memory."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, WIDTH)
        self.turned = nn.Parameter(torch.randn(WIDTH, WIDTH).t())
        self.top = nn.Linear(WIDTH, 1)

    def forward(self, ids):
        return self.top(torch.relu(self.table(ids) @ self.turned)).squeeze(1)


def train(ranker, step):
    with torch.no_grad():
        ranker.table.weight[[3, 17, ROWS - 1]] += step
        ranker.turned[2] -= step
        ranker.top.bias += step


def answer(ranker):
    with torch.no_grad():
        return ranker(torch.from_numpy(ASKED["ids"])).numpy()


@pytest.fixture(scope="module")
def place(tmp_path_factory, subprocesses):
    """`one` compiled, `two` a delta of it, `three` a delta of `two`; and what the module answers after each."""
    root, ranker = tmp_path_factory.mktemp("compile-delta"), Ranker().eval()
    export_model(ranker, {"ids": torch.zeros(2, dtype=torch.int64)}, root / "source")
    compile_snapshot(root / "source", root / "one", cache=root / "cache")
    expected = {"one": answer(ranker)}
    for parent, name, bases in (("one", "two", []), ("two", "three", ["one"])):
        train(ranker, 0.5)
        export_delta(root / parent, ranker, root / name, bases=[root / base for base in bases])
        expected[name] = answer(ranker)
    return root, expected


def load(directory, settings=SETTINGS):
    manifest = SnapshotManifest.model_validate_json((directory / "snapshot.json").read_bytes())
    part = TorchEngine(trusts_libraries=True).load(directory, manifest, settings)
    part.warm_up()
    return part


def near(part, expected):
    got = part.infer(ASKED)["output"]
    return float(np.abs(got - expected).max() / np.abs(expected).max()) <= 1e-5


def test_the_library_runs_with_the_changed_weights_and_the_parent_answers_as_before(place):
    root, expected = place
    one = load(root / "one")
    two = one.changed_by(read_delta(root / "two"), parent_stays=True)
    three = two.changed_by(read_delta(root / "three"), parent_stays=True)
    for part in (two, three):
        part.warm_up()
        assert isinstance(part._program, CompiledProgram)
        assert part.size_bytes < ROWS * WIDTH * 4
    assert [near(part, expected[name]) for name, part in (("one", one), ("two", two), ("three", three))] == [True] * 3
    assert not near(three, expected["two"])
    one.close()
    two.close()
    assert near(three, expected["three"])


def test_its_digests_are_counted_where_the_parent_is_loaded_for_its_sake(place):
    root, expected = place
    base, two, three = (
        LocalSnapshot(root / name, SnapshotManifest.model_validate_json((root / name / "snapshot.json").read_bytes()))
        for name in ("one", "two", "three")
    )
    chain = Chain(base.manifest.digest, base, (two, three))
    part = chain.load(TorchEngine(trusts_libraries=True), SETTINGS, {})
    part.warm_up()
    assert near(part, expected["three"])
    with pytest.raises(LoadFailed, match="before the delta it must be"):
        Chain(base.manifest.digest, base, (three,)).load(TorchEngine(trusts_libraries=True), SETTINGS, {})


def test_without_the_setting_the_program_takes_the_delta(place):
    root, expected = place
    part = load(root / "one", {}).changed_by(read_delta(root / "two"), parent_stays=False)
    part.warm_up()
    assert not isinstance(part._program, CompiledProgram)
    assert near(part, expected["two"])


def test_a_closed_parent_takes_no_delta(place):
    root, _ = place
    one = load(root / "one")
    one.close()
    with pytest.raises(LoadFailed, match="the parent of the delta was closed meanwhile"):
        one.changed_by(read_delta(root / "two"), parent_stays=True)
