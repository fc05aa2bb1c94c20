"""Segments: the operations of one part between two waits for other parts. Their graph is acyclic.

An operation's depth is the largest number of part changes on a path to it from the request. Operations of one part and
depth make a segment; then segments of one part are merged unless a path leads from one to the other through a third. If
a part still has several segments, it has to be called several times.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from serving.splitting.assign.free_ops import place_operations
from serving.splitting.assign.op_assignment import PartAssignment
from serving.splitting.ir.program import Operation, Program


@dataclass(frozen=True, slots=True)
class OperationSegment:
    """Operations that run together. `stage` is 0 if the segment waits for no other."""

    name: str
    part: str
    stage: int
    operations: frozenset[int]


class DataFlow:
    """The operations that the answers need, the part of each, and their dependencies."""

    def __init__(self, program: Program, placement: PartAssignment, default: str) -> None:
        self._program = program
        live = tuple(self._live())
        self.part = place_operations(program, placement, live, default)
        self._behind: dict[str, frozenset[int]] = {}
        for operation in live:
            self._behind |= {name: self._find_behind(operation, name) for name in operation.outputs}

    def _live(self) -> Iterable[Operation]:
        """Return the operations that an answer needs; checks of sizes and types are dropped."""
        wanted = set(self._program.answers.values())
        live = []
        for operation in reversed(self._program.operations):
            if wanted.intersection(operation.outputs):
                wanted |= set(operation.inputs)
                live.append(operation)
        return reversed(live)

    def behind(self, value: str) -> frozenset[int]:
        """Return the placed operations that a value comes from, through floating ones."""
        return self._behind.get(value, frozenset())

    def _find_behind(self, operation: Operation, value: str) -> frozenset[int]:
        if self.is_batch_size(value):
            return frozenset()
        if operation.index in self.part:
            return frozenset([operation.index])
        return frozenset().union(*(self.behind(name) for name in operation.inputs))

    def is_batch_size(self, value: str) -> bool:
        """Whether a value is a multiple of the batch size, which every segment can read from any of its inputs."""
        if self._program.is_tensor(value):
            return False
        size = self._program.size(value)
        return size is not None and bool(size.times(self._program.batch))

    @cached_property
    def needs(self) -> Mapping[int, frozenset[int]]:
        """The placed operations that each placed operation waits for."""
        operations = self._program.operations
        return {i: frozenset().union(*(self.behind(name) for name in operations[i].inputs)) for i in self.part}


def segments_of(flow: DataFlow, parts_in_order: Sequence[str]) -> tuple[OperationSegment, ...]:
    """Return the segments, each after those it needs; those of one stage in the order of `parts_in_order`."""
    joined = _join_groups(flow, _by_depth(flow))
    owner = {i: number for number, group in enumerate(joined) for i in group}
    waits = _waits(flow, owner, len(joined))
    stages: dict[int, int] = {}
    while len(stages) < len(joined):
        ready = [n for n in range(len(joined)) if n not in stages and waits[n] <= stages.keys()]
        for number in ready:
            stages[number] = 1 + max((stages[other] for other in waits[number]), default=-1)
    parts = [flow.part[next(iter(group))] for group in joined]
    found = [_segment(group, parts, number, stages[number]) for number, group in enumerate(joined)]
    return tuple(sorted(found, key=lambda s: (s.stage, parts_in_order.index(s.part))))


def _segment(group: frozenset[int], parts: list[str], number: int, stage: int) -> OperationSegment:
    part = parts[number]
    return OperationSegment(part if parts.count(part) == 1 else f"{part}-s{stage}", part, stage, group)


def _by_depth(flow: DataFlow) -> list[frozenset[int]]:
    depth: dict[int, int] = {}
    groups: dict[tuple[str, int], set[int]] = {}
    for index, part in flow.part.items():
        depth[index] = max((depth[n] + (flow.part[n] != part) for n in flow.needs[index]), default=0)
        groups.setdefault((part, depth[index]), set()).add(index)
    return [frozenset(group) for group in groups.values()]


def _join_groups(flow: DataFlow, groups: list[frozenset[int]]) -> list[frozenset[int]]:
    found = True
    while found:
        found = False
        owner = {i: number for number, group in enumerate(groups) for i in group}
        waits = _waits(flow, owner, len(groups))
        far = _find_indirect(waits)
        for one in range(len(groups)):
            for other in range(one + 1, len(groups)):
                same = flow.part[next(iter(groups[one]))] == flow.part[next(iter(groups[other]))]
                if same and other not in far[one] and one not in far[other]:
                    rest = [group for n, group in enumerate(groups) if n not in {one, other}]
                    groups = [*rest, groups[one] | groups[other]]
                    found = True
                    break
            if found:
                break
    return groups


def _waits(flow: DataFlow, owner: Mapping[int, int], count: int) -> list[set[int]]:
    waits: list[set[int]] = [set() for _ in range(count)]
    for index, needs in flow.needs.items():
        waits[owner[index]] |= {owner[n] for n in needs} - {owner[index]}
    return waits


def _find_indirect(waits: list[set[int]]) -> list[set[int]]:
    """For each segment, return those that it waits for through a third."""
    reached: dict[int, set[int]] = {}

    def reach(number: int) -> set[int]:
        if number not in reached:
            reached[number] = set(waits[number]).union(*(reach(n) for n in waits[number]))
        return reached[number]

    return [set().union(*(reach(n) for n in direct)) for direct in waits]
