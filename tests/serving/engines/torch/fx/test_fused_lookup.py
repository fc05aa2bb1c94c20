"""Lookups that are one call give the bits of many, refuse what those refuse, and copy no table."""

import gc
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import SnapshotManifest
from serving.deltas.export import export_delta
from serving.engines.torch.engine import TorchEngine
from serving.engines.torch.fx import fused_lookup
from serving.engines.torch.fx.fused_lookup import look_up, operands
from serving.engines.torch.fx.fused_lookup_rewrite import INDEX
from serving.export import export_model
from serving.weights.delta_snapshot import read_delta
from serving.weights.row_changes import Rows

BATCHES = (1, 2, 3, 7, 64, 257)
ROWS = (50, 3, 400, 64, 7, 9, 120, 33)


UNEVEN = (301, 7, 95, 33, 201, 5)
"""Rows of 20 bytes: no table ends at a whole line, and those behind the first of the file begin at none."""


TURNS = (50, 11, 400, 7, 9, 64, 3, 120, 33, 5)
"""Rows of half a line: the second, fourth and seventh begin at none in the file, and are copied."""


class Base(nn.Module):
    """Tables of unlike sizes, `width` floats in a row."""

    def __init__(self, rows=ROWS, width=16, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(count, width, dtype=dtype) for count in rows)
        self.low = nn.Linear(5, width)
        self.requires_grad_(requires_grad=False)

    def looked_up(self, ids):
        return [table(ids[:, place]) for place, table in enumerate(self.tables)]


class Dlrm(Base):
    def forward(self, ids, dense):
        vectors = torch.stack([torch.relu(self.low(dense)), *self.looked_up(ids)], 1)
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)


class Flat(Base):
    """Rows side by side, in another order than that of the columns, with something between."""

    def forward(self, ids, dense):
        found = self.looked_up(ids)
        return torch.tanh(torch.cat([*found[3:], self.low(dense), *found[:3]], dim=-1))


class All(Base):
    """All rows and nothing else, twice: the answers must not be one memory."""

    def forward(self, ids):
        found = self.looked_up(ids)
        return torch.stack(found, 1), torch.stack(found, -2), torch.cat(found, 1)


class Some(Base):
    """Columns that do not begin at the first, the last of them left out; one is left over for another table."""

    def forward(self, ids):
        found = [table(ids[:, place + 2]) for place, table in enumerate(self.tables)]
        return torch.cat(found, 1) + ids[:, :1]


class Twice(Base):
    """One table for several columns, and one column for several tables."""

    def forward(self, ids):
        table = self.tables[2]
        found = [
            table(ids[:, 0]),
            table(ids[:, 3]),
            self.tables[0](ids[:, 0]),
            table(ids[:, 0]),
            self.tables[3](ids[:, 1]),
        ]
        return torch.stack(found, 1)


class Apart(Base):
    """Each row goes its own way."""

    def forward(self, ids):
        found = self.looked_up(ids)
        return (
            found[0].sum(1),
            torch.stack([(a * b).sum(1) for a, b in pairwise(found)], 1),
            found[4],
        )


class Pooled(Base):
    """Several ids for each table and row, pooled after the lookup."""

    def forward(self, ids):
        found = [table(ids[:, place]) for place, table in enumerate(self.tables)]
        return torch.stack([rows.mean(1) for rows in found], 1), torch.cat(found, 1)


class Separate(Base):
    """An input for each table."""

    def forward(self, a, b, c, d, e, f, g, h):  # as many as tables
        ids = (a, b, c, d, e, f, g, h)
        return torch.stack([table(i) for table, i in zip(self.tables, ids, strict=True)], 1)


class Deep(Base):
    """Tables whose indices hang on what others gave."""

    def forward(self, ids):
        first = [table(ids[:, place]) for place, table in enumerate(self.tables[:4])]
        signs = (torch.stack(first, 1)[:, :, 0] > 0).long()
        second = [table(signs[:, place]) for place, table in enumerate(self.tables[4:])]
        return torch.stack([*first, *second], 1)


def ids_of(rows=ROWS, dtype=torch.int64, more=()):
    def ids(batch, seed=0):
        random = torch.Generator().manual_seed(seed)
        columns = [torch.randint(count, (batch, *more), generator=random) for count in rows]
        return torch.stack(columns, 1).to(dtype)

    return ids


def with_dense(ids):
    def inputs(batch, seed=0):
        dense = torch.randn(batch, 5, generator=torch.Generator().manual_seed(seed))
        return {"ids": ids(batch, seed), "dense": dense}

    return inputs


def alone(ids):
    return lambda batch, seed=0: {"ids": ids(batch, seed)}


def separate(batch, seed=0):
    return {name: column.clone() for name, column in zip("abcdefgh", ids_of()(batch, seed).unbind(1), strict=True)}


def shifted(batch, seed=0):
    return {"ids": torch.cat([ids_of((3, 3))(batch, seed), ids_of()(batch, seed), ids_of((3,))(batch, seed)], 1)}


IDS, IDS_32, WITH_DENSE = alone(ids_of()), alone(ids_of(dtype=torch.int32)), with_dense(ids_of())
SMALL = ids_of([3] * len(ROWS))
MODELS = {
    "a stack with another vector": (Dlrm, WITH_DENSE, 1),
    "32-bit ids": (Dlrm, with_dense(ids_of(dtype=torch.int32)), 1),
    "a cat in another order": (Flat, WITH_DENSE, 1),
    "rows and nothing else": (All, IDS, 1),
    "some of the columns": (Some, shifted, 1),
    "a table and a column used twice": (Twice, alone(SMALL), 1),
    "rows that go their own way": (Apart, IDS, 1),
    "an input for each table": (Separate, separate, 1),
    "indices that hang on rows": (Deep, IDS, 2),
    "rows of half a line, apart": (lambda: Apart(width=8), IDS, 0),
    "rows of no whole lines, together": (lambda: Dlrm(UNEVEN, width=5), with_dense(ids_of(UNEVEN)), 1),
    "half precision": (lambda: All(width=32, dtype=torch.float16), IDS, 1),
    "in two places by turns": (lambda: All(TURNS, width=8), alone(ids_of(TURNS)), 2),
    "several ids, pooled": (Pooled, alone(ids_of(more=(4,))), 1),
    "too few tables": (lambda: Dlrm(ROWS[:2]), with_dense(ids_of(ROWS[:2])), 0),
}


def load(directory):
    manifest = SnapshotManifest.model_validate_json((directory / "snapshot.json").read_bytes())
    part = TorchEngine().load(directory, manifest, {})
    part.warm_up()
    return part


def exported(module, inputs, directory):
    export_model(module, inputs(3), directory)
    return load(directory)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Load the snapshot of a model, which is exported once for all tests of the same model and inputs."""
    exports = {}

    def find(make, inputs):
        if (make, inputs) not in exports:
            exports[make, inputs] = tmp_path_factory.mktemp("export") / "snapshot"
            export_model(make().eval(), inputs(3), exports[make, inputs])
        return exports[make, inputs]

    return lambda make, inputs: load(find(make, inputs))


def asked(part, given):
    return [torch.from_numpy(array) for array in part.infer({k: t.numpy() for k, t in given.items()}).values()]


def calls(part, target=look_up):
    return [node for node in part._graph._nodes if node.target is target]


def assert_bits(part, module, inputs):
    for batch in BATCHES:
        given = inputs(batch, seed=batch)
        expected = module(**given)
        expected = expected if isinstance(expected, tuple) else (expected,)
        got = asked(part, given)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)), batch


@pytest.mark.parametrize("name", MODELS)
def test_every_bit_is_that_of_the_modules_own_forward(name, loaded):
    make, inputs, groups = MODELS[name]
    module, part = make().eval(), loaded(make, inputs)
    assert len(calls(part)) == groups
    assert not calls(part, torch.select), "joins take slices"
    assert_bits(part, module, inputs)


def test_tables_that_are_joined_are_one_call_and_no_select(loaded):
    part = loaded(Dlrm, WITH_DENSE)
    targets = [node.target for node in part._graph._nodes if node.op == "call_function"]
    assert not {torch.select, torch.ops.aten.select.int, torch.ops.aten.embedding.default, torch.stack} & set(targets)
    [node] = calls(part)
    assert node.args[1].name == "ids"


class Widths(nn.Module):
    """Tables of two widths and two element types, in turn."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        forms = [(16, torch.float32), (32, torch.float32), (16, torch.float64)] * 4
        self.tables = nn.ModuleList(nn.Embedding(40 + n, w, dtype=t) for n, (w, t) in enumerate(forms))

    def forward(self, ids):
        found = [table(ids[:, place]) for place, table in enumerate(self.tables)]
        return tuple(torch.cat(found[kind::3], 1) for kind in range(3))


def test_tables_of_one_width_and_type_are_a_group(tmp_path):
    module, inputs = Widths().eval(), alone(ids_of([40] * 12))
    part = exported(module, inputs, tmp_path / "snapshot")
    assert len(calls(part)) == 3
    assert_bits(part, module, inputs)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("make", [All, Apart])
def test_an_index_beyond_its_own_table_is_refused_for_each_table(make, row, dtype, loaded):
    part = loaded(make, IDS_32 if dtype == torch.int32 else IDS)
    assert calls(part)
    for place, count in enumerate(ROWS):
        for wrong in (count, -1, torch.iinfo(dtype).max, torch.iinfo(dtype).min):
            ids = ids_of(dtype=dtype)(3)
            ids[row, place] = wrong
            with pytest.raises(
                InvalidInput, match=f"index beyond its table: index {wrong} is out of range .* {count} rows"
            ):
                part.infer({"ids": ids.numpy()})
        ids[row, place] = count - 1
        part.infer({"ids": ids.numpy()})


def test_no_table_is_copied(loaded):
    part = loaded(All, IDS)
    tables = [t for t in part._program.arguments if isinstance(t, torch.Tensor) and t.dim() == 2 and t.shape[1] == 16]
    [view] = [a for a in part._graph._arguments if isinstance(a, torch.Tensor) and a.dim() == 2 and len(a) > max(ROWS)]
    assert view.untyped_storage().data_ptr() == tables[0].untyped_storage().data_ptr()
    assert view.data_ptr() == min(table.data_ptr() for table in tables)
    end = max(table.data_ptr() + table.nbytes for table in tables)
    assert view.data_ptr() + view.nbytes == end
    assert part.size_bytes == sum(tensor.nbytes for tensor in All().state_dict().values())


def test_answers_are_not_one_memory(loaded):
    part = loaded(All, IDS)
    first, second, third = part.infer({"ids": ids_of()(4).numpy()}).values()
    assert not any(np.shares_memory(a, b) for a, b in ((first, second), (first, third), (second, third)))


class Received(nn.Module):
    """Rows that came together, taken apart and joined with others; and joined as they came."""

    def forward(self, low, left, right):
        rows = [*left.unbind(1), *(right[:, place] for place in range(4))]
        return torch.stack([low, *rows], 1), torch.stack([right[:, place] for place in range(4)], 1)


def received(batch, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = {"low": (8,), "left": (5, 8), "right": (4, 8)}
    return {name: torch.randn(batch, *shape, generator=random) for name, shape in shapes.items()}


def test_rows_that_came_together_are_joined_as_they_came_and_no_input_is_given_back(tmp_path):
    module = Received().eval()
    part = exported(module, received, tmp_path / "snapshot")
    assert not calls(part, torch.ops.aten.select.int)
    assert_bits(part, module, received)
    given = {name: tensor.numpy() for name, tensor in received(3).items()}
    assert not np.shares_memory(list(part.infer(given).values())[1], given["right"])


def test_a_rewritten_graph_that_gives_other_bits_is_not_taken(loaded, monkeypatch):
    def other(table, index, offsets, first, last):
        return look_up(table, index, offsets, first, last) + 1e-6

    def refuses(*_args):
        raise IndexError

    module = All().eval()
    for wrong in (other, refuses):
        monkeypatch.setattr(fused_lookup, "look_up", wrong)
        part = loaded(All, IDS)
        assert not calls(part, wrong)
        assert_bits(part, module, IDS)


def test_ids_that_show_a_wrong_offset_are_drawn(loaded, monkeypatch):
    """The zeros and ones of a trial request alone would not tell the last rows of two tables apart."""

    def shifted_rows(table, index, offsets, first, last):
        return look_up(table, torch.where(index > 10, index - 1, index), offsets, first, last)

    monkeypatch.setattr(fused_lookup, "look_up", shifted_rows)
    assert not calls(loaded(All, IDS), shifted_rows)


LARGE = (1200, 1100, 2000, 1024, 1500, 1300, 12)


@pytest.fixture
def family(tmp_path):
    """A snapshot with large tables, and a maker of deltas in which rows of some tables change."""
    module = Dlrm(LARGE).eval()
    export_model(module, with_dense(ids_of(LARGE))(3), tmp_path / "base")

    def child(places):
        rows = {}
        for place in places:
            weight = module.tables[place].weight
            changed = torch.tensor([0, 7, len(weight) - 1])
            weight[changed] += 1
            rows[f"tables.{place}.weight"] = Rows(changed, weight[changed])
        export_delta(tmp_path / "base", rows, tmp_path / "delta")
        return read_delta(tmp_path / "delta")

    return module, load(tmp_path / "base"), child


@pytest.mark.parametrize(("changed", "groups"), [([0, 1, 2, 3, 4, 5, 6], 1), ([1, 3, 5], 2), ([2], 1)])
def test_after_a_delta_the_rows_are_those_of_the_new_part(family, changed, groups):
    module, parent, child = family
    inputs = with_dense(ids_of(LARGE))
    before = asked(parent, inputs(64))
    part = parent.changed_by(child(changed), parent_stays=True)
    part.warm_up()
    assert len(calls(part)) == groups
    assert_bits(part, module, inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, asked(parent, inputs(64)), strict=True))
    parent.close()
    gc.collect()
    assert_bits(part, module, inputs)


def test_tables_carried_whole_by_a_delta_lie_with_the_others_and_take_the_rows_of_the_next(tmp_path):
    module, inputs = Dlrm(LARGE).eval(), with_dense(ids_of(LARGE))
    export_model(module, inputs(3), tmp_path / "base")
    for table in module.tables:
        nn.init.normal_(table.weight)
    export_delta(tmp_path / "base", module, tmp_path / "first")
    for table in module.tables:
        table.weight[3] += 1
    export_delta(tmp_path / "first", module, tmp_path / "second", bases=[tmp_path / "base"])
    whole, rows = read_delta(tmp_path / "first"), read_delta(tmp_path / "second")
    assert len(whole.whole) == len(rows.rows) == len(LARGE)
    part = load(tmp_path / "base").changed_by(whole, parent_stays=False).changed_by(rows, parent_stays=False)
    part.warm_up()
    assert len(calls(part)) == 1
    assert_bits(part, module, inputs)


def test_snapshots_of_one_program_share_the_rewritten_graph(tmp_path):
    engine, parts = TorchEngine(), []
    for seed in (1, 2):
        module = Dlrm().eval()
        torch.manual_seed(seed)
        for table in module.tables:
            nn.init.normal_(table.weight)
        manifest = export_model(module, with_dense(ids_of())(3), tmp_path / str(seed))
        part = engine.load(tmp_path / str(seed), manifest, {})
        part.warm_up()
        parts.append((module, part))
    assert calls(parts[0][1])[0] is calls(parts[1][1])[0]
    for module, part in parts:
        assert_bits(part, module, with_dense(ids_of()))


@pytest.mark.parametrize("late", [{"dense"}, {"ids"}])
def test_two_steps_give_the_bits_of_one(late, loaded):
    part = loaded(Dlrm, WITH_DENSE)
    staged = part.stage(frozenset(late))
    for batch in BATCHES:
        given = {name: tensor.numpy() for name, tensor in WITH_DENSE(batch, seed=batch).items()}
        state = staged.begin({name: array for name, array in given.items() if name not in late})
        answer = staged.complete(state, {name: given[name] for name in late})
        assert np.array_equal(answer["output"], part.infer(given)["output"])


def test_lookups_whose_ids_come_early_do_not_wait_for_those_that_come_late(loaded):
    part = loaded(Separate, separate)
    assert any(node.meta.get(INDEX) for node in part._graph._nodes)
    staged = part.stage(frozenset({"h"}))
    given = {name: tensor.numpy() for name, tensor in separate(5).items()}
    state = staged.begin({name: array for name, array in given.items() if name != "h"})
    assert sum(tensor.dtype == torch.float32 and tensor.shape == (5, 16) for tensor in state) == 7
    assert np.array_equal(staged.complete(state, {"h": given["h"]})["output"], part.infer(given)["output"])


class Towers(Base):
    """The user's rows are looked up once for a request."""

    def forward(self, user, item):
        known = torch.tanh(
            self.low(torch.cat([table(user[:, p]) for p, table in enumerate(self.tables[:4])], 1)[:, ::13])
        )
        return (known * torch.cat([table(item[:, p]) for p, table in enumerate(self.tables[4:])], 1)[:, :16]).sum(1)


def test_halves_of_a_request_join_their_lookups(tmp_path, monkeypatch):
    joined = []

    def counted(group, arguments):
        joined.append(len(group))
        return operands(group, arguments)

    ids = ids_of()(64)
    user, item = ids[:1, :4], ids[:, 4:]
    module = Towers(width=16).eval()
    manifest = export_model(module, {"user": user, "item": item}, tmp_path / "snapshot", request_inputs=["user"])
    part = TorchEngine().load(tmp_path / "snapshot", manifest, {})
    monkeypatch.setattr(fused_lookup, "operands", counted)
    part.warm_up()
    assert part._once.partitioned is not None
    assert joined == [8, 4, 4], "the whole, and both halves"
    answer = part.infer({"user": user.numpy().copy(), "item": item.numpy().copy()})["output"]
    assert np.allclose(answer, module(user.expand(64, 4), item).numpy(), atol=1e-6)
    with pytest.raises(InvalidInput, match="index 50 is out of range for a table of 50 rows"):
        part.infer({"user": np.array([[50, 0, 0, 0]]), "item": item.numpy().copy()})


class Drawn(nn.Module):
    """Tables, columns and what becomes of their rows, drawn from a seed."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        self.rows = [int(count) for count in random.integers(2, 60, 14)]
        self.tables = nn.ModuleList(nn.Embedding(count, int(random.choice([4, 16, 16, 32]))) for count in self.rows)
        self.columns = [int(place) for place in random.permutation(14)]
        self.orders = [[int(place) for place in random.permutation(14)[: random.integers(3, 15)]] for _ in range(3)]
        self.requires_grad_(requires_grad=False)

    def inputs(self, batch, seed=0):
        ids = torch.empty(batch, 14, dtype=torch.int64)
        for table, place in enumerate(self.columns):
            ids[:, place] = ids_of([self.rows[table]])(batch, seed)[:, 0]
        return {"ids": ids}

    def forward(self, ids):
        found = [table(ids[:, place]) for table, place in zip(self.tables, self.columns, strict=True)]
        joined = torch.cat([found[place] for place in self.orders[0]], 1)
        alike = [found[place] for place in self.orders[1] if found[place].shape[1] == 16]
        own = [found[place].sum(1) for place in self.orders[2]]
        return joined, torch.stack([joined[:, :16], *alike], 1), torch.stack(own, 1)


@pytest.mark.parametrize("seed", range(8))
def test_drawn_models_keep_every_bit(seed, tmp_path):
    module = Drawn(seed).eval()
    part = exported(module, module.inputs, tmp_path / "snapshot")
    assert part._graph.plain is not None
    assert_bits(part, module, module.inputs)
