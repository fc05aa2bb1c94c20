"""A split answers with the bits of the snapshot: one test for each family of models, at batch 1, 2, 64 and 257."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn

from serving.export import export_model
from serving.splitting.policy import parse_policy
from serving.splitting.split import split_snapshot

IDS = 40


class Mlp(nn.Sequential):
    """Its layers are called 0, 1, ..."""

    def __init__(self):
        super().__init__(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 17), nn.GELU(), nn.Linear(17, 1))


class Dlrm(nn.Module):
    """Bottom, tables, pairwise dots, top."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(IDS + 10 * i, 8, mode="sum") for i in range(4)])
        self.bottom = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense, ids):
        low = self.bottom(dense)
        rows = torch.stack([low] + [table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        dots = torch.bmm(rows, rows.transpose(1, 2))
        left, right = torch.triu_indices(5, 5, 1)
        return torch.sigmoid(self.top(torch.cat([low, dots[:, left, right]], 1))).squeeze(1)


class Towers(nn.Module):
    """Several outputs; in-batch scores of all pairs."""

    def __init__(self):
        super().__init__()
        self.user = nn.ModuleDict({"table": nn.Embedding(IDS, 8), "mlp": nn.Linear(12, 8)})
        self.item = nn.ModuleDict({"table": nn.Embedding(IDS, 8), "mlp": nn.Linear(8, 8)})

    def forward(self, user_id, context, item_id):
        user = self.user["mlp"](torch.cat([self.user["table"](user_id), context], 1))
        item = self.item["mlp"](self.item["table"](item_id))
        user, item = F.normalize(user, dim=1), F.normalize(item, dim=1)
        return {"score": (user * item).sum(1), "user": user, "pairs": user @ item.t()}


class DeepFm(nn.Module):
    """One table for all fields by offsets, first order beside it, request-only glue, a buffer and a constant."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offsets", torch.tensor([0, 10, 25]))
        self.table, self.linear = nn.Embedding(IDS, 6), nn.Embedding(IDS, 1)
        self.deep = nn.Sequential(nn.Linear(18, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        ids = ids + self.offsets
        rows = self.table(ids)
        square = rows.sum(1) ** 2 - (rows**2).sum(1)
        return torch.sigmoid(
            self.linear(ids).sum((1, 2)) + 0.5 * square.sum(1) + self.deep(rows.flatten(1))[:, 0] + self.bias
        )


class Transformer(nn.Module):
    """Positions, two layers, a padding mask made of the lengths, a scale that is a constant."""

    def __init__(self):
        super().__init__()
        self.items, self.positions = nn.Embedding(IDS, 16), nn.Embedding(6, 16)
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=bool(i)) for i in range(2)]
        )
        self.head = nn.Linear(16, 3)

    def forward(self, history, lengths):
        places = torch.arange(6)
        padding = places[None] >= lengths[:, None] + 1
        x = self.items(history) * 4.0 + self.positions(places)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.head(x.masked_fill(padding[:, :, None], 0).sum(1))


class Bags(nn.Module):
    """Multi-hot bags: padded ids with lengths, weights of each id, and batch-first offsets."""

    def __init__(self):
        super().__init__()
        self.bags = nn.ModuleDict(
            {
                "padded": nn.EmbeddingBag(IDS, 8, mode="mean", padding_idx=0),
                "weighted": nn.EmbeddingBag(IDS, 8, mode="sum"),
                "jagged": nn.EmbeddingBag(IDS, 8, mode="max"),
            }
        )
        self.over = nn.Linear(24, 2)

    def forward(self, ids, lengths, weights, values, offsets):
        mask = (torch.arange(5)[None] < lengths[:, None]).to(weights.dtype)
        padded = self.bags["padded"](ids)
        weighted = self.bags["weighted"](ids, per_sample_weights=weights * mask)
        jagged = self.bags["jagged"](values.flatten(), offsets)
        return self.over(torch.cat([padded, weighted, jagged], 1))


class Shared(nn.Module):
    """A module used three times, with another part between; a head tied to a table."""

    def __init__(self):
        super().__init__()
        self.table, self.cell, self.mix = nn.Embedding(IDS, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, IDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        x = torch.tanh(self.cell(x))
        x = torch.tanh(self.cell(self.mix(x)))
        x = torch.tanh(self.cell(self.mix(x)))
        return {"logits": self.head(x), "state": x}


class InPlace(nn.Module):
    """Writes into slices between modules, reads before and after, and rectifies in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(4, 4), nn.Linear(8, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.first(x)
        before = h * 2
        h[:, :4] = self.second(h[:, 4:])
        h += 1
        after = self.third(self.act(h))
        h.mul_(3)
        return after, before, h


class Turned(nn.Module):
    """Sends tensors whose batch is not first, is folded, or lies otherwise in memory; slices and expanded ones."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(7, 3)
        self.gru = nn.GRU(6, 7)
        self.flag = nn.Linear(6, 1)

    def forward(self, x):
        folded = self.one(x.reshape(-1, 5))
        rows = self.two(folded).view(x.shape[0], 4, 6)
        states, last = self.gru(rows.transpose(0, 1))
        gate = self.flag(rows[:, 1]) > 0
        top = self.three(states.permute(1, 2, 0).transpose(1, 2)[:, 1:])
        best = rows.argmax(2)
        wide = self.three(last[0]).unsqueeze(1).expand(-1, 3, -1)
        return {"top": torch.where(gate[:, :, None], top, wide), "best": best, "gate": gate}


class Apart(nn.Module):
    """Hands a slice from one part's own module to another's: torch sums what lies apart by another kernel."""

    def __init__(self):
        super().__init__()
        self.cut = nn.Sequential(nn.Linear(6, 9), Slice())
        self.use = Uses()

    def forward(self, x):
        return self.use(self.cut(x))


class Written(nn.Module):
    """Attention, whose products fold by a flag of the weights, and a write in place, which has the program remade."""

    def __init__(self):
        super().__init__()
        self.items, self.attention = nn.Embedding(IDS, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids):
        x = self.items(ids)
        x[:, 0] = 0.5
        return self.out(self.attention(x, x, x)[0])


class Slice(nn.Module):
    def forward(self, x):
        return x[:, 1:6]


class Uses(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return torch.sigmoid(x), x @ self.weight


def batch(**inputs):
    return inputs


def ids(*shape, limit=IDS):
    return torch.randint(0, limit, shape)


CASES = {
    "mlp": (Mlp, lambda: batch(input=torch.randn(4, 13)), {"a": ["0", "1"], "b": ["4"]}),
    "dlrm": (
        Dlrm,
        lambda: batch(dense=torch.randn(4, 13), ids=ids(4, 4, 3)),
        {"sparse": ["tables.*"], "low": ["bottom"]},
    ),
    "two towers": (
        Towers,
        lambda: batch(user_id=ids(4), context=torch.randn(4, 4), item_id=ids(4)),
        {"user": ["user"], "item": ["item.*"]},
    ),
    "deepfm": (DeepFm, lambda: batch(ids=ids(4, 3, limit=10)), {"wide": ["linear"], "fm": ["table"], "deep": ["deep"]}),
    "transformer": (
        Transformer,
        lambda: batch(history=ids(4, 6), lengths=ids(4, limit=6)),
        {"embeddings": ["items", "positions"], "first": ["layers.0"], "second": ["layers.1.*"]},
    ),
    "bags": (
        Bags,
        lambda: batch(
            ids=ids(4, 5),
            lengths=ids(4, limit=5),
            weights=torch.randn(4, 5),
            values=ids(4, 2),
            offsets=torch.arange(4) * 2,
        ),
        {"bags": ["bags"]},
    ),
    "shared": (Shared, lambda: batch(ids=ids(4)), {"lookup": ["table"], "mix": ["mix"], "head": ["head"]}),
    "in place": (
        InPlace,
        lambda: batch(x=torch.randn(4, 6)),
        {"one": ["first"], "two": ["second"], "three": ["third", "act"]},
    ),
    "written": (Written, lambda: batch(ids=ids(4, 5)), {"items": ["items"], "attention": ["attention"]}),
    "apart": (Apart, lambda: batch(x=torch.randn(4, 6)), {"cut": ["cut"], "use": ["use"]}),
    "turned": (
        Turned,
        lambda: batch(x=torch.randn(4, 4, 5)),
        {"one": ["one"], "two": ["two"], "gru": ["gru"], "three": ["three"], "flag": ["flag"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_split_has_the_bits_of_the_snapshot(case, tmp_path):
    model, inputs, parts = CASES[case]
    torch.manual_seed(0)
    export_model(model(), inputs(), tmp_path / "whole")
    policy = parse_policy({"parts": [{"name": n, "modules": m} for n, m in parts.items()], "default": "rest"})
    report = split_snapshot(tmp_path / "whole", policy, out=tmp_path / "split", verify=True)
    assert report.differences == ()
    assert report.bit_equal == {"1": True, "2": True, "64": True, "257": True}
