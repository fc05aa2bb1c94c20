"""Writes a graph anew with groups of lookups as one call each, and joins of a tensor's rows as joins of its slices.

Used by serving.engines.torch_gathering.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import fx

from serving.engines.torch_lookups import SIZES, Lookup, Piece, aten, column_of, is_join, runs, sizes

Group: TypeAlias = tuple[Lookup, ...]

OPERANDS: Final = ("table", "offsets", "first", "last", "columns")
"""Arguments of the graph for each group, after all others."""
INDEX: Final = "joined_index"
"""Marks a node that joins indices which may come from several places."""
_WITHOUT_USE: Final = frozenset({aten.select.int, aten.slice.Tensor, aten.unbind.int, operator.getitem, torch.select})
"""What a rewritten graph may have no use for any more."""


def gathered_graph(graph: fx.Graph, groups: Sequence[Group], look_up: Callable[..., torch.Tensor]) -> fx.Graph:
    """The graph with a call of `look_up(table, index, offsets, first, last)` for each group; its arguments come last.

    The nodes that stay keep their names.
    """
    writing = _Writing(graph, groups, look_up)
    made = writing.graph()
    for join in list(made.nodes):
        if is_join(join):
            _join_pieces(made, join, writing.fresh)
    for node in reversed(list(made.nodes)):
        if node.target in _WITHOUT_USE and not node.users:
            made.erase_node(node)
    return made


class _Writing:
    """A graph in the making. A group's call comes as soon as one of its results is needed, its indices before it."""

    def __init__(self, graph: fx.Graph, groups: Sequence[Group], look_up: Callable[..., torch.Tensor]) -> None:
        self.fresh: set[fx.Node] = set()
        """Results of look-ups: nobody else's memory."""
        self._nodes = list(graph.nodes)
        self._look_up = look_up
        self._groups = {lookup.node: number for number, group in enumerate(groups) for lookup in group}
        self._members = groups
        self._new = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._operands: list[dict[str, fx.Node]] = []

    def graph(self) -> fx.Graph:
        """The graph, before joins are looked at."""
        for node in self._nodes:
            if node.op == "placeholder":
                self._made[node] = self._new.node_copy(node)
        for number in range(len(self._members)):
            named = {name: self._new.placeholder(f"gathered_{name}_{number}") for name in OPERANDS}
            self._operands.append(named)
        for node in self._nodes:
            self._write(node)
        return self._new

    def _write(self, node: fx.Node) -> None:
        open_ = [node]
        while open_:
            top = open_[-1]
            missing = [needed for needed in self._needs(top) if needed not in self._made]
            open_ += missing
            if not missing:
                open_.pop()
                if top in self._groups:
                    self._write_group(self._groups[top])
                elif top not in self._made:
                    self._made[top] = self._new.node_copy(top, self._made.__getitem__)

    def _needs(self, node: fx.Node) -> list[fx.Node]:
        if node not in self._groups or node in self._made:
            return [] if node in self._made else node.all_input_nodes
        return [lookup.index for lookup in self._members[self._groups[node]]]

    def _write_group(self, number: int) -> None:
        group, given = self._members[number], self._operands[number]
        if group[0].node in self._made:
            return
        index = self._index(group, given["columns"])
        rows = _call(self._new, self._look_up, given["table"], index, given["offsets"], given["first"], given["last"])
        if group[0].at:
            batch, *rest = sizes(group[0].node)
            rows.meta[SIZES] = (batch, len(group), *rest)
            self.fresh.add(rows)
            results = [_call(self._new, torch.select, rows, 1, place) for place in range(len(group))]
        else:
            apart = _call(self._new, torch.unbind, rows, 0)
            results = [_call(self._new, operator.getitem, apart, place) for place in range(len(group))]
        for lookup, result in zip(group, results, strict=True):
            result.meta = dict(lookup.node.meta)
            self._made[lookup.node] = result

    def _index(self, group: Group, columns: fx.Node) -> fx.Node:
        """The indices of a group in one tensor, along the dimension of its tables."""
        found = [column_of(lookup.index) for lookup in group]
        source, first = found[0]
        if first is None or any(other is not source or column is None for other, column in found):
            joined = _call(self._new, torch.stack, [self._made[lookup.index] for lookup in group], group[0].at)
            joined.meta[INDEX] = True
            return joined
        index = self._made[source]
        if [column for _, column in found] != list(range(first, first + len(group))):
            index = _call(self._new, torch.index_select, index, 1, columns)
        elif sizes(source)[1] != len(group):
            index = _call(self._new, torch.narrow, index, 1, first, len(group))
        return index if group[0].at else _call(self._new, torch.transpose, index, 0, 1)


class Reordered:
    """Columns of a tensor in another order."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = torch.tensor(order)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """A new tensor with column `order[i]` at place `i` of dimension 1."""
        return torch.index_select(tensor, 1, self._order)


def _join_pieces(graph: fx.Graph, join: fx.Node, fresh: set[fx.Node]) -> None:
    """Write a join of single rows as one of slices or of whole tensors, where that leaves half as many or fewer."""
    items: Any = join.args[0]
    pieces = list(runs(items))
    with graph.inserting_before(join):
        if 2 * len(pieces) <= len(items):
            joined = _joined(graph, pieces, _Widths(join), fresh)
        elif _is_reordering(items):
            joined = _reordered(graph, items, join)
        else:
            return
    joined.meta = dict(join.meta)
    join.replace_all_uses_with(joined)
    graph.erase_node(join)


def _joined(graph: fx.Graph, pieces: Sequence[Piece], widths: "_Widths", fresh: set[fx.Node]) -> fx.Node:
    parts = [widths.piece(graph, *piece) for piece in pieces]
    source, _, count = pieces[0]
    if len(parts) > 1:
        return _call(graph, torch.cat, parts, 1)
    if source in fresh and count == sizes(source)[1]:
        fresh.remove(source)  # a second answer in the same memory must not come of it
        return parts[0]
    return _call(graph, torch.clone, parts[0], memory_format=torch.contiguous_format)


def _is_reordering(items: Sequence[fx.Node]) -> bool:
    """Whether the items, all of one form, are most of a few tensors."""
    sources = dict.fromkeys(source if column is not None else item for item, (source, column) in _found(items))
    columns = sum(sizes(source)[1] if source not in items else 1 for source in sources)
    return 2 * len(sources) <= len(items) and columns <= 2 * len(items) and len(set(map(sizes, items))) == 1


def _reordered(graph: fx.Graph, items: Sequence[fx.Node], join: fx.Node) -> fx.Node:
    """The tensors whole, one after the other, and then their columns in the order of the items."""
    begins: dict[fx.Node, int] = {}
    parts: list[fx.Node] = []
    order, end = [], 0
    for item, (source, column) in _found(items):
        whole = item if column is None else source
        if whole not in begins:
            begins[whole] = end
            parts.append(_call(graph, torch.unsqueeze, item, 1) if column is None else source)
            end += 1 if column is None else sizes(source)[1]
        order.append(begins[whole] + (column or 0))
    rows = _call(graph, Reordered(order), _call(graph, torch.cat, parts, 1))
    return rows if join.target is aten.stack.default else _call(graph, torch.flatten, rows, 1, 2)


def _found(items: Sequence[fx.Node]) -> list[tuple[fx.Node, tuple[fx.Node, int | None]]]:
    return [(item, column_of(item)) for item in items]


class _Widths:
    """How the pieces of a join look: a stack takes slices as they are, a cat takes them with two dimensions as one."""

    def __init__(self, join: fx.Node) -> None:
        self._stacks = join.target is aten.stack.default

    def piece(self, graph: fx.Graph, source: fx.Node, first: int | None, count: int) -> fx.Node:
        """A piece of serving.engines.torch_lookups.runs, as an item of torch.cat along dimension 1."""
        if first is None:
            return _call(graph, torch.unsqueeze, source, 1) if self._stacks else source
        shape = sizes(source)
        width = 1
        if not self._stacks:
            width = shape[2]
            source = _call(graph, torch.flatten, source, 1, 2)
        if count == shape[1]:
            return source
        return _call(graph, torch.narrow, source, 1, first * width, count * width)


def _call(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    return graph.create_node("call_function", target, args, kwargs, name="gathered")


def waits_for_part(nodes: Sequence[fx.Node], late: Mapping[fx.Node, Any] | set[fx.Node]) -> bool:
    """Whether a group of lookups would wait for late indices of which some are early."""
    joined = [node for node in nodes if node.meta.get(INDEX)]
    return any(0 < sum(n in late for n in node.all_input_nodes) < len(node.all_input_nodes) for node in joined)
