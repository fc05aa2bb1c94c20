"""Segments: what one part computes between two waits for other parts. Together they have no circle.

An operation's depth is the most changes of part on a way to it from the request. Operations of one part and depth make a segment; then segments of
one part are joined wherever no way leads from one to the other through a third. What is left twice has to be twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from serving.splitting.assign.free_ops import settled
from serving.splitting.assign.op_assignment import Placement
from serving.splitting.ir.program import Operation, Program


@dataclass(frozen=True, slots=True)
class Segment:
    """Operations that run together. `stage` is 0 for those that wait for no other segment."""

    name: str
    part: str
    stage: int
    operations: frozenset[int]


class Flow:
    """The operations that count for the answers, where each runs, and which others each waits for."""

    def __init__(self, program: Program, placement: Placement, default: str) -> None:
        self._program = program
        live = tuple(self._live())
        self.part = settled(program, placement, live, default)
        self._behind: dict[str, frozenset[int]] = {}
        for operation in live:
            self._behind |= {name: self._look_behind(operation, name) for name in operation.outputs}

    def _live(self) -> Iterable[Operation]:
        """Without what no answer needs, checks of sizes and types among it."""
        wanted = set(self._program.answers.values())
        live = []
        for operation in reversed(self._program.operations):
            if wanted.intersection(operation.outputs):
                wanted |= set(operation.inputs)
                live.append(operation)
        return reversed(live)

    def behind(self, value: str) -> frozenset[int]:
        """Placed operations that a value comes from, through floating ones."""
        return self._behind.get(value, frozenset())

    def _look_behind(self, operation: Operation, value: str) -> frozenset[int]:
        if self.is_batch_size(value):
            return frozenset()
        if operation.index in self.part:
            return frozenset([operation.index])
        return frozenset().union(*(self.behind(name) for name in operation.inputs))

    def is_batch_size(self, value: str) -> bool:
        """Whether a value is a multiple of the batch's size, which every segment can tell from any of its inputs."""
        if self._program.is_tensor(value):
            return False
        size = self._program.size(value)
        return size is not None and bool(size.times(self._program.batch))

    @cached_property
    def needs(self) -> Mapping[int, frozenset[int]]:
        """The placed operations that each placed operation waits for."""
        operations = self._program.operations
        return {i: frozenset().union(*(self.behind(name) for name in operations[i].inputs)) for i in self.part}


def segments_of(flow: Flow, parts_in_order: Sequence[str]) -> tuple[Segment, ...]:
    """The segments, each after those it needs; those of one stage as their parts are in `parts_in_order`."""
    joined = _joined(flow, _by_depth(flow))
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


def _segment(group: frozenset[int], parts: list[str], number: int, stage: int) -> Segment:
    part = parts[number]
    return Segment(part if parts.count(part) == 1 else f"{part}-s{stage}", part, stage, group)


def _by_depth(flow: Flow) -> list[frozenset[int]]:
    depth: dict[int, int] = {}
    groups: dict[tuple[str, int], set[int]] = {}
    for index, part in flow.part.items():
        depth[index] = max((depth[n] + (flow.part[n] != part) for n in flow.needs[index]), default=0)
        groups.setdefault((part, depth[index]), set()).add(index)
    return [frozenset(group) for group in groups.values()]


def _joined(flow: Flow, groups: list[frozenset[int]]) -> list[frozenset[int]]:
    found = True
    while found:
        found = False
        owner = {i: number for number, group in enumerate(groups) for i in group}
        waits = _waits(flow, owner, len(groups))
        far = _reached_through_others(waits)
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


def _waits(flow: Flow, owner: Mapping[int, int], count: int) -> list[set[int]]:
    waits: list[set[int]] = [set() for _ in range(count)]
    for index, needs in flow.needs.items():
        waits[owner[index]] |= {owner[n] for n in needs} - {owner[index]}
    return waits


def _reached_through_others(waits: list[set[int]]) -> list[set[int]]:
    """For each segment, those it waits for by way of a third."""
    reached: dict[int, set[int]] = {}

    def reach(number: int) -> set[int]:
        if number not in reached:
            reached[number] = set(waits[number]).union(*(reach(n) for n in waits[number]))
        return reached[number]

    return [set().union(*(reach(n) for n in direct)) for direct in waits]
