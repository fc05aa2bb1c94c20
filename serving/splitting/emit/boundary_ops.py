"""Operations at a segment's boundary: they unpack values from received tensors, and pack values for sending."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from serving.splitting.emit.packing import Parcel
from serving.splitting.emit.tensor_layout import LayoutStep, Wire, strides_of
from serving.splitting.ir.nodes import stack, tensor_meta
from serving.splitting.ir.symbolic_shapes import dimension

_CONTIGUOUS: Final = 1
"""Number of the memory format in torch's schema."""


@dataclass(frozen=True, slots=True)
class Made:
    """A node, the name of its result, and the result's description."""

    node: Mapping[str, Any]
    name: str
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arrival:
    """The receiver's nodes for one value.

    `name`: the value in the sender's memory layout. `slice`: a view of the received tensor, for operations that accept
    any strides.
    """

    made: tuple[Made, ...]
    name: str
    slice: str


def arrival(parcel: Parcel, value: str, name: str, wire: Wire, *, exact: bool) -> Arrival:
    """Unpack a value, named `name` in transit, from a parcel.

    `exact`: the last bits of some operation here may differ if its input is not aligned as torch would align it, or is
    not dense.
    """
    steps = [*_out_of(parcel, value, wire, exact=exact or bool(wire.receive)), *wire.receive]
    made: list[Made] = []
    at = parcel.name
    for number, step in enumerate(steps):
        result = f"{name}_back_{number}"
        made.append(Made(step.node(at, result), result, step.meta))
        at = result
    first = parcel.is_packed and not wire.receive
    return Arrival(tuple(made), at, made[0].name if first else at)


def _out_of(parcel: Parcel, value: str, wire: Wire, *, exact: bool) -> Iterator[LayoutStep]:
    if not parcel.is_packed:
        return
    sizes = [dimension(item) for item in wire.meta["sizes"]]
    strides = [
        step for place, step in enumerate(strides_of([dimension(i) for i in parcel.meta["sizes"]])) if place != 1
    ]
    place = {"dim": {"as_int": 1}, "index": {"as_int": parcel.values.index(value)}}
    yield LayoutStep("select.int", place, tensor_meta(wire.meta, sizes, strides))
    if exact:
        yield LayoutStep("clone.default", {}, wire.meta, {"memory_format": {"as_memory_format": _CONTIGUOUS}})


def departure(parcel: Parcel, names: Mapping[str, str], at: Mapping[str, str], wires: Mapping[str, Wire]) -> list[Made]:
    """Pack values, named `names` in transit and `at` here, into a parcel. The last result is sent."""
    made: list[Made] = []
    sent: list[str] = []
    for value in parcel.values:
        here = at.get(value, value)
        for number, step in enumerate(wires[value].send):
            result = f"{names[value]}_sent_{number}"
            made.append(Made(step.node(here, result), result, step.meta))
            here = result
        sent.append(here)
    if parcel.is_packed:
        result = f"{parcel.name}_sent"
        made.append(Made(stack(sent, result), result, parcel.meta))
    return made
