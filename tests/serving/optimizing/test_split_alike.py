"""A quantized snapshot is cut as the one that it was made of: the same parts, segments and tensors between them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from serving.optimizing.derive import derive_snapshot
from serving.splitting.policy import parse_policy
from serving.splitting.split import split_snapshot
from tests.serving.optimizing.models import Ranker, export, inputs, step

WIDTH = 64


class Tower(nn.Module):
    """user [B], item [B] -> score [B]; tables of the rest are looked up for other parts, some by constant ids."""

    def __init__(self):
        super().__init__()
        self.user, self.item, self.id = (nn.Embedding(rows, WIDTH) for rows in (300, 200, 900))
        self.place = nn.Embedding(400, WIDTH)
        self.left, self.right, self.wide = (nn.Linear(WIDTH, 8) for _ in range(3))
        self.register_buffer("places", torch.arange(7))

    def forward(self, user, item):
        score = self.left(self.user(user)) * self.right(self.item(item) + self.id(user))
        return {"score": score.sum(1) + self.wide(self.place(self.places).sum(0)).sum()}


class Listed(nn.Module):
    """user [B] -> score [B]; the tables are parameters that the model itself looks up."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ParameterList([nn.Parameter(torch.randn(300, WIDTH)) for _ in range(3)])
        self.top = nn.Linear(3 * WIDTH, 1)

    def forward(self, user):
        rows = [functional.embedding(user, table) for table in self.tables]
        return {"score": self.top(torch.cat(rows, 1)).squeeze(1)}


class Buffers(nn.Module):
    """user [B], item [B], history [B, 4] -> score [B]; the model itself looks up in buffers and bags of parameters."""

    def __init__(self):
        super().__init__()
        self.bag = nn.Parameter(torch.randn(150, WIDTH))
        self.register_buffer("small", torch.randn(150, WIDTH))
        self.register_buffer("large", torch.randn(300, WIDTH))
        self.left, self.right = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    def forward(self, user, item, history):
        small, large = functional.embedding(user, self.small), functional.embedding(item, self.large)
        bag = functional.embedding_bag(history, self.bag, mode="mean")
        return {"score": (self.left(small + large) * self.right(small + bag)).sum(1)}


def part(name, *modules, **more):
    return {"name": name, "modules": list(modules), **more}


CASES = {
    "rows of the rest go to other parts": (Tower, [part("left", "left"), part("right", "right", "wide")]),
    "a table has the name of a Python function": (Tower, [part("sparse", "id")]),
    "the model looks parameters up": (Listed, [part("sparse", "tables.*", shard={"by": "count", "count": 2})]),
    "bags and buffers": (Buffers, [part("sparse", "bag"), part("left", "left"), part("right", "right")]),
    "shards by bytes": (
        Ranker,
        [part("sparse", "tables.*", "bag", shard={"by": "bytes", "max_bytes": 60_000})],
    ),
}


def of(report):
    parts = [(part.name, part.modules, part.segments) for part in report.parts]
    return parts, report.graph, report.tensors


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("case", CASES)
def test_a_quantized_snapshot_is_cut_into_the_parts_of_the_original(case, form, tmp_path):
    module, parts = CASES[case]
    names = {Listed: ("user",), Tower: ("user", "item")}.get(module, ("user", "item", "history"))
    torch.manual_seed(0)
    export(tmp_path / "whole", module(), {name: inputs(4)[name] for name in names})
    derive_snapshot(tmp_path / "whole", step(form), tmp_path / "derived", replay=None)
    policy = parse_policy({"parts": parts, "default": "dense"})
    whole = split_snapshot(tmp_path / "whole", policy)
    same = policy.assigning({part.name: part.modules for part in whole.parts})
    assert of(split_snapshot(tmp_path / "derived", same)) == of(whole)


def test_a_smaller_derivative_is_not_dealt_into_fewer_shards(tmp_path):
    export(tmp_path / "whole")
    derive_snapshot(tmp_path / "whole", step(), tmp_path / "derived", replay=None)
    policy = parse_policy({"parts": CASES["shards by bytes"][1], "default": "dense"})
    whole, dealt_again = (split_snapshot(tmp_path / name, policy) for name in ("whole", "derived"))
    assert [len(report.parts) for report in (whole, dealt_again)] == [4, 2]
    same = policy.assigning({part.name: part.modules for part in whole.parts})
    found = split_snapshot(tmp_path / "derived", same, out=tmp_path / "parts", verify=True)
    assert found.bit_equal == {"1": True, "2": True, "64": True, "257": True}
    assert of(found) == of(whole)
