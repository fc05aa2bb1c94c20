"""Shortages of models that cannot move: who waits for whom, on which row of supply, and the units that would help."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.transition.instance import SLACK, Floats
from planner.transition.model_state import ModelState, SupplyKey
from planner.transition.trajectory import Trajectory

NAMED = 5
"""Models that a sentence names at most."""
MAX_LIFTS = 100
MAX_ALONE = 8
EFFORT = 50_000.0
"""For one lift, in copies evaluated."""


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


def compute_shortage(trajectory: Trajectory, to: Mapping[str, ModelState], limits: Floats | None = None) -> Shortage:
    """Compute the shortage of the models that have not arrived, at their current state."""
    paths, instance = trajectory.paths_to(to), trajectory.instance
    start = np.zeros(len(paths.models))
    counts = paths.counts(start)
    now = paths.used_units(counts)
    growth = paths.used_units(np.maximum(counts, paths.counts(paths.next_points(start, 0.0)))) - now
    free = (instance.limits if limits is None else limits) - trajectory.used_units()
    return Shortage(paths.models, np.maximum(growth - free, 0.0), now - paths.used_units(paths.new), instance.rows)


def find_short_rows(trajectory: Trajectory, to: Mapping[str, ModelState]) -> set[SupplyKey]:
    """Return rows of which some pending model lacks units."""
    return {wait.row for wait in compute_shortage(trajectory, to).waits()}


def with_surge(trajectory: Trajectory, to: Mapping[str, ModelState]) -> Trajectory:
    """Advance to the end with additional units, as few as were found.

    The model that lacks least receives the units that its smallest step lacks, and all advance, until all have arrived.
    If many are stuck, each row receives the largest shortage of any of them, doubled every time.
    """
    limits = trajectory.instance.limits.copy()
    for lift in range(MAX_LIFTS):
        trajectory.instance.effort = EFFORT
        found = compute_shortage(trajectory, to, limits)
        if not found.models:
            return trajectory
        lack = found.lack.sum(axis=1)
        some = np.flatnonzero(lack > SLACK)
        if not len(some):
            break
        few_stuck = len(found.models) <= MAX_ALONE
        limits += found.lack[some[np.argmin(lack[some])]] if few_stuck else found.lack.max(axis=0) * 2.0**lift
        trajectory = trajectory.advance(to, limits=limits, attempts=1)
    trajectory.instance.effort = math.inf
    everything = (
        limits + compute_shortage(trajectory, to, limits).lack.sum(axis=0) + trajectory.instance.total_units(to)
    )
    return trajectory.advance(to, limits=everything)


def describe_waits(waits: Sequence[Wait]) -> str:
    """Return `x waits for y (1 units more of b/h), y waits for x (1 units more of a/h)`; a circle first, if there is one."""
    shown = find_circle(waits) or waits
    more = len(shown) - NAMED
    return ", ".join(_describe_wait(wait) for wait in shown[:NAMED]) + (f" and {more} more waits" if more > 0 else "")


def find_circle(waits: Sequence[Wait]) -> list[Wait]:
    """Return waits in a circle, each holder waiting in turn back to the first; empty if none was found."""
    of: dict[str, list[Wait]] = {}
    for wait in waits:
        of.setdefault(wait.model, []).append(wait)
    dead: set[str] = set()
    for model in of:
        path = _search_circle(model, of, dead)
        if path:
            return path
    return []


def _search_circle(start: str, of: Mapping[str, list[Wait]], dead: set[str]) -> list[Wait]:
    """Search depth first, without recursion: return the waits from a model back to itself."""
    path: list[tuple[Wait, str]] = []
    at, rest = start, {start: _choices(start, of)}
    while True:
        step = next(rest[at], None)
        if step is None:
            dead.add(at)
            if not path:
                return []
            path.pop()
            at = path[-1][1] if path else start
            continue
        wait, holder = step
        names = [start, *(name for _, name in path)]
        if holder in names:
            return [taken for taken, _ in [*path, step][names.index(holder) :]]
        if holder in of and holder not in dead:
            path.append((wait, holder))
            at, rest[holder] = holder, _choices(holder, of)


def _choices(model: str, of: Mapping[str, list[Wait]]) -> Iterator[tuple[Wait, str]]:
    return ((wait, holder) for wait in of[model] for holder in wait.holders)


def _describe_wait(wait: Wait) -> str:
    whom = f"waits for {join_names(wait.holders)}" if wait.holders else "waits for units that no model frees"
    return f"{wait.model} {whom} ({wait.units:.9g} units more of {wait.row[0]}/{wait.row[1]})"


def join_names(names: Sequence[str]) -> str:
    """Join the first names, and the number of the rest."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
