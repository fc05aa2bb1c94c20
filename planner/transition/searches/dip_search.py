"""The smallest dip with which an order exists: the parts that dip, and the fraction of their traffic that they miss.

A dip frees units for the first step, and every step frees those of the next one; so the dip is a fraction of the
traffic that stays the same on the whole way. It stays within the owner's limit.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from planner.transition.model_state import DipKey, ModelState
from planner.transition.paths import EPSILON
from planner.transition.searches.trim import Dips, TightEndSearch, list_dip_levels, measure_dips
from planner.transition.trajectory import Goal, Trajectory


@dataclass(frozen=True)
class DipSearch:
    """Advances through tight ends below the traffic: by the smallest fraction that is enough for all.

    Then it drops the dips of places that are not needed, of `max_spared` at most.
    """

    allowed: Mapping[str, float]
    """Model -> the largest fraction; models that are not in it never dip."""
    max_spared: int

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory | None:
        """Return a trajectory to the goal with its dips; None if the allowed ones are not enough."""
        places = {
            (model, key[0], key[1])
            for model in trajectory.pending_models(goal)
            for end in (trajectory.state_of(model), goal.get(model, ModelState()))
            for key in end.counts
            if self.allowed.get(model, 0.0) > 0
        }
        largest = max((self.allowed[place[0]] for place in places), default=0.0)
        levels = [level for level in list_dip_levels(trajectory, goal, places) if level <= largest + EPSILON]

        def at(level: float) -> dict[DipKey, float]:
            return {place: min(level, self.allowed[place[0]]) for place in places}

        if not levels or _try_dips(trajectory, goal, at(levels[-1])) is None:
            return None
        enough = bisect_left(levels[:-1], True, key=lambda level: _try_dips(trajectory, goal, at(level)) is not None)
        return self._drop_unneeded(trajectory, goal, at(levels[enough]))

    def _drop_unneeded(self, trajectory: Trajectory, goal: Goal, dips: dict[DipKey, float]) -> Trajectory | None:
        """Drop the dips that are not needed, the largest first."""
        best = _try_dips(trajectory, goal, dips)
        if best is None:
            return None
        worst = measure_dips(best, dips)
        dips = {place: dips[place] for place in worst}
        for place in sorted(worst, key=lambda place: (-worst[place], place))[: self.max_spared]:
            fewer = {other: level for other, level in dips.items() if other != place}
            found = _try_dips(trajectory, goal, fewer)
            if found is not None:
                best, dips = found, fewer
        return best.with_dips(measure_dips(best, worst))


def _try_dips(trajectory: Trajectory, goal: Goal, dips: Dips) -> Trajectory | None:
    """Return the trajectory with these dips if it reaches the goal."""
    found = TightEndSearch(dips).improve(trajectory, goal)
    return None if found is None or found.pending_models(goal) else found
