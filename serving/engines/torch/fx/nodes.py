"""Properties of graph nodes: sizes, columns of tensors, joins of rows. Used by the modules that fuse lookups."""

import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import fx

aten: Final = torch.ops.aten

SIZES: Final = "sizes"
"""Key of a node's meta for its sizes, if it has no `val`."""
_JOINED: Final = (2, 3)
"""Numbers of dimensions of supported joins; with four, the layout of the pieces may change that of the result."""


def sizes(node: fx.Node) -> tuple[Any, ...]:
    """Return each dimension's size, or the expression of a free one. Empty if the node is not a tensor."""
    value: Any = node.meta.get("val")
    known: tuple[Any, ...] = node.meta.get(SIZES, ())
    return tuple(map(_size, value.shape)) if isinstance(value, torch.Tensor) else known


def _size(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def is_join(node: fx.Node) -> bool:
    """Whether it is a stack or cat along dimension 1 with a result of at most three dimensions: rows side by side."""
    if node.target not in {aten.stack.default, aten.cat.default} or not node.args or not isinstance(node.args[0], list):
        return False
    first = node.args[0][0]
    result = len(sizes(first)) + (node.target is aten.stack.default) if isinstance(first, fx.Node) else 0
    dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return result in _JOINED and dimension in {1, 1 - result}


def column_of(node: fx.Node) -> tuple[fx.Node, int | None]:
    """Return a tensor, and the index in its dimension 1 if `node` selects that column.

    Slices that take everything are ignored.
    """
    node = _skip_slices(node)
    given = _select_arguments(node)
    if given is None:
        return node, None
    source, dimension, number = _skip_slices(given[0]), *given[1:]
    shape = sizes(source)
    if len(shape) > 1 and dimension in {1, 1 - len(shape)} and isinstance(shape[1], int) and isinstance(number, int):
        return source, number % shape[1]
    return node, None


def _select_arguments(node: fx.Node) -> tuple[Any, Any, Any] | None:
    """Return tensor, dimension and index if a node selects one element of a dimension."""
    given: Any = node.args
    if node.target in {aten.select.int, torch.select} and len(given) == 3:
        return tuple(given)
    if node.target is operator.getitem and given[0].target is aten.unbind.int:
        tensor, *dimension = given[0].args
        return tensor, *(dimension or (0,)), given[1]
    return None


def _skip_slices(node: fx.Node) -> fx.Node:
    while node.target is aten.slice.Tensor and tuple(node.args[1:]) == (0, 0, 2**63 - 1) and not node.kwargs:
        [node] = node.all_input_nodes
    return node


def call(graph: fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Create a node with a name that no operation of an exported graph has."""
    return graph.create_node("call_function", target, args, kwargs, name="gathered")
