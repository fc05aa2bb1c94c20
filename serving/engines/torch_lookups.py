"""Embedding lookups of a graph, and which of them one call could do. Used by serving.engines.torch_gathering."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Final, TypeAlias

import torch
from torch import fx

aten: Final = torch.ops.aten

SIZES: Final = "sizes"
"""In a node's meta, where it has no `val`: its sizes."""
_INDEX_TYPES: Final = (torch.int32, torch.int64)
_JOINED: Final = (2, 3)
"""Dimensions of a join that is looked at; with four, how the pieces lie may choose another layout of the result."""
_LINE_BYTES: Final = 64
"""What begins elsewhere may get other last bits from a kernel (serving.engines.tensor_file)."""
_LARGEST_APART_BYTES: Final = 1 << 12
"""Of a result, for each row of the batch: those of a group are in memory together, where they used to follow each other."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One call of `embedding` on a bound table. Those of one `kind` may be done together if their tables lie so."""

    node: fx.Node
    table: int
    """Position of the table among the graph's arguments."""
    index: fx.Node
    at: int
    """Where the tables' dimension lies in the joined result: 1 where a stack or cat wants rows side by side, else 0."""
    kind: tuple[Any, ...]


def lookups_of(graph: fx.Graph, slots: Sequence[int]) -> tuple[Lookup, ...]:
    """The lookups, those of a stack or cat first and in its order."""
    places = [node for node in graph.nodes if node.op == "placeholder"]
    tables = {place: number for number, place in enumerate(places) if number not in slots}
    found = {node: number for node in graph.nodes if (number := _table(node, tables)) is not None}
    levels = _levels(graph, found)
    ordered = dict.fromkeys(node for join in graph.nodes if is_join(join) for node in join.args[0] if node in found)
    lookups = (_lookup(node, found[node], levels[node]) for node in {**ordered, **dict.fromkeys(found)})
    return tuple(lookup for lookup in lookups if lookup is not None)


def _table(node: fx.Node, tables: Mapping[fx.Node, int]) -> int | None:
    if node.target is not aten.embedding.default or not node.users:
        return None
    table, index = node.args[:2]
    value = index.meta.get("val") if isinstance(index, fx.Node) else None
    fits = isinstance(value, torch.Tensor) and value.dim() > 0 and value.dtype in _INDEX_TYPES
    return tables.get(table) if fits and isinstance(table, fx.Node) and "val" in node.meta else None


def _levels(graph: fx.Graph, found: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
    """How many lookups lie one behind the other before a node: two of one level never wait for each other."""
    levels: dict[fx.Node, int] = {}
    for node in graph.nodes:
        levels[node] = max((levels[n] + (n in found) for n in node.all_input_nodes), default=0)
    return levels


def _lookup(node: fx.Node, table: int, level: int) -> Lookup | None:
    index: Any = node.args[1]
    at = 1 if all(_takes_side_by_side(user) for user in node.users) else 0
    if at == 0 and not _may_stand_apart(node.meta["val"]):
        return None
    return Lookup(node, table, index, at, (at, level, index.meta["val"].dtype, sizes(index)))


def _may_stand_apart(value: torch.Tensor) -> bool:
    """Whether one result after the other begins at a whole line, and they take little memory together."""
    row = [size for size in value.shape[1:] if isinstance(size, int)]
    size = prod(row) * value.itemsize
    return len(row) == value.dim() - 1 and size % _LINE_BYTES == 0 and size <= _LARGEST_APART_BYTES


def is_join(node: fx.Node) -> bool:
    """Whether it is a stack or cat along dimension 1 whose result has at most three dimensions: rows side by side."""
    if node.target not in {aten.stack.default, aten.cat.default} or not isinstance(node.args[0], list):
        return False
    first = node.args[0][0]
    result = len(sizes(first)) + (node.target is aten.stack.default) if isinstance(first, fx.Node) else 0
    dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return result in _JOINED and dimension in {1, 1 - result}


def _takes_side_by_side(join: fx.Node) -> bool:
    """Whether at most half as many pieces would be joined if lookups of one form that follow each other were one."""
    if not is_join(join):
        return False
    items: list[fx.Node] = list(join.args[0])  # type: ignore[arg-type]  # a join's are nodes
    pieces = 1 + sum(bool(_form(left) != _form(right)) for left, right in pairwise(items))
    return 2 * pieces <= len(items)


def _form(node: fx.Node) -> Any:
    if node.target is not aten.embedding.default or not isinstance(node.args[1], fx.Node):
        return node
    return node.meta["val"].dtype, sizes(node), sizes(node.args[1])


def sizes(node: fx.Node) -> tuple[Any, ...]:
    """Of each dimension: its size, or the expression that stands for a free one. Empty where the node is no tensor."""
    value: Any = node.meta.get("val")
    known: tuple[Any, ...] = node.meta.get(SIZES, ())
    return tuple(map(_size, value.shape)) if isinstance(value, torch.Tensor) else known


def _size(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def column_of(node: fx.Node) -> tuple[fx.Node, int | None]:
    """A tensor, and the number in its dimension 1 where `node` is but this part of it; slices that leave nothing out aside."""
    node = _unsliced(node)
    arguments = node.args
    if node.target is operator.getitem and arguments[0].target is aten.unbind.int:  # type: ignore[union-attr]  # a node
        arguments = (*arguments[0].args, *((0,) if len(arguments[0].args) == 1 else ()), arguments[1])  # type: ignore[union-attr]
    elif node.target not in {aten.select.int, torch.select}:
        return node, None
    source = _unsliced(arguments[0])  # type: ignore[arg-type]  # a node
    shape = sizes(source)
    if len(shape) > 1 and arguments[1] in {1, 1 - len(shape)} and isinstance(shape[1], int):
        return source, int(arguments[2]) % shape[1]  # type: ignore[arg-type]  # a number
    return node, None


def _unsliced(node: fx.Node) -> fx.Node:
    while node.target is aten.slice.Tensor and tuple(node.args[1:]) == (0, 0, 2**63 - 1) and not node.kwargs:
        [node] = node.all_input_nodes
    return node


Piece: TypeAlias = tuple[fx.Node, int | None, int]
"""Of a join: (source, first, count) for columns of a tensor, or (item, None, 1) for what is none."""


def runs(items: Sequence[fx.Node]) -> Iterator[Piece]:
    """The items of a join as longest pieces."""
    begun: Piece | None = None
    for item in items:
        source, column = column_of(item)
        if begun is not None and begun[1] is not None and (source, column) == (begun[0], begun[1] + begun[2]):
            begun = source, begun[1], begun[2] + 1
            continue
        if begun is not None:
            yield begun
        begun = (item, None, 1) if column is None else (source, column, 1)
    if begun is not None:
        yield begun
