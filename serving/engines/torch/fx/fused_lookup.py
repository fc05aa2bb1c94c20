"""Fused embedding lookups: a single call fetches rows of several tables that lie in one block of memory.

A ranking model looks up one row in each of dozens of tables, and at small batches the calls take longer than the rows.
If tables of one width and element type lie whole rows apart in one mapping of the weights file, a view from the first
to the last of them is one table: row `i` of table `t` is its row `i + offset[t]`. Nothing is copied, and each index is
checked against its own table's rows first, so that none reads a neighbour's. The rewritten graph is used only if it
answers drawn requests bit-identically to the exported graph.

Used by serving.engines.torch.program_cache and serving.engines.torch.request_partition, for whole programs and halves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import add, clamp, embedding, equal, fx

from serving.engines.torch.fx.direct_calls import DirectGraph, is_mutable, same_bits
from serving.engines.torch.fx.fused_lookup_rewrite import Group, LookUps, gathered_graph
from serving.engines.torch.fx.lookup_groups import Lookup, lookups_of
from serving.engines.torch.fx.nodes import aten, column_of
from serving.engines.torch.fx.packed_lookup import look_up_bytes, look_up_nibbles

Run: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""The exported graph: takes the user's tensors in their order."""

_LOOK_UP_CALLS: Final = 4
"""Number of torch calls in `look_up`."""


def look_up(
    table: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """Look up rows of several tables in the view `table` [rows, width]: result [*index.shape, width].

    `offsets`, `first` and `last` broadcast against `index`: the beginning of each table in the view, and its row
    numbers. IndexError if an index is not one of its table's rows.
    """
    return embedding(table, _within(index, offsets, first, last))


def look_up_packed_bytes(
    table: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """Look up rows of several packed tables of 8 bits; see `look_up`."""
    return look_up_bytes(table, _within(index, offsets, first, last))


def look_up_packed_nibbles(
    table: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """Look up rows of several packed tables of 4 bits; see `look_up`."""
    return look_up_nibbles(table, _within(index, offsets, first, last))


def _group_calls() -> LookUps:
    """Return the call for a group of lookups, by their target."""
    return {
        aten.embedding.default: look_up,
        look_up_bytes: look_up_packed_bytes,
        look_up_nibbles: look_up_packed_nibbles,
    }


def _within(index: torch.Tensor, offsets: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    if not equal(clamp(index, first, last), index):
        raise IndexError(_beyond(index, last))
    return add(index, offsets)


def _beyond(index: torch.Tensor, last: torch.Tensor) -> str:
    wide = last.expand_as(index)
    wrong = (index < 0) | (index > wide)
    return f"index {int(index[wrong][0])} is out of range for a table of {int(wide[wrong][0]) + 1} rows"


class Gatherer:
    """Fuses the lookups of one graph, for any weights it is bound to. Used from one thread."""

    def __init__(self, graph: fx.Graph, slots: Sequence[int]) -> None:
        mutable = any(is_mutable(node) for node in graph.nodes)
        self._graph = graph
        self._slots = slots
        self._lookups: tuple[Lookup, ...] = () if mutable else lookups_of(graph, slots)
        self._known: tuple[tuple[Group, ...], fx.Graph] | None = None

    def agreeing(
        self, plain: DirectGraph, arguments: Sequence[Any], run: Run, example: Sequence[torch.Tensor]
    ) -> DirectGraph | None:
        """Return `plain` with fused lookups, if any can be fused and the answers are bit-identical to `run`'s.

        Otherwise None. Tried with `example`, and with twice its rows, at drawn ids of all rows of the tables. To be
        called without gradients.
        """
        groups = group_lookups(self._lookups, arguments)
        graph = self._rewritten(groups)
        if graph is None:
            return None
        more = [operand for group in groups for operand in operands(group, arguments)]
        gathered = plain.rewritten(graph, (*arguments, *more))
        function = gathered.whole()
        for given in (example, *self._draw_arguments(example, arguments)):
            try:
                expected = run(given)
            except (IndexError, RuntimeError):
                continue
            if not _gives(function, given, expected):
                return None
        return gathered

    def _rewritten(self, groups: tuple[Group, ...]) -> fx.Graph | None:
        """Rewrite the graph, cached for later snapshots with the same memory layout. None if no call would change."""
        if self._known is None or self._known[0] != groups:
            self._known = groups, gathered_graph(self._graph, groups, _group_calls())
        graph = self._known[1]
        return graph if {node.name for node in graph.nodes} - {node.name for node in self._graph.nodes} else None

    def _draw_arguments(
        self, example: Sequence[torch.Tensor], arguments: Sequence[Any]
    ) -> Iterator[list[torch.Tensor]]:
        random = torch.Generator().manual_seed(0)
        rows = self._rows(arguments)
        for times in (1, 2):
            given = [torch.cat([tensor] * times) if tensor.dim() else tensor for tensor in example]
            for (source, column), limit in rows.items():
                tensor = given[self._inputs[source]]
                ids = tensor if column is None else tensor.select(1, column)
                ids.copy_(torch.randint(limit, ids.shape, generator=random))
            yield given

    def _rows(self, arguments: Sequence[Any]) -> dict[tuple[fx.Node, int | None], int]:
        """Map inputs, and columns of inputs, that are indices to the number of rows that all their tables have."""
        found: dict[tuple[fx.Node, int | None], int] = {}
        for lookup in self._lookups:
            place, rows = column_of(lookup.index), max(1, len(arguments[lookup.table]))
            if place[0] in self._inputs:
                found[place] = min(rows, found.get(place, rows))
        return found

    @property
    def _inputs(self) -> Mapping[fx.Node, int]:
        places = [node for node in self._graph.nodes if node.op == "placeholder"]
        return {places[slot]: number for number, slot in enumerate(self._slots)}


def _gives(function: Callable[..., Any], given: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    try:
        return same_bits(expected, function(*given))
    except (IndexError, RuntimeError):
        return False


def group_lookups(lookups: Sequence[Lookup], arguments: Sequence[Any]) -> tuple[Group, ...]:
    """Group the lookups that one call can do, by the tables' current layout in memory, in the order of `lookups`."""
    found: dict[tuple[Any, ...], list[Lookup]] = {}
    for lookup in lookups:
        table = arguments[lookup.table]
        if table.dim() == 2 and table.is_contiguous() and table.nbytes:
            row = table.shape[1] * table.itemsize
            storage = table.untyped_storage().data_ptr()
            found.setdefault((*lookup.kind, table.dtype, row, storage, (table.data_ptr() - storage) % row), []).append(
                lookup
            )
    return tuple(tuple(group) for group in found.values() if _is_worth_it(group))


def _is_worth_it(group: Sequence[Lookup]) -> bool:
    """Whether fusing saves calls: at least three lookups of columns of one tensor, or six of separate ones."""
    of_one = len({column_of(lookup.index)[0] for lookup in group}) == 1 and column_of(group[0].index)[1] is not None
    apart = len(group) * (2 if of_one else 1)
    return apart > _LOOK_UP_CALLS + (not group[0].at) + (not group[0].at or not of_one)


def operands(group: Group, arguments: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Return a group's arguments besides the indices.

    The view over its tables, offsets, first and last rows, columns.
    """
    tables = [arguments[lookup.table].detach() for lookup in group]
    width = tables[0].shape[1]
    lowest = min(tables, key=torch.Tensor.storage_offset)
    offsets = [(table.storage_offset() - lowest.storage_offset()) // width for table in tables]
    rows = max(offset + len(table) for offset, table in zip(offsets, tables, strict=True))
    view = lowest.as_strided((rows, width), (width, 1))
    example = group[0].index.meta["val"]
    largest = torch.iinfo(example.dtype).max
    last = [min(len(table) - 1, largest) for table in tables]
    shape = (-1, *([1] * (example.dim() - group[0].at)))
    columns = [column_of(lookup.index)[1] or 0 for lookup in group]
    return (
        view,
        torch.tensor(offsets).reshape(shape),
        torch.zeros(len(group), dtype=example.dtype).reshape(shape),
        torch.tensor(last, dtype=example.dtype).reshape(shape),
        torch.tensor(columns),
    )
