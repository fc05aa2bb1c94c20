"""Partial moves of a model that cannot move as a whole: a region of users, or a generation that leaves, at a time."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from planner.transition.model_state import Flow, Standing
from planner.transition.searches.shortage import shortage
from planner.transition.trajectory import Course
from planner.transition.searches.trim import NO_DIPS, trim_standing

MOST_MOVES = 20
MOST_MODELS = 20


def piecewise(course: Course, to: Mapping[str, Standing]) -> Course:
    """Advance to `to`, stuck models one piece at a time; as far as possible."""
    for _ in range(MOST_MOVES):
        further = next(_further(course, to), None)
        if further is None:
            return course
        course = further.go(to, attempts=2)
    return course


def _further(course: Course, to: Mapping[str, Standing]) -> Iterator[Course]:
    """Yield courses in which one piece of one stuck model has moved."""
    waiting = sorted({wait.model for wait in shortage(course, to).waits()})
    for model in (waiting or course.pending(to))[:MOST_MODELS]:
        now, end = course.at(model), to.get(model, Standing())
        if not course.ground.divisible(model, now, end):
            continue
        for shares in (*_by_origin(now, end), *_by_generation(now, end)):
            counts = Counter(now.counts) + Counter(end.counts)
            enough = trim_standing(course.ground, model, Standing(counts, shares), course.ground.rows, NO_DIPS)
            reached = course.go({**course.standing, model: enough}, attempts=1)
            if reached.at(model).shares != now.shares:
                yield reached


def _by_origin(now: Standing, end: Standing) -> Iterator[Mapping[Flow, float]]:
    """Yield shares with one region of users at its target, the rest unchanged."""
    for origin in sorted({flow[0] for flow in now.shares.keys() | end.shares.keys()}):
        shares = {flow: share for flow, share in now.shares.items() if flow[0] != origin}
        shares |= {flow: share for flow, share in end.shares.items() if flow[0] == origin}
        if shares not in (now.shares, end.shares):
            yield shares


def _by_generation(now: Standing, end: Standing) -> Iterator[Mapping[Flow, float]]:
    """Yield shares with the traffic of one leaving generation at the target of its users' regions, the rest unchanged."""
    total: dict[str, float] = defaultdict(float)
    for (origin, _, _), share in end.shares.items():
        total[origin] += share
    for generation in sorted(now.generations - end.generations):
        shares = {flow: share for flow, share in now.shares.items() if flow[2] != generation}
        gone: dict[str, float] = defaultdict(float)
        for (origin, _, left), share in now.shares.items():
            gone[origin] += share if left == generation else 0.0
        for flow, share in end.shares.items():
            if gone[flow[0]] > 0:
                shares[flow] = round(shares.get(flow, 0.0) + share * gone[flow[0]] / total[flow[0]], 12)
        if shares and all(total[origin] > 0 for origin, share in gone.items() if share > 0) and shares != end.shares:
            yield shares
