"""Writes a graph anew with groups of lookups as one call each, and joins of a tensor's rows as joins of its slices.

Used by serving.engines.torch_gathering.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import fx

from serving.engines.torch_lookups import SIZES, Lookup, aten, column_of, is_join, runs, sizes

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
        self._made |= {lookup.node: result for lookup, result in zip(group, results, strict=True)}

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


def _join_pieces(graph: fx.Graph, join: fx.Node, fresh: set[fx.Node]) -> None:
    """Write a join of single rows as one of slices, where that leaves half as many or fewer."""
    items: Any = join.args[0]
    pieces = list(runs(items))
    if 2 * len(pieces) > len(items):
        return
    widths = _Widths(join)
    with graph.inserting_before(join):
        parts = [widths.piece(graph, *piece) for piece in pieces]
        if len(parts) > 1:
            joined = _call(graph, torch.cat, parts, 1)
        elif pieces[0][0] in fresh and pieces[0][2] == sizes(pieces[0][0])[1]:
            [joined] = parts
            fresh.remove(pieces[0][0])  # a second answer in the same memory must not come of it
        else:
            joined = _call(graph, torch.clone, parts[0], memory_format=torch.contiguous_format)
    joined.meta.setdefault(SIZES, sizes(join))
    join.replace_all_uses_with(joined)
    graph.erase_node(join)


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
