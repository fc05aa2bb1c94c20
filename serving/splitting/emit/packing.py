"""Tensors in transit between segments: one per value, or one for several values of the same form.

Each tensor in transit costs an entry in a frame, a check and a conversion at either end, whatever its size. So values
of one segment that the same segments receive, with the same datatype and row shape, are stacked behind the batch: [B,
n, ...].
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeAlias

from ipnext.model.registry.registry import Datatype
from serving.protocol.tensors import DTYPES
from serving.splitting.emit.tensor_layout import Wire, plain_meta
from serving.splitting.ir.program import Operation, Program
from serving.splitting.ir.symbolic_shapes import Dimension, dimension
from serving.splitting.ir.tensor_specs import DATATYPES
from serving.splitting.ir.views import operator_name

MOST_ROW_BYTES: Final = 512
"""Largest row bytes of a packed value: beyond, at 64 rows, copying costs more than packing saves."""

JOINS: Final = frozenset({"cat", "concat", "concatenate", "stack"})
"""They only copy, so the bits of their result do not depend on the memory layout of their inputs."""

_Form: TypeAlias = tuple[Datatype, tuple[Dimension, ...]]


@dataclass(frozen=True, slots=True)
class Parcel:
    """One tensor in transit: a value, or several along dimension 1 in this order."""

    name: str
    values: tuple[str, ...]
    meta: Mapping[str, Any]

    @property
    def is_packed(self) -> bool:
        """Whether it has several values."""
        return len(self.values) > 1


class ValuePacker:
    """Packs the values of a program. `operations`: those of each segment. `names`: of each value in transit."""

    def __init__(
        self,
        program: Program,
        operations: Mapping[str, Collection[int]],
        wires: Mapping[str, Wire],
        names: Mapping[str, str],
    ) -> None:
        self._program = program
        self._operations = operations
        self._wires = wires
        self._names = names
        self._taken = {*program.producer, *program.weights, *program.inputs, *program.answers, *names.values()}

    def parcels(self, giver: str, takers: Mapping[str, tuple[str, ...]]) -> Iterator[Parcel]:
        """Yield the tensors that the segment `giver` sends.

        `takers`: each value, and its receivers, in the graph's order.
        """
        groups: dict[object, list[str]] = {}
        for value, taking in takers.items():
            form = self._form(value)
            groups.setdefault(value if form is None else (form, taking), []).append(value)
        for values in groups.values():
            if len(values) == 1:
                yield Parcel(self._names[values[0]], (values[0],), self._wires[values[0]].meta)
            else:
                yield self._pack(giver, self._as_used(values, takers[values[0]][0]))

    def _form(self, value: str) -> _Form | None:
        """Return the form that packed values must share.

        None if the value is sent alone, as an answer of the model is.
        """
        meta = self._wires[value].meta
        sizes = tuple(dimension(item) for item in meta["sizes"])
        by_rows = bool(sizes) and sizes[0].text is not None and sizes[0].text == self._program.batch
        if value in self._program.answers.values() or not by_rows or any(size.text is not None for size in sizes[1:]):
            return None
        datatype = DATATYPES.get(meta["dtype"])
        if datatype is None or prod(size.hint for size in sizes[1:]) * DTYPES[datatype].itemsize > MOST_ROW_BYTES:
            return None
        return datatype, sizes[1:]

    def _pack(self, giver: str, values: Sequence[str]) -> Parcel:
        like = self._wires[values[0]].meta
        batch, *rest = (dimension(item) for item in like["sizes"])
        return Parcel(self._name(giver), tuple(values), plain_meta(like, [batch, Dimension(len(values)), *rest]))

    def _name(self, giver: str) -> str:
        wished = name = f"packed_{giver.replace('-', '_')}"
        number = 1
        while name in self._taken:
            name = f"{wished}_{number}"
            number += 1
        self._taken.add(name)
        return name

    def _as_used(self, values: Sequence[str], taker: str) -> list[str]:
        """Sort by the order in which the first receiver joins them.

        Neighbours there are then neighbours in transit.
        """
        wanted = set(values)
        used: dict[str, tuple[int, int]] = {}
        joined: dict[str, tuple[int, int]] = {}
        for index in sorted(self._operations[taker]):
            operation = self._program.operations[index]
            for place, name in enumerate(operation.inputs):
                if name in wanted:
                    used.setdefault(name, (index, place))
                    if operator_name(operation) in JOINS:
                        joined.setdefault(name, (index, place))
        last = (len(self._program.operations), 0)
        return sorted(values, key=lambda value: joined.get(value) or used.get(value) or last)


def takes_any_strides(operation: Operation, beside: Sequence[Operation], *, given: Collection[str]) -> bool:
    """Whether an operation's result does not depend on its inputs' layout.

    It joins them, or adds a dimension for joins. `beside`: the operations of its segment. `given`: values that the
    segment outputs, whose layout must be as unsplit.
    """
    if operator_name(operation) in JOINS:
        return True
    if operator_name(operation) != "unsqueeze" or not set(operation.outputs).isdisjoint(given):
        return False
    users = (other for other in beside if not set(other.inputs).isdisjoint(operation.outputs))
    return all(operator_name(user) in JOINS for user in users)
