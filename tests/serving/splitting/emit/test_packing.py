"""Values that go the same way travel as one tensor, and no bit of an answer changes by it."""

import json
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from ipnext.cli.app import app
from serving.export import export_model
from serving.splitting.emit import packing
from serving.splitting.policy import parse_policy
from serving.splitting.split import split_snapshot

IDS = 30
EQUAL = {"1": True, "2": True, "64": True, "257": True}


class Tables(nn.Module):
    """ids and dense [B, 3].

    A table of a width of its own for each column, and something of the default part to join with.
    """

    def __init__(self, *widths, low=4):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(IDS, width) for width in widths])
        self.low = nn.Linear(3, low)

    def rows(self, ids):
        return [table(ids[:, number]) for number, table in enumerate(self.tables)]


class Towers(Tables):
    """Two towers: rows 0 and 1 go to the left one, 2 and 3 to the right one, 4 and 5 to both."""

    def __init__(self):
        super().__init__(*[8] * 6)
        self.left, self.right = Tower(3), Tower(5)

    def forward(self, ids, dense):
        a, b, c, d, e, f = self.rows(ids)
        low = self.low(dense)
        return {"left": self.left(low, a, b, e, f), "right": self.right(low, c, d, f, e)}


class Tower(nn.Module):
    """Joins four rows and more."""

    def __init__(self, width):
        super().__init__()
        self.top = nn.Linear(36, width)

    def forward(self, low, *rows):
        return self.top(torch.cat([low, *rows], 1))


class Widths(Tables):
    """Two rows of 4, three of 10, one of 16 floats, and two whole numbers beside them."""

    def __init__(self):
        super().__init__(4, 10, 16, 10, 4, 10)
        self.top = nn.Linear(58, 2)

    def forward(self, ids, dense):
        rows = self.rows(ids)
        score = self.top(torch.cat([self.low(dense), *rows], 1))
        return score + torch.stack([score.argmax(1), rows[0].argmax(1), rows[1].argmax(1)], 1).sum(1, keepdim=True)


class Twice(Tables):
    """One table looked up by three columns; its rows are joined in another order than they are looked up."""

    def __init__(self):
        super().__init__(10, low=10)
        self.top = nn.Linear(40, 1)

    def forward(self, ids, dense):
        first, second, third = (self.tables[0](ids[:, number]) for number in range(3))
        return self.top(torch.stack([third, first, self.low(dense), second], 1).flatten(1)).squeeze(1)


class Answered(Tables):
    """One of its rows is an answer too; another becomes one by a view."""

    def __init__(self):
        super().__init__(8, 8, 8, 8)
        self.top = nn.Linear(36, 1)

    def forward(self, ids, dense):
        a, b, c, d = self.rows(ids)
        score = self.top(torch.cat([self.low(dense), a, b, c, d], 1))
        return {"score": score, "item": b, "wide": c.unsqueeze(1) + score[:, :, None]}


class Used(Tables):
    """Three rows of 10 floats are used one by one, and torch's GELU has other bits for rows that lie apart.

    Then all are stacked.
    """

    def __init__(self):
        super().__init__(*[10] * 5, low=10)
        self.act, self.each = nn.GELU(), nn.Linear(10, 3)
        self.top = nn.Linear(60, 3)

    def forward(self, ids, dense):
        rows = self.rows(ids)
        own = sum(self.each(self.act(rows[number])) for number in (3, 1, 2))
        return own + self.top(torch.stack([self.low(dense), *rows], 1).flatten(1))


class Lifted(Tables):
    """Rows get a dimension each and are then joined, as many models write a stack."""

    def __init__(self):
        super().__init__(*[8] * 3, low=8)
        self.top = nn.Linear(32, 1)

    def forward(self, ids, dense):
        rows = [row.unsqueeze(1) for row in (self.low(dense), *self.rows(ids))]
        return self.top(torch.cat(rows, 1).flatten(1)).squeeze(1)


class Others(Tables):
    """What is not packed: products of all pairs of the batch, positions without a batch, rows of 600 bytes."""

    def __init__(self):
        super().__init__(150, 150, 4, 4)
        self.places, self.pairs = Places(), Pairs()
        self.top = nn.Linear(150, 4)

    def forward(self, ids, dense):
        a, b, c, d = self.rows(ids)
        low = self.low(dense)
        score = self.top(low[:, :1] * a + b) + low * c + d
        first, second = self.pairs(score)
        here, there = self.places()
        return {"pairs": first * low[:, :1] - second, "near": score[:, None] * here - there}


class Places(nn.Module):
    """Two tensors [4, 4] that no request changes."""

    def __init__(self):
        super().__init__()
        self.of = nn.Embedding(4, 4)

    def forward(self):
        rows = self.of(torch.arange(4))
        return rows, torch.tanh(rows)


class Pairs(nn.Module):
    """Two tensors [B, B]."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        pairs = x @ x.t() * self.weight
        return pairs, torch.tanh(pairs)


class Folded(nn.Module):
    """Tensors of four rows for each of the batch: they are folded to the batch in front, then packed."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.top = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        folded = x.reshape(-1, 5)
        return self.top(torch.tanh(self.one(folded)) * self.two(folded)).view(-1, 8)


EXAMPLE = {"ids": torch.randint(0, IDS, (4, 6)), "dense": torch.randn(4, 3)}
TABLES = [{"name": "sparse", "modules": ["tables.*"]}]


@pytest.fixture
def cut(tmp_path):
    """A model cut by a policy: the report, and the programs of its segments."""

    def make(model, *, parts=TABLES, example=None):
        export_model(model, example or EXAMPLE, tmp_path / "whole")
        policy = parse_policy({"parts": parts, "default": "dense"})
        return split_snapshot(tmp_path / "whole", policy, out=tmp_path / "split", verify=True)

    return make


@pytest.fixture
def calls(tmp_path):
    """The operators of a segment, in order."""

    def read(segment):
        document = json.loads((tmp_path / "split" / segment / "program.json").read_text())
        nodes = document["program"]["graph_module"]["graph"]["nodes"]
        return [node["target"].removeprefix("torch.ops.aten.") for node in nodes]

    return read


def sent(report):
    """What travels between segments: (shape, names carried)."""
    return [(t.shape, t.carries) for t in report.tensors if t.source != "request"]


def test_what_goes_to_the_same_segments_travels_together(cut):
    towers = [{"name": "left", "modules": ["left"]}, {"name": "right", "modules": ["right"]}]
    report = cut(Towers(), parts=[*TABLES, *towers])
    assert report.bit_equal == EQUAL
    assert [(t.to, t.shape, t.carries) for t in report.tensors if t.source == "sparse"] == [
        (("left",), (-1, 2, 8), ("tables_0", "tables_1")),
        (("left", "right"), (-1, 2, 8), ("tables_4", "tables_5")),
        (("right",), (-1, 2, 8), ("tables_2", "tables_3")),
    ]


def test_only_tensors_of_one_form_travel_together(cut):
    report = cut(Widths())
    assert report.bit_equal == EQUAL
    assert sent(report) == [
        ((-1, 2, 4), ("tables_0", "tables_4")),
        ((-1, 3, 10), ("tables_1", "tables_3", "tables_5")),
        ((-1, 16), ()),
        ((-1, 2), ("argmax_out", "argmax_out_1")),
    ]


def test_a_module_used_more_than_once_sends_one_tensor(cut, calls):
    report = cut(Twice())
    assert report.bit_equal == EQUAL
    assert [(shape, len(carries)) for shape, carries in sent(report)] == [((-1, 3, 10), 3)]
    assert "clone.default" not in calls("dense")


def test_an_answer_of_the_model_travels_by_itself(cut):
    report = cut(Answered())
    assert report.bit_equal == EQUAL
    assert sent(report) == [
        ((-1, 3, 8), ("tables_0", "tables_2", "tables_3")),
        ((-1, 8), ()),
    ]
    assert report.graph.outputs["item"] == "sparse.item"


def test_one_tensor_alone_is_not_packed(cut, calls):
    report = cut(Widths(), parts=[{"name": "sparse", "modules": ["tables.2"]}])
    assert report.bit_equal == EQUAL
    assert sent(report) == [((-1, 16), ())]
    assert "stack.default" not in calls("sparse")


def test_what_computes_on_a_row_gets_it_as_torch_would_have_put_it(cut, calls):
    report = cut(Used())
    assert report.bit_equal == EQUAL
    assert [shape for shape, _ in sent(report)] == [(-1, 5, 10)]
    assert calls("dense").count("select.int") == 5
    assert calls("dense").count("clone.default") == 3


def test_a_join_takes_slices_in_their_order_even_of_rows_that_others_use_before(cut, tmp_path):
    cut(Used())
    document = json.loads((tmp_path / "split" / "dense" / "program.json").read_text())
    nodes = {
        node["outputs"][0]["as_tensor"]["name"]: node for node in document["program"]["graph_module"]["graph"]["nodes"]
    }
    [stack] = [node for node in nodes.values() if node["target"].endswith("stack.default")]
    joined = [nodes[item["name"]] for item in stack["inputs"][0]["arg"]["as_tensors"][1:]]
    assert {node["target"] for node in joined} == {"torch.ops.aten.select.int"}
    assert [node["inputs"][2]["arg"]["as_int"] for node in joined] == [0, 1, 2, 3, 4]


def test_rows_that_get_a_dimension_and_are_joined_are_not_copied_before(cut, calls):
    assert cut(Lifted()).bit_equal == EQUAL
    assert "clone.default" not in calls("dense")


def test_what_has_no_batch_in_front_or_is_wide_travels_by_itself(cut):
    parts = [*TABLES, *({"name": name, "modules": [name]} for name in ("places", "pairs"))]
    report = cut(Others(), parts=parts)
    assert report.bit_equal == EQUAL
    packed = [(shape, carries) for shape, carries in sent(report) if carries]
    assert packed == [((-1, 2, 4), ("tables_2", "tables_3"))]
    alone = Counter(shape for shape, carries in sent(report) if not carries)
    assert [alone[shape] for shape in ((-1, -1), (-1, 150), (4, 4))] == [2, 2, 2]


def test_folded_tensors_are_packed_behind_the_batch(cut):
    parts = [{"name": "both", "modules": ["one", "two"]}]
    report = cut(Folded(), parts=parts, example={"x": torch.randn(4, 4, 5)})
    assert report.bit_equal == EQUAL
    assert [shape for shape, _ in sent(report)] == [(-1, 2, 4, 6)]


def test_a_cut_without_packing_answers_alike(cut, monkeypatch):
    """As earlier cuts are: they go on serving."""
    monkeypatch.setattr(packing, "MOST_ROW_BYTES", 0)
    report = cut(Twice())
    assert report.bit_equal == EQUAL
    assert sent(report) == [((-1, 10), ())] * 3


def test_a_name_that_is_taken_is_not_used_again(cut):
    class Named(Twice):
        def forward(self, ids, dense):
            return {"packed_sparse": super().forward(ids, dense)}

    report = cut(Named())
    assert report.bit_equal == EQUAL
    assert [t.name for t in report.tensors if t.carries] == ["packed_sparse_1"]


def test_the_command_says_what_a_tensor_carries(tmp_path):
    torch.manual_seed(0)
    export_model(Twice(), EXAMPLE, tmp_path / "whole")
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump({"parts": TABLES, "default": "dense"}))
    options = ["--policy", str(tmp_path / "policy.yaml"), "--picture", str(tmp_path / "graph.svg")]
    text = CliRunner().invoke(app, ["split", str(tmp_path / "whole"), *options]).stdout
    assert "packed: packed_sparse carries tables_0 tables_0_1 tables_0_2" in text
    labels = [element.text for element in ET.parse(tmp_path / "graph.svg").iter() if element.tag.endswith("title")]
    assert "packed_sparse FP32 [-1, 3, 10], 3 tensors" in labels
