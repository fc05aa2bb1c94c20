"""Surges with which blocked models arrive: units beyond the supply, as few as were found. Refusals name them."""

from dataclasses import dataclass

import numpy as np

from planner.transition.effort import Effort
from planner.transition.instance import SLACK
from planner.transition.searches.shortage import compute_shortage
from planner.transition.searches.trim import trim_states
from planner.transition.trajectory import Goal, Trajectory


@dataclass(frozen=True)
class SurgeSearch:
    """Advances to the goal with additional units.

    The model that lacks least receives the units that its smallest step lacks, and all advance, until all have arrived.
    If more than `max_alone` are blocked, each row receives the largest shortage of any of them, doubled every time.
    """

    max_lifts: int
    max_alone: int
    effort: float
    """Of one lift, in replica sets evaluated."""

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory:
        """Return a trajectory to the goal that may use more than the supply."""
        limits = trajectory.instance.limits.copy()
        for lift in range(self.max_lifts):
            trajectory = trajectory.with_effort(Effort(self.effort))
            short = compute_shortage(trajectory, goal, limits)
            if not short.models:
                return trajectory
            lack = short.lack.sum(axis=1)
            lacking = np.flatnonzero(lack > SLACK)
            if not len(lacking):
                break
            alone = len(short.models) <= self.max_alone
            limits += short.lack[lacking[np.argmin(lack[lacking])]] if alone else short.lack.max(axis=0) * 2.0**lift
            trajectory = trajectory.advance(goal, limits=limits, attempts=1)
        trajectory = trajectory.with_effort(Effort())
        lack_of_all = compute_shortage(trajectory, goal, limits).lack.sum(axis=0)
        return trajectory.advance(goal, limits=limits + lack_of_all + trajectory.instance.total_units(goal))


@dataclass(frozen=True)
class TightSurgeSearch:
    """Advances to the goal through tight ends in all rows, each way with a surge."""

    surge: SurgeSearch

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory:
        """Return a trajectory to the goal that may use more than the supply."""
        rows, pending = trajectory.instance.rows, trajectory.pending_models(goal)
        now, tight = (trim_states(trajectory.instance, ends, pending, rows) for ends in (trajectory.states, goal))
        trimmed = self.surge.improve(trajectory.advance(now), {**trajectory.states, **tight})
        return self.surge.improve(trimmed, goal)
