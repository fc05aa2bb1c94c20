"""The smallest dip with which an order exists: the parts that dip, and the fraction of their traffic that they miss.

A dip frees units for the first step, and every step frees those of the next one; so the dip is a fraction of the
traffic that stays the same on the whole way. It stays within the owner's limit.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from planner.transition.model_state import ModelState
from planner.transition.paths import EPSILON
from planner.transition.searches.trim import DipKey, Dips, lean, list_dip_levels, measure_dips
from planner.transition.trajectory import Trajectory

MAX_SPARED = 12
"""Places that are tried without their dip."""


@dataclass(frozen=True)
class Dipped:
    """A trajectory to the end, and the fraction that each place misses at most on it."""

    trajectory: Trajectory
    dips: Mapping[DipKey, float]


class _Search:
    def __init__(self, trajectory: Trajectory, start: Mapping[str, ModelState], to: Mapping[str, ModelState]) -> None:
        self.trajectory, self.start, self.to = trajectory, start, to

    def try_dips(self, dips: Dips) -> Trajectory | None:
        """Return the trajectory with these dips if it reaches the end."""
        trajectory = lean(self.trajectory, self.to, dips)
        return None if trajectory.pending_models(self.to) else trajectory


def search_dips(
    trajectory: Trajectory, start: Mapping[str, ModelState], to: Mapping[str, ModelState], most: Mapping[str, float]
) -> Dipped | None:
    """Find the smallest fraction that is enough for all, then drop dips that are not needed.

    `most` is the largest fraction by model; models that are not in it never dip. None if that is not enough.
    """
    search = _Search(trajectory, start, to)
    places = {
        (model, copy[0], copy[1])
        for model in trajectory.pending_models(to)
        for end in (trajectory.state_of(model), to.get(model, ModelState()))
        for copy in end.counts
        if most.get(model, 0.0) > 0
    }
    largest = max((most[place[0]] for place in places), default=0.0)
    ladder = [level for level in list_dip_levels(trajectory, to, places) if level <= largest + EPSILON]

    def at(level: float) -> dict[DipKey, float]:
        return {place: min(level, most[place[0]]) for place in places}

    if not ladder or search.try_dips(at(ladder[-1])) is None:
        return None
    enough = bisect_left(ladder[:-1], True, key=lambda level: search.try_dips(at(level)) is not None)
    return _drop_unneeded(search, at(ladder[enough]))


def _drop_unneeded(search: _Search, dips: dict[DipKey, float]) -> Dipped | None:
    """Drop the dips that are not needed, the largest first."""
    best = search.try_dips(dips)
    if best is None:
        return None
    worst = measure_dips(best, search.start, dips)
    dips = {place: dips[place] for place in worst}
    for place in sorted(worst, key=lambda place: (-worst[place], place))[:MAX_SPARED]:
        fewer = {other: level for other, level in dips.items() if other != place}
        found = search.try_dips(fewer)
        if found is not None:
            best, dips = found, fewer
    return Dipped(best, measure_dips(best, search.start, worst))
