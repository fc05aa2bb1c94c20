"""Embedding lookups of a graph, and the groups that one call could do.

Used by serving.engines.torch.fx.fused_lookup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Final

import torch
from torch import fx

from serving.engines.torch.fx.nodes import aten, is_join, sizes
from serving.engines.torch.fx.packed_lookup import look_up_bytes, look_up_nibbles

LOOKUPS: Final = frozenset({aten.embedding.default, look_up_bytes, look_up_nibbles})
"""Calls that look rows up; their first arguments are a table and the index."""
_INDEX_TYPES: Final = (torch.int32, torch.int64)
_LINE_BYTES: Final = 64
"""Alignment of tensors; with another one a kernel may give other last bits (serving.weights.tensor_file)."""
_LARGEST_APART_BYTES: Final = 1 << 12
"""Largest result per row of the batch: the results of a group are in memory together instead of one after the other."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One lookup in a bound table.

    Lookups of one `kind` may be fused if the layout of their tables allows it.
    """

    node: fx.Node
    table: int
    """Position of the table among the graph's arguments."""
    index: fx.Node
    at: int
    """The tables' dimension in the fused result: 1 if a stack or cat needs rows side by side, else 0."""
    kind: tuple[Any, ...]


def lookups_of(graph: fx.Graph, slots: Sequence[int]) -> tuple[Lookup, ...]:
    """Return the lookups, those of a stack or cat first and in its order."""
    places = [node for node in graph.nodes if node.op == "placeholder"]
    tables = {place: number for number, place in enumerate(places) if number not in slots}
    found = {node: number for node in graph.nodes if (number := _table(node, tables)) is not None}
    levels = _levels(graph, found)
    ordered = dict.fromkeys(node for join in graph.nodes if is_join(join) for node in join.args[0] if node in found)
    lookups = (_lookup(node, found[node], levels[node]) for node in {**ordered, **dict.fromkeys(found)})
    return tuple(lookup for lookup in lookups if lookup is not None)


def _table(node: fx.Node, tables: Mapping[fx.Node, int]) -> int | None:
    if node.target not in LOOKUPS or not node.users:
        return None
    table, index = node.args[:2]
    value = index.meta.get("val") if isinstance(index, fx.Node) else None
    fits = isinstance(value, torch.Tensor) and value.dim() > 0 and value.dtype in _INDEX_TYPES
    return tables.get(table) if fits and isinstance(table, fx.Node) and "val" in node.meta else None


def _levels(graph: fx.Graph, found: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
    """Count the consecutive lookups before each node: two of the same level never wait for each other."""
    levels: dict[fx.Node, int] = {}
    for node in graph.nodes:
        levels[node] = max((levels[n] + (n in found) for n in node.all_input_nodes), default=0)
    return levels


def _lookup(node: fx.Node, table: int, level: int) -> Lookup | None:
    index: Any = node.args[1]
    at = 1 if all(_takes_side_by_side(user) for user in node.users) else 0
    if at == 0 and not _may_stand_apart(node.meta["val"]):
        return None
    return Lookup(node, table, index, at, (node.target, at, level, index.meta["val"].dtype, sizes(index)))


def _may_stand_apart(value: torch.Tensor) -> bool:
    """Whether consecutive results begin at whole lines, and take little memory together."""
    row = [size for size in value.shape[1:] if isinstance(size, int)]
    size = prod(row) * value.itemsize
    return len(row) == value.dim() - 1 and size % _LINE_BYTES == 0 and size <= _LARGEST_APART_BYTES


def _takes_side_by_side(join: fx.Node) -> bool:
    """Whether fusing consecutive lookups of one form would at least halve the pieces of a join."""
    if not is_join(join):
        return False
    items: list[fx.Node] = list(join.args[0])  # type: ignore[arg-type]  # a join's are nodes
    pieces = 1 + sum(bool(_form(left) != _form(right)) for left, right in pairwise(items))
    return 2 * pieces <= len(items)


def _form(node: fx.Node) -> Any:
    if node.target not in LOOKUPS or not isinstance(node.args[1], fx.Node):
        return node
    return node.target, node.meta["val"].dtype, sizes(node), sizes(node.args[1])
