"""Shortages of models that cannot move: who waits for whom, on which row of supply, and the units that would help."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.transition.instance import SLACK, Floats
from planner.transition.model_state import SupplyKey
from planner.transition.trajectory import Goal, Trajectory


@dataclass(frozen=True)
class Wait:
    """A model lacks units of a row for its smallest step; `holders` would free some of them by their moves."""

    model: str
    row: SupplyKey
    units: float
    holders: tuple[str, ...]


@dataclass(frozen=True)
class Shortage:
    """(M, R) units that each pending model lacks for its smallest step, and that it frees by its whole move."""

    models: tuple[str, ...]
    lack: Floats
    frees: Floats
    rows: Sequence[SupplyKey]

    def waits(self) -> Iterator[Wait]:
        """Yield every wait, by model and row."""
        for m, model in enumerate(self.models):
            for r in map(int, np.flatnonzero(self.lack[m] > SLACK)):
                holders = np.flatnonzero(self.frees[:, r] > SLACK)
                names = tuple(self.models[k] for k in holders if k != m)
                yield Wait(model, self.rows[r], float(self.lack[m, r]), names)


def compute_shortage(trajectory: Trajectory, goal: Goal, limits: Floats | None = None) -> Shortage:
    """Compute the shortage of the models that have not arrived, at their current state."""
    paths, instance = trajectory.paths_to(goal), trajectory.instance
    start = np.zeros(len(paths.models))
    counts = paths.counts(start)
    now = paths.used_units(counts)
    growth = paths.used_units(np.maximum(counts, paths.counts(paths.next_points(start, 0.0)))) - now
    free = (instance.limits if limits is None else limits) - trajectory.used_units()
    return Shortage(paths.models, np.maximum(growth - free, 0.0), now - paths.used_units(paths.new), instance.rows)


def find_short_rows(trajectory: Trajectory, goal: Goal) -> set[SupplyKey]:
    """Return rows of which some pending model lacks units."""
    return {wait.row for wait in compute_shortage(trajectory, goal).waits()}
