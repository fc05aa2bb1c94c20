"""Extraction of segments from a program: the inputs and outputs of each, and its program document."""

import builtins
import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ipnext.model.registry.registry import REQUEST
from serving.splitting.assign.segments import DataFlow, OperationSegment
from serving.splitting.emit.packing import Parcel, ValuePacker
from serving.splitting.emit.tensor_layout import Wire, wire_of
from serving.splitting.ir.packed_rows import unpacks
from serving.splitting.ir.program import Operation, Program
from serving.splitting.ir.views import operator_name


@dataclass(slots=True)
class Cut:
    """A segment and all values that cross its boundary."""

    segment: OperationSegment
    operations: set[int] = field(default_factory=set)
    """Its own operations, and clones of floating ones."""
    weights: set[str] = field(default_factory=set)
    requests: set[str] = field(default_factory=set)
    """Inputs of the request that it uses."""
    edges: dict[str, str] = field(default_factory=dict)
    """Received value -> name of the segment that sends it."""
    sizes: set[str] = field(default_factory=set)
    """Multiples of the batch size that it reads from one of its inputs."""
    sends: list[str] = field(default_factory=list)
    """Values that other segments use."""
    answers: dict[str, str] = field(default_factory=dict)
    """Outputs of the whole model that it computes -> value."""


@dataclass(frozen=True, slots=True)
class CutProgram:
    """All segments of a program, and the names and layouts of the values between them."""

    program: Program
    cuts: Mapping[str, Cut]
    names: Mapping[str, str]
    """Value -> name in transit."""
    wires: Mapping[str, Wire]
    parcels: Mapping[str, Parcel]
    """Value -> the tensor that carries it."""

    def sources(self, cut: Cut) -> dict[str, str]:
        """Return input of a segment -> `request.NAME` or `SEGMENT.OUTPUT`."""
        asked = {name: f"{REQUEST}.{name}" for name in self.program.inputs if name in cut.requests}
        sent = {self.parcels[value].name: giver for value, giver in cut.edges.items()}
        return asked | {name: f"{giver}.{name}" for name, giver in sent.items()}

    def list_sent(self, cut: Cut) -> tuple[Parcel, ...]:
        """Return the tensors that a segment sends to others."""
        return tuple({parcel.name: parcel for parcel in map(self.parcels.__getitem__, cut.sends)}.values())

    def answers(self) -> dict[str, str]:
        """Return output of the model -> `SEGMENT.OUTPUT`, in the model's order."""
        givers = {name: cut.segment.name for cut in self.cuts.values() for name in cut.answers}
        return {name: f"{givers[name]}.{name}" for name in self.program.answers}


def cut_program(program: Program, flow: DataFlow, segments: Iterable[OperationSegment], default: str) -> CutProgram:
    """Assign operations, clones, weights and boundaries to each segment."""
    cuts = {segment.name: Cut(segment) for segment in segments}
    carver = _Carver(program, flow, cuts)
    for cut in cuts.values():
        for index in sorted(cut.segment.operations):
            carver.take(cut, program.operations[index])
    for name, value in program.answers.items():
        holder = carver.holder(value, default)
        holder.answers[name] = value
        carver.bring(holder, value)
    for cut in cuts.values():
        carver.ground(cut)
    for cut in cuts.values():
        for value, giver in cut.edges.items():
            if value not in cuts[giver].sends:
                cuts[giver].sends.append(value)
    wires = {value: wire_of(program, value) for cut in cuts.values() for value in cut.sends}
    names = _names(program, wires)
    return CutProgram(program, cuts, names, wires, _parcels(program, cuts, names, wires))


def _parcels(
    program: Program, cuts: Mapping[str, Cut], names: Mapping[str, str], wires: Mapping[str, Wire]
) -> dict[str, Parcel]:
    packing = ValuePacker(program, {name: cut.operations for name, cut in cuts.items()}, wires, names)
    found: dict[str, Parcel] = {}
    for giver, cut in cuts.items():
        takers = {value: tuple(name for name, taker in cuts.items() if value in taker.edges) for value in cut.sends}
        for parcel in packing.parcels(giver, takers):
            found |= dict.fromkeys(parcel.values, parcel)
    return found


class _Carver:
    def __init__(self, program: Program, flow: DataFlow, cuts: Mapping[str, Cut]) -> None:
        self._program = program
        self._flow = flow
        self._cuts = cuts
        self._place = {index: name for name, cut in cuts.items() for index in cut.segment.operations}
        self._rank = {name: rank for rank, name in enumerate(cuts)}

    def take(self, cut: Cut, operation: Operation) -> None:
        """Add an operation and all values that it needs here."""
        cut.operations.add(operation.index)
        for name in operation.inputs:
            self.bring(cut, name)

    def bring(self, cut: Cut, value: str) -> None:
        """Make a value available in a segment: computed there, cloned, or received."""
        waiting = [value]
        while waiting:
            name = waiting.pop()
            operation = self._program.producer.get(name)
            if name in self._program.weights:
                cut.weights.add(name)
            elif operation is None:
                cut.requests.add(name)
            elif self._flow.is_batch_size(name):
                cut.sizes.add(name)
            elif operation.index in self._place and self._place[operation.index] != cut.segment.name:
                cut.edges[name] = self._place[operation.index]
            elif operation.index not in cut.operations:
                cut.operations.add(operation.index)
                waiting.extend(operation.inputs)

    def holder(self, value: str, default: str) -> Cut:
        """Return the segment that outputs an answer: the last one it depends on.

        If there is none, the default part's last.
        """
        behind = {self._place[index] for index in self._flow.behind(value)}
        ranked = behind or {n for n, c in self._cuts.items() if c.segment.part == default} or set(self._cuts)
        return self._cuts[max(ranked, key=lambda name: self._rank[name])]

    def ground(self, cut: Cut) -> None:
        """Add the request's smallest input to a segment that needs the batch size and has no tensor to read it from."""
        free = [name for name in self._program.inputs if self._program.layout(name).sizes[0].text is not None]
        told = any(size.text is not None for value in cut.edges for size in self._program.layout(value).sizes)
        if cut.sizes and not told and not cut.requests.intersection(free):
            cut.requests.add(min(free, key=lambda name: len(self._program.layout(name).sizes)))


def _names(program: Program, wires: Mapping[str, Wire]) -> dict[str, str]:
    """Name each value in transit: if it is sent unchanged and is an answer, by the answer, else by its module."""
    taken = {*program.producer, *program.weights, *program.inputs}
    answers = {value: name for name, value in program.answers.items() if value in wires and not wires[value].send}
    names: dict[str, str] = {}
    for value in wires:
        wished = answers.get(value) or _module_name(program.producer[value])
        free = wished not in taken and (wished in program.answers) == (value in answers)
        name = wished if free else _number_name(wished, {*taken, *program.answers})
        taken.add(name)
        names[value] = name
    return names


def _module_name(operation: Operation) -> str:
    path = operation.path.replace(".", "_")
    if path.isidentifier() and not keyword.iskeyword(path) and not hasattr(builtins, path):
        return path
    operator = "embedding" if unpacks(operation) else operator_name(operation) or "value"
    return f"{operator}_{path or 'out'}"


def _number_name(wished: str, taken: set[str]) -> str:
    number = 1
    while f"{wished}_{number}" in taken:
        number += 1
    return f"{wished}_{number}"
