"""Partial moves of a model that cannot move as a whole: a region of users, or a generation that leaves, at a time."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.transition.model_state import ModelState, RouteKey
from planner.transition.searches.shortage import compute_shortage
from planner.transition.searches.trim import NO_DIPS, trim_state
from planner.transition.trajectory import Goal, Trajectory


@dataclass(frozen=True)
class SplitMoveSearch:
    """Advances one piece of one blocked model, then all models, and again."""

    max_moves: int
    max_models: int
    """Blocked models of which pieces are tried for one move."""

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory | None:
        """Return a trajectory after as many pieces as lead on; None if none does."""
        best: Trajectory | None = None
        for _ in range(self.max_moves):
            moved = next(self._move_piece(best or trajectory, goal), None)
            if moved is None:
                break
            best = moved.advance(goal, attempts=2)
        return best

    def _move_piece(self, trajectory: Trajectory, goal: Goal) -> Iterator[Trajectory]:
        """Yield trajectories in which one piece of one blocked model has moved."""
        instance = trajectory.instance
        waiting = sorted({wait.model for wait in compute_shortage(trajectory, goal).waits()})
        for model in (waiting or trajectory.pending_models(goal))[: self.max_models]:
            now, end = trajectory.state_of(model), goal.get(model, ModelState())
            if not instance.is_divisible(model, now, end):
                continue
            for shares in (*_by_origin(now, end), *_by_generation(now, end)):
                counts = Counter(now.counts) + Counter(end.counts)
                enough = trim_state(instance, model, ModelState(counts, shares), instance.rows, NO_DIPS)
                reached = trajectory.advance({**trajectory.states, model: enough}, attempts=1)
                if reached.state_of(model).shares != now.shares:
                    yield reached


def _by_origin(now: ModelState, end: ModelState) -> Iterator[Mapping[RouteKey, float]]:
    """Yield shares with one region of users at its target, the rest unchanged."""
    for origin in sorted({key[0] for key in now.shares.keys() | end.shares.keys()}):
        shares = {key: share for key, share in now.shares.items() if key[0] != origin}
        shares |= {key: share for key, share in end.shares.items() if key[0] == origin}
        if shares not in (now.shares, end.shares):
            yield shares


def _by_generation(now: ModelState, end: ModelState) -> Iterator[Mapping[RouteKey, float]]:
    """Yield shares with the traffic of one leaving generation at its users' targets, the rest unchanged."""
    total: dict[str, float] = defaultdict(float)
    for (origin, _, _), share in end.shares.items():
        total[origin] += share
    for generation in sorted(now.generations - end.generations):
        shares = {key: share for key, share in now.shares.items() if key[2] != generation}
        gone: dict[str, float] = defaultdict(float)
        for (origin, _, left), share in now.shares.items():
            gone[origin] += share if left == generation else 0.0
        for key, share in end.shares.items():
            if gone[key[0]] > 0:
                shares[key] = round(shares.get(key, 0.0) + share * gone[key[0]] / total[key[0]], 12)
        if shares and all(total[origin] > 0 for origin, share in gone.items() if share > 0) and shares != end.shares:
            yield shares
