"""Detours: a model that blocks itself or others temporarily moves to units that are free elsewhere.

To another hardware kind in the same region, or with its traffic to another region that its latency rule admits. It then
moves to its target like all others.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.transition.instance import SLACK, Ground
from planner.transition.model_state import Copy, Flow, Row, Standing
from planner.transition.paths import EPSILON
from planner.transition.searches.shortage import shortage
from planner.transition.trajectory import Course

PARTS = (1.0, 0.5, 0.25)
"""Fractions of a model's replicas that may move aside."""
MOST_TRIED = 24
MOST_DETOURS = 6


@dataclass(frozen=True)
class _Aside:
    """Room in one place: units that are free by row, less those that were taken."""

    ground: Ground
    model: str
    free: dict[Row, float]

    def house_load(self, part: str, region: str, qps: float, but: Row) -> dict[tuple[str, str], int] | None:
        """Return (region, hardware) -> replicas for this load, on the kind that fits with the fewest units; None if none fits."""
        fitting = []
        for (of, kind), option in sorted(self.ground.options[self.model].items()):
            count = math.ceil(qps / option.qps - EPSILON)
            row = region, kind
            if of == part and row != but and count * option.units <= self.free.get(row, 0.0) + SLACK:
                fitting.append((count * option.units, row, count))
        if not fitting:
            return None
        units, row, count = min(fitting)
        self.free[row] -= units
        return {row: count} if count else {}


def add_detours(course: Course, to: Mapping[str, Standing]) -> Course:
    """Advance to `to` with detours, one after another, as long as each lets some model move; as far as possible."""
    for _ in range(MOST_DETOURS):
        found = _one(course, to)
        if found is None:
            return course
        course = found
        if not course.pending(to):
            return course
    return course


def _one(course: Course, to: Mapping[str, Standing]) -> Course | None:
    """Return the course after the first detour with which all arrive, or else after the one that leaves the fewest models."""
    best: tuple[int, Course] | None = None
    for tried, (model, aside) in enumerate(_asides(course, to)):
        if tried == MOST_TRIED:
            break
        reached = course.go({**to, model: aside}, attempts=1).go(to, attempts=2)
        left = len(reached.pending(to))
        if not left:
            return reached
        if left < len(course.pending(to)) and (best is None or left < best[0]):
            best = left, reached
    return None if best is None else best[1]


def _asides(course: Course, to: Mapping[str, Standing]) -> Iterator[tuple[str, Standing]]:
    """Yield alternative placements of each model that others wait for, the cheapest first."""
    free = dict(zip(course.ground.rows, map(float, course.free()), strict=True))
    waits = list(shortage(course, to).waits())
    wanted = sorted({(wait.row, model) for wait in waits for model in (wait.model, *wait.holders)})
    found: list[tuple[float, str, Standing]] = []
    for part in PARTS:
        for row, model in wanted:
            if not course.ground.divisible(model, course.at(model)):
                continue
            for aside in (
                *_other_hardware(course, model, row, part, free),
                *_other_regions(course, model, row, part, free),
            ):
                grown = course.ground.used(model, aside.counts) - course.ground.used(model, course.at(model).counts)
                found.append((float(grown.clip(min=0.0).sum()) - part * 1e-3, model, aside))
    for _, model, aside in sorted(found, key=lambda item: item[:2]):
        yield model, aside


def _other_hardware(course: Course, model: str, row: Row, part: float, free: Mapping[Row, float]) -> Iterator[Standing]:
    """Yield the state with the replicas of a row on other kinds in the same region; the traffic stays."""
    standing, aside = course.at(model), _Aside(course.ground, model, dict(free))
    counts = dict(standing.counts)
    for copy, count in standing.counts.items():
        if copy[1:3] == row:
            gone = math.ceil(count * part)
            qps = gone * course.ground.options[model][copy[0], row[1]].qps
            housed = aside.house_load(copy[0], row[0], qps, row)
            if housed is None:
                return
            counts[copy] -= gone
            _add(counts, copy, housed)
    yield _standing(counts, standing.shares)


def _other_regions(course: Course, model: str, row: Row, part: float, free: Mapping[Row, float]) -> Iterator[Standing]:
    """Yield states with a region's traffic and replicas in another region that is near enough to its users."""
    ground, standing = course.ground, course.at(model)
    for region in ground.regions:
        if region == row[0]:
            continue
        moved = {
            f: share for f, share in standing.shares.items() if f[1] == row[0] and ground.near(model, f[0], region)
        }
        found = _move_traffic(ground, model, standing, (moved, row[0], region, part), free) if moved else None
        if found is not None:
            yield found


def _move_traffic(
    ground: Ground,
    model: str,
    standing: Standing,
    move: tuple[Mapping[Flow, float], str, str, float],
    free: Mapping[Row, float],
) -> Standing | None:
    moved, region, other, part = move
    shares, counts = dict(standing.shares), dict(standing.counts)
    aside = _Aside(ground, model, dict(free))
    demand, calls = ground.demand[model], ground.policy_of(model).calls
    for generation in sorted({flow[2] for flow in moved}):
        flows = {flow: share * part for flow, share in moved.items() if flow[2] == generation}
        qps = sum(share * demand.get(flow[0], 0.0) for flow, share in flows.items())
        served = (f for f in standing.shares if f[1] == region and f[2] == generation)
        total = sum(standing.shares[f] * demand.get(f[0], 0.0) for f in served)
        for name in calls.get(generation, ground.parts[model]):
            housed = aside.house_load(name, other, qps, ("", ""))
            if housed is None:
                return None
            _add(counts, (name, other, "", generation), housed)
        for copy, count in standing.counts.items():
            if copy[1] == region and copy[3] == generation and total > 0:
                counts[copy] = math.ceil(count * (1.0 - qps / total) - EPSILON)
        for (origin, _, _), share in flows.items():
            left, beside = (origin, region, generation), (origin, other, generation)
            shares[left] = round(shares[left] - share, 12)
            shares[beside] = round(shares.get(beside, 0.0) + share, 12)
    return _standing(counts, shares)


def _add(counts: dict[Copy, int], like: Copy, housed: Mapping[Row, int]) -> None:
    for (region, hardware), count in housed.items():
        copy = like[0], region, hardware, like[3]
        counts[copy] = counts.get(copy, 0) + count


def _standing(counts: Mapping[Copy, int], shares: Mapping[Flow, float]) -> Standing:
    return Standing({c: n for c, n in counts.items() if n}, {f: share for f, share in shares.items() if share > 0})
