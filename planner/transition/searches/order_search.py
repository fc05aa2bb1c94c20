"""Order of the next steps of a few models: a search through all orders, one whole replica at a time.

For the small and tight cases in which no heuristic finds the order. A step of one whole replica takes the fewest units
possible, so if no order of such steps fits, no order of longer steps does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.transition.instance import SLACK, Floats
from planner.transition.paths import LinearPaths
from planner.transition.trajectory import Goal, Trajectory
from planner.transition.wave_scheduler import Schedule

Position = tuple[int, ...]
"""Steps that each model has taken."""


@dataclass(frozen=True)
class OrderSearch:
    """Advances in an order of steps found by search, if there are few enough to search."""

    max_models: int
    max_steps: int
    """Of all models together."""
    max_positions: int

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory | None:
        """Return a trajectory to the goal; None if no order fits, or if there is too much to search."""
        paths = trajectory.paths_to(goal)
        if len(paths.models) > self.max_models:
            return None
        steps = _UnitSteps.split(paths, self.max_steps)
        if steps is None:
            return None
        limits = trajectory.instance.limits - trajectory.used_units(but=paths.models)
        order = steps.find_order(limits, self.max_positions)
        if order is None:
            return None
        return trajectory.with_schedule(Schedule(paths, list(_join_steps(paths, steps, order, limits))))


@dataclass(frozen=True)
class _UnitSteps:
    """For each model its points, and the units (R,) at each point and on the way from it to the next one."""

    points: Sequence[Sequence[float]]
    units: Sequence[Sequence[Floats]]
    rising: Sequence[Sequence[Floats]]

    @classmethod
    def split(cls, paths: LinearPaths, most: int) -> "_UnitSteps | None":
        """Return the finest steps of all models; None if there are more than `most`."""
        x = np.zeros(len(paths.models))
        points, units, rising = ([[] for _ in paths.models] for _ in range(3))  # type: ignore[var-annotated]
        total = 0
        while True:
            after = paths.next_points(x, 0.0)
            counts, then = paths.counts(x), paths.counts(after)
            now, up = paths.used_units(counts), paths.used_units(np.maximum(counts, then))
            for m in range(len(paths.models)):
                if not points[m] or x[m] > points[m][-1]:
                    points[m].append(float(x[m]))
                    units[m].append(now[m])
                    rising[m].append(up[m])
            total += int((after > x).sum())
            if total > most:
                return None
            if (x >= 1.0).all():
                return cls(points, units, rising)
            x = after

    def find_order(self, limits: Floats, max_positions: int) -> list[int] | None:
        """Return the models in the order of their steps; depth first, those that free most first."""
        end: Position = tuple(len(points) - 1 for points in self.points)
        first: Position = (0,) * len(end)
        seen, path = {first}, list[int]()
        stack = [(first, self._choices(first, end, limits))]
        while stack and len(seen) <= max_positions:
            at, choices = stack[-1]
            if at == end:
                return path
            m = next((m for m in choices if _take_step(at, m) not in seen), None)
            if m is None:
                stack.pop()
                path = path[:-1]
                continue
            after = _take_step(at, m)
            seen.add(after)
            path.append(m)
            stack.append((after, self._choices(after, end, limits)))
        return None

    def _choices(self, at: Position, end: Position, limits: Floats) -> Iterator[int]:
        total = np.sum([self.units[m][k] for m, k in enumerate(at)], axis=0)
        fitting = []
        for m, k in enumerate(at):
            if k < end[m] and (total - self.units[m][k] + self.rising[m][k] <= limits + SLACK).all():
                fitting.append((float((self.units[m][k + 1] - self.units[m][k]).sum()), m))
        return iter([m for _, m in sorted(fitting)])


def _take_step(at: Position, m: int) -> Position:
    return (*at[:m], at[m] + 1, *at[m + 1 :])


def _join_steps(paths: LinearPaths, steps: _UnitSteps, order: Sequence[int], limits: Floats) -> Iterator[Floats]:
    """Yield positions of the waves: consecutive steps are one wave if its scale-up fits and no step is too large."""
    taken = [0] * len(paths.models)
    x = np.zeros(len(paths.models))
    after = x.copy()
    yield x
    for m in order:
        taken[m] += 1
        further = after.copy()
        further[m] = steps.points[m][taken[m]]
        if not _fits(paths, x, further, limits):
            yield after
            x, further = after, after.copy()
            further[m] = steps.points[m][taken[m]]
        after = further
    yield after


def _fits(paths: LinearPaths, x: Floats, after: Floats, limits: Floats) -> bool:
    up = np.maximum(paths.counts(x), paths.counts(after))
    used = paths.used_units(up).sum(axis=0)
    return bool((used <= limits + SLACK).all() and paths.is_paced(x, after))
