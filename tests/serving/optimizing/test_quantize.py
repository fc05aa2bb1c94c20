"""Quantized tables: which are replaced, what is answered, and what a lookup refuses."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from ipnext.errors import InvalidInput
from serving.engines.torch.fx import packed_lookup
from serving.optimizing.derive import derive_snapshot
from serving.optimizing.quantize import SMALLEST_SHARE
from serving.splitting.policy import parse_policy
from serving.splitting.split import split_snapshot
from tests.serving.optimizing.models import Ranker, arrays, export, load, step

BYTES_A_ROW = {"int8": 72, "int4": 36}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quantize") / "whole"
    export(directory)
    return directory


@pytest.fixture(scope="module", params=["int8", "int4"])
def derived(request, whole, tmp_path_factory):
    directory = tmp_path_factory.mktemp("derived") / request.param
    found = derive_snapshot(whole, step(request.param), directory, replay=None)
    return request.param, directory, found


def test_tables_become_torchs_own_packed_rows_and_the_smallest_stay(whole, derived):
    form, directory, found = derived
    ops = torch.ops.quantized
    pack = {"int8": ops.embedding_bag_byte_prepack, "int4": ops.embedding_bag_4bit_prepack}[form]
    with (
        safe_open(whole / "weights.safetensors", "pt") as before,
        safe_open(directory / "weights.safetensors", "pt") as after,
    ):
        for name in ("tables.user.weight", "tables.item.weight", "bag.weight"):
            packed = after.get_tensor(f"state:{name}")
            assert torch.equal(packed, pack(before.get_tensor(f"state:{name}")))
            assert packed.shape[1] == BYTES_A_ROW[form]
        for name in ("country.weight", "top.0.weight"):
            assert torch.equal(after.get_tensor(f"state:{name}"), before.get_tensor(f"state:{name}"))
    kept = {table["path"]: table.get("kept") for table in found.report.details["tables"]}
    assert [path for path, why in kept.items() if why] == ["country.weight"]
    assert f"{SMALLEST_SHARE:.0%}" in kept["country.weight"]
    assert found.report.bytes_ratio == BYTES_A_ROW[form] / 256


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize("warm", [False, True])
def test_answers_are_those_of_the_rounded_tables(whole, derived, batch, warm, tmp_path):
    """To the last bits: the module with unpacked tables in place of its own is exported and asked the same."""
    form, directory, _ = derived
    ops = torch.ops.quantized
    pack, unpack = {
        "int8": (ops.embedding_bag_byte_prepack, ops.embedding_bag_byte_unpack),
        "int4": (ops.embedding_bag_4bit_prepack, ops.embedding_bag_4bit_unpack),
    }[form]
    torch.manual_seed(0)
    module = Ranker().requires_grad_(False)
    for table in (*module.tables.values(), module.bag):
        table.weight.copy_(unpack(pack(table.weight)))
    export(tmp_path / "rounded", module)
    expected, got = (load(place, warm=warm).infer(arrays(batch)) for place in (tmp_path / "rounded", directory))
    np.testing.assert_allclose(got["score"], expected["score"], rtol=0, atol=1e-6)
    assert np.array_equal(got["best"], expected["best"])


@pytest.mark.parametrize("table_bytes", [0, 1 << 30])
def test_an_index_beyond_a_table_is_refused_packed_and_unpacked(derived, table_bytes, monkeypatch):
    monkeypatch.setattr(packed_lookup, "UNPACKED_TABLE_BYTES", table_bytes)
    part = load(derived[1])
    for name, beyond in (("user", 120), ("item", 200), ("history", 150), ("user", -1)):
        given = arrays(3)
        given[name][-1] = beyond
        with pytest.raises(InvalidInput, match="beyond its table"):
            part.infer(given)


def test_tables_packed_in_memory_answer_with_the_same_bits_as_unpacked_ones(derived, monkeypatch):
    unpacked = load(derived[1])
    monkeypatch.setattr(packed_lookup, "UNPACKED_TABLE_BYTES", 0)
    packed = load(derived[1])
    assert packed.size_bytes < unpacked.size_bytes / 2
    for batch in (1, 3, 64):
        assert packed.infer(arrays(batch))["score"].tobytes() == unpacked.infer(arrays(batch))["score"].tobytes()


def test_a_snapshot_of_quantized_tables_can_be_split(derived, tmp_path):
    policy = parse_policy({"parts": [{"name": "sparse", "modules": ["tables.*", "bag"]}], "default": "dense"})
    report = split_snapshot(derived[1], policy, out=tmp_path / "parts", verify=True)
    assert report.bit_equal == {"1": True, "2": True, "64": True, "257": True}


class Tied(nn.Module):
    """ids [B] -> score [B]: one table is also multiplied, one has a padding index in a bag, one is a small buffer."""

    def __init__(self):
        super().__init__()
        self.tied, self.plain = nn.Embedding(90, 8), nn.Embedding(90, 8)
        self.padded, self.odd = nn.EmbeddingBag(90, 8, padding_idx=0), nn.Embedding(90, 7)
        self.register_buffer("still", torch.randn(90, 8))

    def forward(self, ids):
        x = self.plain(ids) + self.tied(ids) + self.padded(ids.unsqueeze(1)) + functional.embedding(ids, self.still)
        return (x @ self.tied.weight.T).sum(1) + self.odd(ids).sum(1)


def test_tables_that_are_used_otherwise_stay_with_the_reason(tmp_path):
    export(tmp_path / "whole", Tied(), {"ids": torch.zeros(3, dtype=torch.int64)})
    found = derive_snapshot(tmp_path / "whole", step("int4"), tmp_path / "out", replay=None)
    kept = {table["path"]: table.get("kept", "") for table in found.report.details["tables"]}
    assert kept.pop("plain.weight") == ""
    assert "uses it whole" in kept.pop("tied.weight")
    assert "a buffer of 65,536 bytes or less" in kept.pop("still")
    assert "padding index" in kept.pop("padded.weight")
    assert kept == {"odd.weight": "its 7 columns do not fill whole bytes"}
    assert found.report.replaced_bytes.before == 90 * 8 * 4


def test_patterns_choose_tables(whole, tmp_path):
    found = derive_snapshot(whole, step(tables=["tables.*"]), tmp_path / "out", replay=None)
    replaced = [table["path"] for table in found.report.details["tables"] if "kept" not in table]
    assert replaced == ["tables.item.weight", "tables.user.weight"]


def test_a_snapshot_without_a_table_to_replace_is_refused_with_the_reasons(whole, tmp_path):
    with pytest.raises(InvalidInput, match=r"no embedding table.*bag.weight: no pattern of the step matches it"):
        derive_snapshot(whole, step(tables=["none.*"]), tmp_path / "out", replay=None)
    assert not (tmp_path / "out").exists()


def test_a_second_pass_finds_what_the_first_one_left(derived, tmp_path):
    found = derive_snapshot(derived[1], step(), tmp_path / "out", replay=None)
    kept = {table["path"]: table.get("kept") for table in found.report.details["tables"]}
    assert [path for path, why in kept.items() if not why] == ["country.weight"]
    assert kept["bag.weight"] == "its elements are not float32"


def test_every_operator_of_the_program_is_listed_and_none_has_an_object(derived):
    nodes = json.loads((derived[1] / "program.json").read_text())["program"]["graph_module"]["graph"]["nodes"]
    assert any("quantized" in node["target"] for node in nodes)
    assert not any("as_custom_obj" in item["arg"] for node in nodes for item in node["inputs"])


class Fields(nn.Module):
    """ids [B, 8] -> score [B]: a table for each column, side by side."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50 + number, 16) for number in range(8))

    def forward(self, ids):
        return torch.stack([table(ids[:, at]) for at, table in enumerate(self.tables)], 1).sum((1, 2))


@pytest.mark.parametrize("table_bytes", [0, 1 << 30])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_lookups_of_many_tables_are_one_call_as_without_quantizing(tmp_path, monkeypatch, table_bytes, form):
    monkeypatch.setattr(packed_lookup, "UNPACKED_TABLE_BYTES", table_bytes)
    export(tmp_path / "whole", Fields(), {"ids": torch.zeros(3, 8, dtype=torch.int64)})
    derive_snapshot(tmp_path / "whole", step(form), tmp_path / "out", replay=None)
    part = load(tmp_path / "out")
    targets = [node.target for node in part._graph._nodes if node.op == "call_function"]
    assert sum("look_up" in getattr(target, "__name__", "") for target in targets) == 1
    ids = np.arange(8 * 5).reshape(5, 8)
    plain = load(tmp_path / "out", warm=False)
    assert part.infer({"ids": ids})["output"].tobytes() == plain.infer({"ids": ids})["output"].tobytes()
    ids[0, 0] = 50
    with pytest.raises(InvalidInput, match="index 50 is out of range for a table of 50 rows"):
        part.infer({"ids": ids})
