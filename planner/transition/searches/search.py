"""The one interface of the searches, and the rungs of the ladder that they stand on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from planner.transition.effort import Effort
from planner.transition.trajectory import Goal, Trajectory


class Search(Protocol):
    """A way on for models that are blocked on their straight paths."""

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory | None:
        """Return a trajectory that continues this one nearer to the goal, not always to it; None if it finds none."""


@dataclass(frozen=True)
class Rung:
    """Searches that share an effort, in their order."""

    searches: Sequence[Search]
    effort: float
    """In replica sets evaluated, for all beginnings together."""

    def climb(self, begins: Sequence[Trajectory], goal: Goal) -> Trajectory | None:
        """Return the first trajectory to the goal without a dip, else the one with the smallest dip, None without any.

        Every search starts from each of `begins`: one that ends before the goal leaves nothing behind, for the moves
        of a remedy that failed would stand in the way of the next one.
        """
        effort = Effort(self.effort)
        best: Trajectory | None = None
        for begin in begins:
            for search in self.searches:
                found = search.improve(begin.with_effort(effort), goal)
                if found is None or found.pending_models(goal):
                    continue
                if not found.dips:
                    return found
                if best is None or max(found.dips.values()) < max(best.dips.values()):
                    best = found
        return best
