"""Rewrites joins of single rows of a tensor as joins of slices.

Used by serving.engines.torch.fx.fused_lookup_rewrite.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx

from serving.engines.torch.fx.nodes import aten, call, column_of, sizes

Piece: TypeAlias = tuple[fx.Node, int | None, int]
"""Piece of a join: (source, first, count) for columns of a tensor, or (item, None, 1) for any other item."""


def runs(items: Sequence[fx.Node]) -> Iterator[Piece]:
    """Group the items of a join into the longest pieces."""
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


def join_pieces(graph: fx.Graph, join: fx.Node, fresh: set[fx.Node]) -> None:
    """Rewrite a join of single rows as one of slices or whole tensors, if that at least halves the number of items."""
    items: Any = join.args[0]
    pieces = list(runs(items))
    with graph.inserting_before(join):
        if 2 * len(pieces) <= len(items):
            joined = _join_pieces(graph, pieces, _Widths(join), fresh)
        elif _is_reordering(items):
            joined = _reorder_columns(graph, items, join)
        else:
            return
    joined.meta = dict(join.meta)
    join.replace_all_uses_with(joined)
    graph.erase_node(join)


class ReorderedColumns:
    """The columns of a tensor in another order."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = torch.tensor(order)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a new tensor with column `order[i]` at index `i` of dimension 1."""
        return torch.index_select(tensor, 1, self._order)


def _join_pieces(graph: fx.Graph, pieces: Sequence[Piece], widths: "_Widths", fresh: set[fx.Node]) -> fx.Node:
    parts = [widths.piece(graph, *piece) for piece in pieces]
    source, _, count = pieces[0]
    if len(parts) > 1:
        return call(graph, torch.cat, parts, 1)
    if source in fresh and count == sizes(source)[1]:
        fresh.remove(source)  # no second answer may share its memory
        return parts[0]
    return call(graph, torch.clone, parts[0], memory_format=torch.contiguous_format)


def _is_reordering(items: Sequence[fx.Node]) -> bool:
    """Whether the items, all of one form, are most of a few tensors."""
    sources = dict.fromkeys(source if column is not None else item for item, (source, column) in _find_columns(items))
    columns = sum(sizes(source)[1] if source not in items else 1 for source in sources)
    return 2 * len(sources) <= len(items) and columns <= 2 * len(items) and len(set(map(sizes, items))) == 1


def _reorder_columns(graph: fx.Graph, items: Sequence[fx.Node], join: fx.Node) -> fx.Node:
    """Concatenate the whole tensors, then put their columns into the order of the items."""
    begins: dict[fx.Node, int] = {}
    parts: list[fx.Node] = []
    order, end = [], 0
    for item, (source, column) in _find_columns(items):
        whole = item if column is None else source
        if whole not in begins:
            begins[whole] = end
            parts.append(call(graph, torch.unsqueeze, item, 1) if column is None else source)
            end += 1 if column is None else sizes(source)[1]
        order.append(begins[whole] + (column or 0))
    rows = call(graph, ReorderedColumns(order), call(graph, torch.cat, parts, 1))
    return rows if join.target is aten.stack.default else call(graph, torch.flatten, rows, 1, 2)


def _find_columns(items: Sequence[fx.Node]) -> list[tuple[fx.Node, tuple[fx.Node, int | None]]]:
    return [(item, column_of(item)) for item in items]


class _Widths:
    """Forms of a join's pieces: a stack takes slices as they are, a cat takes them with two dimensions flattened."""

    def __init__(self, join: fx.Node) -> None:
        self._stacks = join.target is aten.stack.default

    def piece(self, graph: fx.Graph, source: fx.Node, first: int | None, count: int) -> fx.Node:
        """Return a piece of `runs` as an item of torch.cat along dimension 1."""
        if first is None:
            return call(graph, torch.unsqueeze, source, 1) if self._stacks else source
        shape = sizes(source)
        width = 1
        if not self._stacks:
            width = shape[2]
            source = call(graph, torch.flatten, source, 1, 2)
        if count == shape[1]:
            return source
        return call(graph, torch.narrow, source, 1, first * width, count * width)
