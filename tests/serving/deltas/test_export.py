"""Delta snapshots: only what changed is carried, and the result has the bits of the full snapshot, copy on write."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from ipnext.errors import InvalidInput, LoadFailed
from ipnext.model.registry.registry import SnapshotManifest
from serving.deltas.apply import apply_delta
from serving.deltas.export import delta_between, export_delta
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model
from serving.weights.delta_snapshot import read_delta
from serving.weights.row_changes import Rows

ROWS = 4000


class Ranker(nn.Module):
    """A large table that is mapped, a small one, one whose bytes fill no whole lines, a scalar, tied weights."""

    def __init__(self):
        super().__init__()
        self.large = nn.EmbeddingBag(ROWS, 16)
        self.odd = nn.Embedding(301, 3)
        self.bias16 = nn.Parameter(torch.randn(8).to(torch.bfloat16))
        self.top = nn.Linear(19, 1)
        self.tied = self.top
        self.register_buffer("number", torch.tensor(1))

    def forward(self, ids, item):
        x = torch.cat([self.large(ids), self.odd(item)], 1)
        score = self.tied(torch.relu(x)) + self.top(x) + self.bias16.sum()
        return {"score": score.squeeze(1), "number": self.number.expand(ids.shape[0])}


def module(seed):
    torch.manual_seed(seed)
    return Ranker().eval().requires_grad_(requires_grad=False)


def changed(parent, *, large=(), odd=(), seed=0):
    """A copy with some rows, the scalar and the dense weights changed."""
    child = module(0)
    child.load_state_dict(parent.state_dict())
    torch.manual_seed(seed)
    child.large.weight[list(large)] = torch.randn(len(large), 16)
    child.odd.weight[list(odd)] = torch.randn(len(odd), 3)
    child.top.weight += 1
    child.number += 1
    return child


EXAMPLE = {"ids": torch.randint(0, ROWS, (3, 5)), "item": torch.randint(0, 301, (3,))}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Directories of a full snapshot, a delta on it, a delta on that delta.

    `full-N` hold the same as full snapshots.
    """
    root = tmp_path_factory.mktemp("family")
    modules = [module(1)]
    modules.append(changed(modules[0], large=(0, 7, 8, 3999), odd=(300,), seed=2))
    modules.append(changed(modules[1], large=(8, 9), seed=3))
    manifest = export_model(modules[0], EXAMPLE, root / "base")
    for number, child in enumerate(modules[1:], 1):
        export_model(child, EXAMPLE, root / f"full-{number}", parent=manifest.digest)
        bases = [root / "base", *(root / f"delta-{n}" for n in range(1, number))]
        manifest = export_delta(bases[-1], child, root / f"delta-{number}", bases=bases)
    return root, modules


def load(directory):
    manifest = SnapshotManifest.model_validate_json((directory / "snapshot.json").read_bytes())
    part = TorchEngine().load(directory, manifest, {})
    part.warm_up()
    return part


def requests(count=3):
    random = np.random.default_rng(0)
    for _ in range(count):
        ids = random.integers(0, ROWS, (7, 5))
        ids[0] = (0, 7, 8, 9, 3999)
        yield {"ids": ids, "item": np.array([300, *random.integers(0, 301, 6)])}


def same_bits(left, right):
    return all(
        np.array_equal(left.infer(r)[name], right.infer(r)[name]) for r in requests() for name in ("score", "number")
    )


def weights_of(part):
    return {key: tensor.clone() for key, tensor in part._program.weights.tensors.items()}


def test_a_delta_carries_only_rows_and_tensors_that_changed(family):
    root, _ = family
    delta = read_delta(root / "delta-1")
    assert delta.rows["state:large.weight"].indices.tolist() == [0, 7, 8, 3999]
    assert delta.rows["state:odd.weight"].indices.tolist() == [300]
    assert set(delta.whole) == {"state:number", "state:tied.weight"}
    names = {path.name for path in (root / "delta-1").iterdir()}
    assert names == {"snapshot.json", "delta.json", "delta.safetensors"}
    size = sum(path.stat().st_size for path in (root / "delta-1").iterdir())
    assert size < sum(path.stat().st_size for path in (root / "base").iterdir()) / 10


def test_a_loaded_delta_answers_and_holds_the_bits_of_the_full_snapshot(family):
    root, _ = family
    base = load(root / "base")
    before = weights_of(base)
    child = base.changed_by(read_delta(root / "delta-1"), parent_stays=True)
    child.warm_up()
    full = load(root / "full-1")
    held, expected = weights_of(child), weights_of(full)
    assert all(torch.equal(held[key], expected[key]) for key in expected)
    assert same_bits(child, full)
    assert not same_bits(child, base), "control: the delta changes answers"
    assert all(torch.equal(before[key], tensor) for key, tensor in weights_of(base).items()), "the parent is unharmed"


def test_a_delta_of_a_delta_holds_the_rows_of_both(family):
    root, _ = family
    child = (
        load(root / "base")
        .changed_by(read_delta(root / "delta-1"), parent_stays=True)
        .changed_by(read_delta(root / "delta-2"), parent_stays=True)
    )
    child.warm_up()
    full = load(root / "full-2")
    held, expected = weights_of(child), weights_of(full)
    assert all(torch.equal(held[key], expected[key]) for key in expected)
    assert same_bits(child, full)


def test_what_a_delta_leaves_alone_is_the_parents_own_memory_and_the_program_is_shared(family):
    root, _ = family
    base = load(root / "base")
    child = base.changed_by(read_delta(root / "delta-1"), parent_stays=True)
    old, new = base._program.weights.tensors, child._program.weights.tensors
    assert new["state:bias16"] is old["state:bias16"]
    assert child._program.template.module is base._program.template.module
    child.warm_up()
    assert child._graph.calls is base._graph.calls
    assert child.rows_are_independent


def test_a_large_table_takes_memory_for_touched_pages_only(tmp_path):
    table = nn.EmbeddingBag(200_000, 16)
    export_model(table, {"input": torch.zeros(2, 3, dtype=torch.int64)}, tmp_path / "base")
    rows = Rows(torch.arange(0, 200_000, 1000), torch.randn(200, 16))
    export_delta(tmp_path / "base", {"weight": rows}, tmp_path / "delta")
    base = load(tmp_path / "base")
    child = base.changed_by(read_delta(tmp_path / "delta"), parent_stays=True)
    child.warm_up()
    address = child._program.weights.tensors["state:weight"].data_ptr()
    assert 0 < private_dirty_bytes(address) <= 200 * 4096
    assert private_dirty_bytes(base._program.weights.tensors["state:weight"].data_ptr()) == 0


def private_dirty_bytes(address):
    """Of the mapping that holds an address: what it costs beside the page cache."""
    inside = False
    with open("/proc/self/smaps") as lines:  # noqa: PTH123 - a file of the kernel
        for line in lines:
            head = line.split()
            if "-" in head[0] and not head[0].endswith(":"):
                start, end = (int(text, 16) for text in head[0].split("-"))
                inside = start <= address < end
            elif inside and head[0] == "Private_Dirty:":
                return int(head[1]) * 1024
    raise AssertionError(hex(address))


def test_the_base_stays_readable_when_its_file_is_gone(family, tmp_path):
    root, _ = family
    shutil.copytree(root / "base", tmp_path / "base")
    base = load(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    child = base.changed_by(read_delta(root / "delta-1"), parent_stays=True)
    child.warm_up()
    assert same_bits(child, load(root / "full-1"))


def test_applied_on_disk_a_delta_is_the_full_snapshot_byte_for_byte(family, tmp_path):
    root, _ = family
    apply_delta(root / "base", root / "delta-1", tmp_path / "out")
    for name in ("snapshot.json", "program.json", "weights.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (root / "full-1" / name).read_bytes()


def test_a_delta_of_a_delta_is_applied_on_disk_with_the_directories_of_its_parents(family, tmp_path):
    root, _ = family
    apply_delta(root / "delta-1", root / "delta-2", tmp_path / "out", bases=[root / "base"])
    name = "weights.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (root / "full-2" / name).read_bytes()
    with pytest.raises(InvalidInput, match="is a delta of snapshot"):
        apply_delta(root / "delta-1", root / "delta-2", tmp_path / "other")


def test_the_difference_of_two_full_snapshots_is_the_delta_of_the_module(family, tmp_path):
    root, _ = family
    delta_between(root / "base", root / "full-1", tmp_path / "delta")
    written, expected = read_delta(tmp_path / "delta"), read_delta(root / "delta-1")
    assert written.document.tensors == expected.document.tensors
    full = SnapshotManifest.model_validate_json((root / "full-1" / "snapshot.json").read_bytes())
    assert written.document.full == full.digest


def test_given_rows_may_come_in_any_order_and_equal_ones_are_left_out(family, tmp_path):
    root, modules = family
    table = modules[0].large.weight
    given = Rows(torch.tensor([9, 3, 5]), torch.stack([table[9] + 1, table[3], table[5] + 2]))
    export_delta(root / "base", {"large.weight": given}, tmp_path / "delta")
    rows = read_delta(tmp_path / "delta").rows["state:large.weight"]
    assert rows.indices.tolist() == [5, 9]
    assert torch.equal(rows.values, torch.stack([table[5] + 2, table[9] + 1]))


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"larg.weight": torch.zeros(1)}, r"weights\.larg\.weight: .*near: .*large\.weight"),
        ({"large.weight": torch.zeros(ROWS + 1, 16)}, r"weights\.large\.weight: must be .*\[4000, 16\].*full snapshot"),
        ({"large.weight": torch.zeros(ROWS, 16).double()}, r"must be torch\.float32"),
        ({"large.weight": Rows(torch.tensor([ROWS]), torch.zeros(1, 16))}, r"indices: must be int64.* 0 to 3999"),
        ({"large.weight": Rows(torch.tensor([1, 1]), torch.zeros(2, 16))}, "each once"),
        ({"large.weight": Rows(torch.tensor([1]), torch.zeros(1, 15))}, r"shape \[1, 16\]"),
        ({"number": torch.tensor(1)}, "not a bit differs"),
    ],
)
def test_weights_that_do_not_fit_the_parent_are_refused_by_name(family, tmp_path, weights, text):
    root, _ = family
    with pytest.raises(InvalidInput, match=text):
        export_delta(root / "base", weights, tmp_path / "delta")
    assert not list(tmp_path.iterdir())


def test_tied_weights_must_agree(family, tmp_path):
    root, modules = family
    names = {"top.weight": modules[0].top.weight + 1, "tied.weight": modules[0].top.weight + 2}
    with pytest.raises(InvalidInput, match="tied to another"):
        export_delta(root / "base", names, tmp_path / "delta")


def test_a_delta_on_another_parent_is_refused(family, tmp_path):
    root, _ = family
    with pytest.raises(LoadFailed, match="row digest"):
        load(root / "full-2").changed_by(read_delta(root / "delta-1"), parent_stays=True)
    with pytest.raises(InvalidInput, match="not a delta of"):
        apply_delta(root / "full-2", root / "delta-1", tmp_path / "out")


def test_deltas_of_a_chain_in_the_wrong_order_are_refused(family):
    root, _ = family
    once = load(root / "base").changed_by(read_delta(root / "delta-1"), parent_stays=True)
    with pytest.raises(LoadFailed, match="the delta was made for"):
        once.changed_by(read_delta(root / "delta-1"), parent_stays=True)


@pytest.mark.parametrize("what", ["row", "index", "whole"])
def test_a_damaged_row_index_or_tensor_changes_the_result_and_is_refused(family, what):
    root, _ = family
    delta = read_delta(root / "delta-1")
    if what == "row":
        delta.rows["state:large.weight"].values[2, 3] *= -1
    elif what == "index":
        delta.rows["state:large.weight"].indices[1] += 1
        delta.rows["state:large.weight"].indices[2] += 1
    else:
        delta.whole["state:tied.weight"][0, 0] += 1
    with pytest.raises(LoadFailed, match=r"row digest .* after the delta"):
        load(root / "base").changed_by(delta, parent_stays=True)


def test_a_base_whose_changed_rows_are_not_what_the_delta_saw_is_refused(family, tmp_path):
    """As after a fault in memory: the digest of the result takes the old rows off as they lie."""
    root, modules = family
    other = changed(modules[0], large=(7,), seed=9)
    export_model(other, EXAMPLE, tmp_path / "other")
    with pytest.raises(LoadFailed, match=r"row digest .* after the delta"):
        load(tmp_path / "other").changed_by(read_delta(root / "delta-1"), parent_stays=True)


def test_applied_on_disk_a_wrong_digest_is_found_over_all_rows(family, tmp_path):
    root, modules = family
    export_delta(root / "base", {"large.weight": modules[1].large.weight}, tmp_path / "delta")
    document = json.loads((tmp_path / "delta" / "delta.json").read_text())
    told = document["tensors"]["state:large.weight"]
    shift = 5
    for when in ("before", "after"):
        told[when] = f"{int(told[when][:16], 16) + shift & (2**64 - 1):016x}{told[when][16:]}"
    rewrite(tmp_path / "delta", "delta.json", json.dumps(document))
    load(root / "base").changed_by(read_delta(tmp_path / "delta"), parent_stays=True)
    with pytest.raises(LoadFailed, match="before the delta"):
        apply_delta(root / "base", tmp_path / "delta", tmp_path / "out")


def rewrite(directory, name, text):
    """Another content of a file, and a manifest that agrees with it."""
    from serving.snapshots.directory import artifact_file  # noqa: PLC0415

    (directory / name).write_text(text)
    manifest = json.loads((directory / "snapshot.json").read_text())
    entry = next(file for file in manifest["files"] if file["path"] == name)
    entry.update(artifact_file(directory / name).model_dump())
    (directory / "snapshot.json").write_text(json.dumps(manifest))
