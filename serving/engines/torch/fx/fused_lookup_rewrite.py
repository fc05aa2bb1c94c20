"""Rewrites a graph with one call per group of lookups, and joins of a tensor's rows as joins of its slices.

Used by serving.engines.torch.fx.fused_lookup.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

import torch
from torch import fx

from serving.engines.torch.fx.cat_rewrite import join_pieces
from serving.engines.torch.fx.lookup_groups import Lookup
from serving.engines.torch.fx.nodes import SIZES, aten, call, column_of, is_join, sizes

Group: TypeAlias = tuple[Lookup, ...]
LookUps: TypeAlias = Mapping[Any, Callable[..., torch.Tensor]]
"""Target of a lookup -> the call for a group of such."""

OPERANDS: Final = ("table", "offsets", "first", "last", "columns")
"""Arguments of the graph for each group, after all others."""
INDEX: Final = "joined_index"
"""Marks a node that joins indices from possibly several sources."""
_WITHOUT_USE: Final = frozenset({aten.select.int, aten.slice.Tensor, aten.unbind.int, operator.getitem, torch.select})
"""Operators that may be unused in a rewritten graph."""


def gathered_graph(graph: fx.Graph, groups: Sequence[Group], look_ups: LookUps) -> fx.Graph:
    """Rewrite the graph with a call `(table, index, offsets, first, last)` per group: that of its lookups' target.

    Its arguments come last. The remaining nodes keep their names.
    """
    writing = _Writing(graph, groups, look_ups)
    made = writing.graph()
    for join in list(made.nodes):
        if is_join(join):
            join_pieces(made, join, writing.fresh)
    for node in reversed(list(made.nodes)):
        if node.target in _WITHOUT_USE and not node.users:
            made.erase_node(node)
    return made


class _Writing:
    """A graph under construction.

    A group's call comes as soon as one of its results is needed, its indices before it.
    """

    def __init__(self, graph: fx.Graph, groups: Sequence[Group], look_ups: LookUps) -> None:
        self.fresh: set[fx.Node] = set()
        """Results of look-ups, whose memory is not shared."""
        self._nodes = list(graph.nodes)
        self._look_ups = look_ups
        self._groups = {lookup.node: number for number, group in enumerate(groups) for lookup in group}
        self._members = groups
        self._new = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._operands: list[dict[str, fx.Node]] = []

    def graph(self) -> fx.Graph:
        """Build the graph, before joins are rewritten."""
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
        look_up = self._look_ups[group[0].node.target]
        rows = call(self._new, look_up, given["table"], index, given["offsets"], given["first"], given["last"])
        if group[0].at:
            batch, *rest = sizes(group[0].node)
            rows.meta[SIZES] = (batch, len(group), *rest)
            self.fresh.add(rows)
            results = [call(self._new, torch.select, rows, 1, place) for place in range(len(group))]
        else:
            apart = call(self._new, torch.unbind, rows, 0)
            results = [call(self._new, operator.getitem, apart, place) for place in range(len(group))]
        for lookup, result in zip(group, results, strict=True):
            result.meta = dict(lookup.node.meta)
            self._made[lookup.node] = result

    def _index(self, group: Group, columns: fx.Node) -> fx.Node:
        """Return the indices of a group in one tensor, along the dimension of its tables."""
        found = [column_of(lookup.index) for lookup in group]
        source, first = found[0]
        if first is None or any(other is not source or column is None for other, column in found):
            joined = call(self._new, torch.stack, [self._made[lookup.index] for lookup in group], group[0].at)
            joined.meta[INDEX] = True
            return joined
        index = self._made[source]
        if [column for _, column in found] != list(range(first, first + len(group))):
            index = call(self._new, torch.index_select, index, 1, columns)
        elif sizes(source)[1] != len(group):
            index = call(self._new, torch.narrow, index, 1, first, len(group))
        return index if group[0].at else call(self._new, torch.transpose, index, 0, 1)


def waits_for_part(nodes: Sequence[fx.Node], late: AbstractSet[fx.Node]) -> bool:
    """Whether a group of lookups would wait for late indices although some of its indices are early."""
    joined = [node for node in nodes if node.meta.get(INDEX)]
    return any(0 < sum(n in late for n in node.all_input_nodes) < len(node.all_input_nodes) for node in joined)
