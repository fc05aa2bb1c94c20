"""What a policy may say: shards, budgets, nested patterns. Each refusal names the field and what is allowed."""

import pytest
import torch
from torch import nn

from ipnext.errors import InvalidInput
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.split import ShardSpec
from serving.export import export_model
from serving.splitting.assign.shards import ShardUnit, deal
from serving.splitting.policy import parse_policy
from serving.splitting.split import split_snapshot

ROWS = (100, 50, 50, 25, 10)
WIDTH = 8
ROW_BYTES = WIDTH * 4


class Catalogue(nn.Module):
    """Tables of several sizes in a collection with a forward of its own, a parameter list of tables, a tower."""

    def __init__(self):
        super().__init__()
        self.tables = Collection()
        self.loose = nn.ParameterList([nn.Parameter(torch.randn(20, WIDTH)) for _ in range(2)])
        self.register_buffer("starts", torch.zeros(5, dtype=torch.int64))
        self.tower = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)), nn.Linear(WIDTH, 1))
        self.idle = nn.Linear(3, 3)

    def forward(self, ids, kind):
        x = self.tables(ids + self.starts)
        for table in self.loose:
            x = x + nn.functional.embedding(kind, table)
        return self.tower(x)[:, 0]


class Collection(nn.Module):
    """As a library of embeddings has it: the lookups and their sum in one module."""

    def __init__(self):
        super().__init__()
        self.of = nn.ModuleList([nn.Embedding(rows, WIDTH) for rows in ROWS])

    def forward(self, ids):
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.of)], 1).sum(1)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("split") / "whole"
    inputs = {"ids": torch.randint(0, 10, (4, 5)), "kind": torch.randint(0, 20, (4,))}
    export_model(Catalogue(), inputs, directory)
    return directory


def split(snapshot, document, **options):
    return split_snapshot(snapshot, parse_policy(document), **options)


def part(name="a", modules=("tables",), **more):
    return {"name": name, "modules": list(modules), **more}


def modules_of(report, prefix):
    return {p.name: p.modules for p in report.parts if p.name.startswith(prefix)}


def test_shards_by_bytes_stay_within_the_budget_and_hold_every_table_once(snapshot):
    budget = 110 * ROW_BYTES
    document = {"parts": [part("sparse", shard={"by": "bytes", "max_bytes": budget})], "default": "dense"}
    report = split(snapshot, document, verify=True)
    shards = {p.name: p for p in report.parts if p.name.startswith("sparse-")}
    assert sorted(shards) == ["sparse-0", "sparse-1", "sparse-2"]
    assert all(p.bytes <= budget for p in shards.values())
    assert sorted(m for p in shards.values() for m in p.modules) == [f"tables.of.{i}" for i in range(5)]
    assert report.is_equal
    assert len(report.bit_equal) == 4


def test_small_buffers_that_shards_need_count_within_the_budget(snapshot):
    """A budget of exactly two tables leaves no room for the copied offsets beside them: the second goes elsewhere."""
    document = {"parts": [part("sparse", shard={"by": "bytes", "max_bytes": 100 * ROW_BYTES + 100})]}
    report = split(snapshot, document)
    assert all(p.bytes <= 100 * ROW_BYTES + 100 for p in report.parts if p.name.startswith("sparse"))
    assert [copy.weight for copy in report.copied] == ["starts"]


def test_shards_by_count_are_alike_in_bytes(snapshot):
    report = split(snapshot, {"parts": [part("sparse", shard={"by": "count", "count": 2})]}, verify=True)
    sizes = {p.name: p.bytes for p in report.parts}
    assert report.is_equal
    assert sorted(sizes) == ["rest", "sparse-0", "sparse-1"]
    assert abs(sizes["sparse-0"] - sizes["sparse-1"]) <= 25 * ROW_BYTES


def test_tables_of_one_size_are_dealt_out_as_neighbours():
    sizes = [8, 64, 8, 64, 8, 8, 64, 64]
    units = [ShardUnit(f"tables.{order}", size, order, is_table=True) for order, size in enumerate(sizes)]
    first, second = deal(units, ShardSpec(by="count", count=2), field="parts.0.shard")
    assert sorted(unit.order for unit in first) == [0, 1, 2, 3]
    assert sorted(unit.order for unit in second) == [4, 5, 6, 7]


def test_layers_are_dealt_out_as_neighbours(snapshot):
    report = split(snapshot, {"parts": [part("tower", ["tower"], shard={"by": "count", "count": 3})]}, verify=True)
    assert report.is_equal
    assert modules_of(report, "tower-") == {
        "tower-0": ("tower.0",),
        "tower-1": ("tower.1", "tower.2"),
        "tower-2": ("tower.3", "tower.4"),
    }
    assert len(report.segments) == 4


def test_tables_that_are_parameters_of_a_list_are_parts_and_shards_too(snapshot):
    report = split(snapshot, {"parts": [part("loose", ["loose.*"], shard={"by": "count", "count": 2})]}, verify=True)
    assert report.is_equal
    assert modules_of(report, "loose-") == {"loose-0": ("loose.0",), "loose-1": ("loose.1",)}
    assert {p.bytes for p in report.parts if p.name != "rest"} == {20 * ROW_BYTES}


def test_the_nearest_pattern_wins(snapshot):
    report = split(snapshot, {"parts": [part("all", ["*"]), part("big", ["tables.of.0"])]}, verify=True)
    assert {p.name: p.modules for p in report.parts} == {
        "all": ("idle", "loose", "starts", "tables", "tower"),
        "big": ("tables.of.0",),
    }
    assert {p.name: p.bytes for p in report.parts}["big"] == ROWS[0] * ROW_BYTES


def test_a_table_is_stored_with_its_part_only(snapshot, tmp_path):
    report = split(snapshot, {"parts": [part("sparse", ["tables"])], "default": "dense"}, out=tmp_path / "out")
    assert {p.name: p.bytes for p in report.parts} == {
        "sparse": sum(ROWS) * ROW_BYTES + 40,
        "dense": 2 * 20 * ROW_BYTES + 4 * (WIDTH * WIDTH + WIDTH) * 4 + (WIDTH + 1) * 4,
    }
    for segment in report.segments:
        size = (tmp_path / "out" / segment.name / "weights.safetensors").stat().st_size
        assert segment.bytes <= size <= segment.bytes + 4096


def test_the_hardware_of_a_part_is_handed_on(snapshot):
    hardware = ["cpu", {"kind": "l4", "units": 1, "qps": 500}]
    report = split(snapshot, {"parts": [part("sparse", hardware=hardware, shard={"by": "count", "count": 2})]})
    kinds = [[h if isinstance(h, str) else h.kind for h in p.hardware] for p in report.parts]
    assert kinds == [["cpu", "l4"], ["cpu", "l4"], []]


REFUSED = {
    "no parts": ({"parts": []}, "parts", "at least 1 item"),
    "no document": ([], "policy", "must be a mapping"),
    "no patterns": ({"parts": [part(modules=[])]}, "parts.0.modules", "at least 1 item"),
    "an unknown field": (
        {"parts": [part(module=["x"])]}, "parts.0.module", "allowed here: hardware, modules, name, shard",
    ),
    "an unknown field of a shard": (
        {"parts": [part(shard={"by": "bytes", "maxBytes": 10, "size": 3})]}, "parts.0.shard.size",
        "allowed here: by, count, max_bytes",
    ),
    "an empty default": ({"parts": [part()], "default": ""}, "default", "pattern"),
    "a default that is no name": ({"parts": [part()], "default": "The Rest"}, "default", "pattern"),
    "a default that is dealt out": (
        {"parts": [part(shard={"by": "count", "count": 2})], "default": "a"}, "", "dealt out",
    ),
    "the request's name": ({"parts": [part("request")]}, "", "names the request itself"),
    "a name twice": ({"parts": [part(), part(modules=["tower"])]}, "", "'a' 2 times"),
    "a pattern that matches nothing": (
        {"parts": [part(modules=["tables", "towr"])]}, "parts.0.modules.1",
        "'towr' matches no module; near it are: tower",
    ),
    "a pattern far from all": ({"parts": [part(modules=["zzz"])]}, "parts.0.modules.0", "there are: idle"),
    "a module of two parts": (
        {"parts": [part(), part("b", ["t*s"])]}, "parts.1.modules", "'tables' is matched by part 'a' and by part 'b'",
    ),
    "a part without operations": ({"parts": [part("b", ["idle"])]}, "parts.0", "'b' would be empty"),
    "an unknown shard": ({"parts": [part(shard={"by": "rows"})]}, "parts.0.shard.by", "'bytes' or 'count'"),
    "a shard without budget": ({"parts": [part(shard={"by": "bytes"})]}, "parts.0.shard", "needs max_bytes"),
    "a shard with both": (
        {"parts": [part(shard={"by": "count", "count": 2, "max_bytes": 5})]}, "parts.0.shard", "max_bytes belongs to",
    ),
    "a budget of nothing": (
        {"parts": [part(shard={"by": "bytes", "max_bytes": 0})]}, "parts.0.shard.max_bytes", "greater than 0",
    ),
    "a budget below a table": (
        {"parts": [part(shard={"by": "bytes", "max_bytes": 2000})]}, "parts.0.shard.max_bytes",
        "'tables.of.0' alone holds 3,200 bytes",
    ),
    "a count of nothing": (
        {"parts": [part(shard={"by": "count", "count": 0})]}, "parts.0.shard.count", "greater than or equal to 1",
    ),
    "a count above the tables": (
        {"parts": [part(shard={"by": "count", "count": 9})]}, "parts.0.shard.count", "more than the 5 modules",
    ),
    "a shard of nothing": (
        {"parts": [part("b", ["idle"], shard={"by": "count", "count": 2})]}, "parts.0.shard", "nothing to deal out",
    ),
    "a shard's name taken": (
        {"parts": [part(shard={"by": "count", "count": 2}), part("a-1", ["tower"])]}, "parts",
        "'a-1', and so is another part",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_policy_that_does_not_fit_is_refused(case, snapshot):
    document, field, text = REFUSED[case]
    with pytest.raises(InvalidInput) as refusal:
        split(snapshot, document)
    assert refusal.value.field == field
    assert text in str(refusal.value)


class Selected(nn.Module):
    """A number of rows that the values decide, and complex numbers between modules."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.wave, self.power = Wave(), Power()

    def forward(self, x):
        rows = self.first(x)
        chosen = rows[rows[:, 0] > 0]
        return self.second(rows) + self.second(chosen).sum(), self.power(self.wave(x))


class Wave(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x)


class Power(nn.Module):
    def forward(self, x):
        return (x * x).abs()


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("split") / "whole"
    export_model(Selected(), {"x": torch.randn(4, 6)}, directory)
    return directory


def test_a_size_that_values_decide_may_not_cross(selected):
    document = {"parts": [part("a", ["first"]), part("b", ["second"])], "default": "a"}
    with pytest.raises(
        InvalidInput, match=r"after aten\.index\.Tensor in the model's own forward .* keep it and what uses it"
    ):
        split(selected, document)


def test_a_size_that_values_decide_may_stay_inside(selected):
    assert split(selected, {"parts": [part("b", ["first", "second"])]}, verify=True).is_equal


def test_complex_numbers_may_not_cross(selected):
    with pytest.raises(InvalidInput, match="'wave', whose element type no V2 datatype has"):
        split(selected, {"parts": [part("b", ["wave"]), part("c", ["power"])]})


MODEL = {
    "apiVersion": "ipnext/v1",
    "kind": "Model",
    "metadata": {"name": "shop"},
    "spec": {
        "parts": [{"name": "shop", "hardware": [{"kind": "cpu", "units": 1, "qps": 10}]}],
        "demand": [{"region": "north", "qps": 1}],
        "split": {"parts": [part("sparse")], "default": "dense"},
    },
}


def test_a_manifest_carries_its_policy():
    assert parse_policy(MODEL) == parse_manifest(MODEL).spec.split
    assert parse_policy(MODEL).default == "dense"


def test_a_manifest_with_a_policy_lists_one_part():
    two = [*MODEL["spec"]["parts"], MODEL["spec"]["parts"][0] | {"name": "other"}]
    with pytest.raises(InvalidInput, match="split: cuts a model of one part"):
        parse_manifest(MODEL | {"spec": MODEL["spec"] | {"parts": two}})


def test_a_manifest_without_a_policy_is_refused():
    spec = {key: value for key, value in MODEL["spec"].items() if key != "split"}
    with pytest.raises(InvalidInput, match=r"spec\.split: the manifest has none"):
        parse_policy(MODEL | {"spec": spec})
