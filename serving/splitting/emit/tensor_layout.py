"""Layout of a tensor in transit between segments: batch first and dense, restored to its former layout on arrival.

A receiver gets elements in row-major order, whatever their order in the sender's memory, but the layout decides which
kernel torch uses and so the last bits. So the sender sends the memory's own order, batch first, and the receiver
permutes the dimensions back.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipnext.errors import InvalidInput
from serving.splitting.ir.nodes import aten, tensor_meta
from serving.splitting.ir.program import Program, TensorLayout
from serving.splitting.ir.symbolic_shapes import Dimension

_SYMBOL = re.compile(r"Symbol\('[^']*'[^()]*\)")


@dataclass(frozen=True, slots=True)
class LayoutStep:
    """One operation that changes a tensor's layout, with the description of its result."""

    operator: str
    arguments: Mapping[str, Any]
    meta: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword-only arguments."""

    def node(self, source: str, result: str) -> dict[str, Any]:
        """Return the step as a node of a graph."""
        return aten(self.operator, source, result, self.arguments, self.options)


@dataclass(frozen=True, slots=True)
class Wire:
    """The steps before a value is sent and after it arrives, and its description in transit."""

    send: tuple[LayoutStep, ...]
    receive: tuple[LayoutStep, ...]
    meta: Mapping[str, Any]


def wire_of(program: Program, value: str) -> Wire:
    """Return the layout of a value in transit.

    InvalidInput if its size is neither fixed nor determined by the batch.
    """
    layout = program.layout(value)
    meta = program.graph["tensor_values"][value]
    times = [size.times(program.batch) for size in layout.sizes]
    if not any(times) and None not in times:
        return _as_it_is(layout, meta)
    if times[0] != 1:
        _check_turnable(program, value, times)
    elif not all(_of_batch(program, size) for size in layout.sizes):
        raise _unsendable(program, value)
    return (
        _turn_layout(program, value, layout, times) if times[0] != 1 or _inner_fixed(times) else _as_it_is(layout, meta)
    )


def plain_meta(like: Mapping[str, Any], sizes: Sequence[Dimension]) -> dict[str, Any]:
    """Return the description of a row-major tensor with other sizes."""
    return tensor_meta(like, sizes, strides_of(sizes))


def strides_of(sizes: Sequence[Dimension]) -> list[int]:
    """Return the strides of a row-major tensor."""
    return _strides(sizes, range(len(sizes)))


def _inner_fixed(times: Sequence[int | None]) -> bool:
    return all(factor == 0 for factor in times[1:])


def _of_batch(program: Program, size: Dimension) -> bool:
    return size.text is None or set(_SYMBOL.findall(size.text)) == {program.batch}


def _check_turnable(program: Program, value: str, times: Sequence[int | None]) -> None:
    if sum(factor != 0 for factor in times) != 1 or None in times:
        raise _unsendable(program, value)


def _as_it_is(layout: TensorLayout, meta: Mapping[str, Any]) -> Wire:
    plain = layout.order == tuple(range(len(layout.sizes)))
    return Wire(() if plain else (LayoutStep("contiguous.default", {}, meta),), (), meta)


def _turn_layout(program: Program, value: str, layout: TensorLayout, times: Sequence[int | None]) -> Wire:
    """Move the batch dimension to the front, split from its multiple if it is one; the others in memory order."""
    like = program.graph["tensor_values"][value]
    place = next(d for d, factor in enumerate(times) if factor)
    factor = times[place] or 1
    sizes, order = list(layout.sizes), list(layout.order or range(len(layout.sizes)))
    send: list[LayoutStep] = []
    receive: list[LayoutStep] = []
    if factor > 1:
        batch = Dimension(layout.sizes[place].hint // factor, program.batch)
        sizes[place : place + 1] = [batch, Dimension(factor)]
        order = [new for d in order for new in _split_dimension(d, place)]
        send.append(LayoutStep("unflatten.int", _int_and_ints(place, "sizes", [-1, factor]), _meta(like, sizes, order)))
        ends = {"start_dim": {"as_int": place}, "end_dim": {"as_int": place + 1}}
        receive.append(LayoutStep("flatten.using_ints", ends, like))
    front = [place, *(d for d in order if d != place)]
    turned, steps = _front_and_back(like, sizes, order, front)
    send += turned if layout.order is not None else [*turned, _contiguous(like, sizes, front)]
    return Wire(tuple(send), (*steps, *receive), _meta(like, [sizes[d] for d in front], range(len(front))))


def _front_and_back(
    like: Mapping[str, Any], sizes: Sequence[Dimension], order: Sequence[int], front: Sequence[int]
) -> tuple[list[LayoutStep], list[LayoutStep]]:
    plain = list(range(len(sizes)))
    send: list[LayoutStep] = []
    receive: list[LayoutStep] = []
    if front != plain:
        send.append(_permute(like, sizes, front, order))
    if front != order:
        send.append(_contiguous(like, sizes, front))
        lying = [sizes[d] for d in order]
        receive.append(_permute(like, [sizes[d] for d in front], [front.index(d) for d in order], plain))
        receive.append(LayoutStep("contiguous.default", {}, _meta(like, lying, plain)))
    if list(order) != plain:
        receive.append(_permute(like, [sizes[d] for d in order], [list(order).index(d) for d in plain], plain))
    return send, receive


def _split_dimension(dimension: int, place: int) -> list[int]:
    if dimension == place:
        return [place, place + 1]
    return [dimension + (dimension > place)]


def _permute(
    like: Mapping[str, Any], sizes: Sequence[Dimension], to: Sequence[int], order: Sequence[int]
) -> LayoutStep:
    strides = _strides(sizes, order)
    meta = tensor_meta(like, [sizes[d] for d in to], [strides[d] for d in to])
    return LayoutStep("permute.default", {"dims": {"as_ints": list(to)}}, meta)


def _contiguous(like: Mapping[str, Any], sizes: Sequence[Dimension], front: Sequence[int]) -> LayoutStep:
    return LayoutStep("contiguous.default", {}, _meta(like, [sizes[d] for d in front], range(len(front))))


def _meta(like: Mapping[str, Any], sizes: Sequence[Dimension], order: Sequence[int] | range) -> dict[str, Any]:
    return tensor_meta(like, sizes, _strides(sizes, order))


def _strides(sizes: Sequence[Dimension], order: Sequence[int] | range) -> list[int]:
    strides = [1] * len(sizes)
    step = 1
    for d in reversed(order):
        strides[d] = step
        step *= max(sizes[d].hint, 1)
    return strides


def _int_and_ints(place: int, name: str, numbers: Sequence[int]) -> dict[str, Any]:
    return {"dim": {"as_int": place}, name: {"as_ints": list(numbers)}}


def _unsendable(program: Program, value: str) -> InvalidInput:
    operation = program.producer[value]
    where = f"module {operation.path!r}" if operation.path else "the model's own forward"
    msg = (
        f"parts: the cut after {operation.target.removeprefix('torch.ops.')} in {where} would send a tensor of a size "
        "that the batch does not tell; keep it and what uses it in one part"
    )
    return InvalidInput(msg, field="parts", value=operation.path)
