"""Shape checks for operators whose CPU kernels trust the shapes of their arguments.

With other shapes these kernels read or write outside their tensors. A program has only calls of listed operators, but
it chooses the tensors for them itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx


def guard_calls(module: fx.GraphModule) -> None:
    """Replace calls of such operators in a graph by the checked functions of this module."""
    calls = [node for node in module.graph.nodes if node.op == "call_function" and node.target in GUARDED]
    for node in calls:
        node.target = GUARDED[node.target]
    if calls:
        module.recompile()


def checked_lstm(  # noqa: PLR0913, PLR0917  # torch's parameters
    input: torch.Tensor,  # noqa: A002  # torch's name
    hx: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    has_biases: bool,  # torch's order
    num_layers: int,
    dropout: float,
    train: bool,  # torch's order
    bidirectional: bool,  # torch's order
    batch_first: bool,  # torch's order
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Call aten.lstm.input. RuntimeError if the shape or type of a state or weight does not match the input."""
    if input.dim() != 3 or len(hx) != 2 or not 1 <= num_layers <= len(params):
        msg = (
            f"lstm: takes batches of rows, two states and weights of each layer, got {list(input.shape)}, "
            f"{len(hx)} and {num_layers}"
        )
        raise RuntimeError(msg)
    directions = 2 if bidirectional else 1
    outer = (num_layers * directions, input.size(0 if batch_first else 1))
    gives, hidden = hx[0].size(-1), hx[1].size(-1)
    shapes: list[tuple[int, ...]] = [(*outer, gives), (*outer, hidden)]
    for layer in range(num_layers):
        takes = input.size(2) if layer == 0 else gives * directions
        shapes += directions * list(_lstm_weights(takes, gives, hidden, has_biases=bool(has_biases)))
    _check_shapes("lstm", input.dtype, (*hx, *params), shapes)
    call: Callable[..., Any] = torch.ops.aten.lstm.input
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = call(
        input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
    )
    return found


def checked_weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Call aten._weight_norm. RuntimeError if `g` is not one number per slice of `v` along `dim`, or for all of it."""
    if not v.numel() or not -1 <= dim < v.dim():
        msg = f"_weight_norm: takes numbers and one of their dimensions or -1, got {list(v.shape)} and {dim}"
        raise RuntimeError(msg)
    if dim >= 0:
        _check_shapes("_weight_norm", v.dtype, (g,), [tuple(n if at == dim else 1 for at, n in enumerate(v.shape))])
    found: torch.Tensor = torch.ops.aten._weight_norm.default(v, g, dim)  # noqa: SLF001  # torch's name
    return found


def checked_byte_unpack(weight: torch.Tensor) -> torch.Tensor:
    """Call quantized.embedding_bag_byte_unpack: packed rows [..., n + 8] to figures [..., n].

    RuntimeError if they are no rows of bytes with room for a scale and an offset.
    """
    _check_packed(weight, _BYTE_QPARAMS, any_rank=True)
    found: torch.Tensor = torch.ops.quantized.embedding_bag_byte_unpack.default(weight.contiguous())
    return found


def checked_4bit_unpack(weight: torch.Tensor) -> torch.Tensor:
    """Call quantized.embedding_bag_4bit_unpack: packed rows [rows, n / 2 + 4] to figures [rows, n]. See the former."""
    _check_packed(weight, _NIBBLE_QPARAMS, any_rank=False)
    found: torch.Tensor = torch.ops.quantized.embedding_bag_4bit_unpack.default(weight.contiguous())
    return found


_BYTE_QPARAMS: Final = 8
_NIBBLE_QPARAMS: Final = 4
"""Bytes of scale and offset at the end of each packed row."""


def _check_packed(rows: torch.Tensor, qparams_bytes: int, *, any_rank: bool) -> None:
    """Check packed rows, whose kernels trust their form. RuntimeError."""
    dimensions = rows.dim() >= 2 if any_rank else rows.dim() == 2  # a table, or rows of one
    if rows.dtype != torch.uint8 or not dimensions or rows.size(-1) <= qparams_bytes:
        msg = (
            f"unpack: takes rows of more than {qparams_bytes} bytes, uint8, of {'two or more' if any_rank else 'two'} "
            f"dimensions, got {list(rows.shape)} of {rows.dtype}"
        )
        raise RuntimeError(msg)


def _lstm_weights(takes: int, gives: int, hidden: int, *, has_biases: bool) -> Iterator[tuple[int, ...]]:
    """Yield the weights' shapes of one layer in one direction, in torch's order."""
    yield from ((4 * hidden, takes), (4 * hidden, gives))
    if has_biases:
        yield from ((4 * hidden,), (4 * hidden,))
    if gives != hidden:
        yield (gives, hidden)


def _check_shapes(
    name: str, dtype: torch.dtype, tensors: Sequence[torch.Tensor], shapes: Sequence[tuple[int, ...]]
) -> None:
    found = [tuple(tensor.shape) for tensor in tensors]
    if found != list(shapes) or any(tensor.dtype != dtype for tensor in tensors):
        msg = f"{name}: tensors of shapes {found} do not go with its input; needed: {list(shapes)}, all of {dtype}"
        raise RuntimeError(msg)


GUARDED: Final[Mapping[Any, Callable[..., Any]]] = {
    torch.ops.aten.lstm.input: checked_lstm,
    torch.ops.aten._weight_norm.default: checked_weight_norm,  # noqa: SLF001  # torch's name
    torch.ops.quantized.embedding_bag_byte_unpack.default: checked_byte_unpack,
    torch.ops.quantized.embedding_bag_4bit_unpack.default: checked_4bit_unpack,
}
