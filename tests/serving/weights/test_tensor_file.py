"""Weights files are plain safetensors whose large tensors lie where torch would put them.

They are mapped copy on write.
"""

import pytest
import torch
from safetensors.torch import load_file

from serving.weights.tensor_file import TensorFile, align, write_tensors

TENSORS = {
    "bias": torch.randn(1),
    "odd": torch.randn(7, 3),
    "table": torch.randn(500, 16),
    "small": torch.randn(16),
    "flag": torch.tensor(True),
    "half": torch.randn(5).to(torch.bfloat16),
    "empty": torch.empty(0, 4),
    "ids": torch.arange(8),
}


@pytest.fixture
def path(tmp_path):
    write_tensors(TENSORS, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_the_file_is_plain_safetensors(path):
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(loaded[n].dtype == t.dtype and torch.equal(loaded[n], t) for n, t in TENSORS.items())


def test_tensors_of_whole_lines_lie_at_whole_lines_whatever_stands_beside_them(path):
    file = TensorFile(path)
    assert all(file.is_aligned(name) for name in ("table", "small", "ids"))
    assert file.map_tensors(["table"])["table"].data_ptr() % 64 == 0


def test_the_order_of_the_tensors_does_not_change_a_byte(path, tmp_path):
    write_tensors(dict(reversed(TENSORS.items())), tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_a_private_tensor_is_its_own_and_the_file_stays_as_it_is(path):
    content = path.read_bytes()
    file = TensorFile(path)
    one, two = (file.map_tensors(["table"])["table"] for _ in range(2))
    one[3] = 7
    assert torch.equal(two, TENSORS["table"])
    assert torch.equal(one[4:], TENSORS["table"][4:])
    assert path.read_bytes() == content


def test_a_private_tensor_outlives_the_file_and_its_name(path):
    tensor = TensorFile(path).map_tensors(["odd"])["odd"]
    path.unlink()
    assert torch.equal(tensor, TENSORS["odd"])


def test_tensors_that_lie_right_are_one_piece_of_memory_and_the_others_are_copied(path):
    found = TensorFile(path).map_tensors(TENSORS)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
    lying = {found[name].untyped_storage().data_ptr() for name in ("table", "small", "ids")}
    assert len(lying) == 1
    assert found["bias"].untyped_storage().data_ptr() not in lying


def test_nothing_is_mapped_of_no_names_or_of_empty_tensors(path):
    file = TensorFile(path)
    assert file.map_tensors([]) == {}
    assert file.map_tensors(["empty"])["empty"].shape == (0, 4)


def test_tables_with_rows_of_one_length_lie_whole_rows_apart(tmp_path):
    """Also those that are copied, because what stands before them fills no whole lines."""
    widths = {16: (7, 100, 31), 48: (5, 64, 9), 5: (3, 11, 201, 33), 32: (1, 2, 1000)}
    tables = {f"{width}-{rows}": torch.randn(rows, width) for width, counts in widths.items() for rows in counts}
    write_tensors(tables, tmp_path / "tables")
    found = TensorFile(tmp_path / "tables").map_tensors(tables)
    for width, counts in widths.items():
        own = [found[f"{width}-{rows}"] for rows in counts]
        for storage in {tensor.untyped_storage().data_ptr() for tensor in own}:
            places = [t.data_ptr() - storage for t in own if t.untyped_storage().data_ptr() == storage]
            assert len({place % (4 * width) for place in places}) == 1
            assert len(places) >= 3 or width == 5
    assert all(torch.equal(found[name], table) for name, table in tables.items())


def test_a_tensor_that_begins_elsewhere_is_copied_to_where_torch_would_put_it():
    lying = torch.randn(20)[1:]
    assert align(lying).data_ptr() % 64 == 0
    right = torch.randn(20)
    assert align(right) is right


def test_tables_of_bytes_are_never_copied_and_those_of_one_row_lie_whole_rows_apart(tmp_path):
    tables = {f"table {rows}": torch.randint(0, 255, (rows, 72), dtype=torch.uint8) for rows in (7, 8, 31)}
    write_tensors({"odd": torch.randn(7, 3), **tables}, tmp_path / "weights.safetensors")
    found = TensorFile(tmp_path / "weights.safetensors").map_tensors(tables)
    assert all(torch.equal(found[name], table) for name, table in tables.items())
    assert len({table.untyped_storage().data_ptr() for table in found.values()}) == 1
    assert len({table.storage_offset() % 72 for table in found.values()}) == 1
