"""Partial moves of a model that cannot move as a whole: a region of users, or a generation that leaves, at a time."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from planner.transition.model_state import ModelState, RouteKey
from planner.transition.searches.shortage import compute_shortage
from planner.transition.searches.trim import NO_DIPS, trim_state
from planner.transition.trajectory import Trajectory

MAX_MOVES = 20
MAX_MODELS = 20


def piecewise(trajectory: Trajectory, to: Mapping[str, ModelState]) -> Trajectory:
    """Advance to `to`, stuck models one piece at a time; as far as possible."""
    for _ in range(MAX_MOVES):
        further = next(_further(trajectory, to), None)
        if further is None:
            return trajectory
        trajectory = further.advance(to, attempts=2)
    return trajectory


def _further(trajectory: Trajectory, to: Mapping[str, ModelState]) -> Iterator[Trajectory]:
    """Yield courses in which one piece of one stuck model has moved."""
    waiting = sorted({wait.model for wait in compute_shortage(trajectory, to).waits()})
    for model in (waiting or trajectory.pending_models(to))[:MAX_MODELS]:
        now, end = trajectory.state_of(model), to.get(model, ModelState())
        if not trajectory.instance.is_divisible(model, now, end):
            continue
        for shares in (*_by_origin(now, end), *_by_generation(now, end)):
            counts = Counter(now.counts) + Counter(end.counts)
            enough = trim_state(
                trajectory.instance, model, ModelState(counts, shares), trajectory.instance.rows, NO_DIPS
            )
            reached = trajectory.advance({**trajectory.states, model: enough}, attempts=1)
            if reached.state_of(model).shares != now.shares:
                yield reached


def _by_origin(now: ModelState, end: ModelState) -> Iterator[Mapping[RouteKey, float]]:
    """Yield shares with one region of users at its target, the rest unchanged."""
    for origin in sorted({flow[0] for flow in now.shares.keys() | end.shares.keys()}):
        shares = {flow: share for flow, share in now.shares.items() if flow[0] != origin}
        shares |= {flow: share for flow, share in end.shares.items() if flow[0] == origin}
        if shares not in (now.shares, end.shares):
            yield shares


def _by_generation(now: ModelState, end: ModelState) -> Iterator[Mapping[RouteKey, float]]:
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
