"""Shortages of models that cannot move: who waits for whom, on which row of supply, and the units that would help."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.transition.instance import SLACK, Floats
from planner.transition.model_state import Row, Standing
from planner.transition.trajectory import Course

NAMED = 5
"""Models that a sentence names at most."""
MOST_LIFTS = 100
MOST_ALONE = 8
EFFORT = 50_000.0
"""For one lift, in copies evaluated."""


@dataclass(frozen=True)
class Wait:
    """A model lacks units of a row for its smallest step; `holders` would free some of them by their moves."""

    model: str
    row: Row
    units: float
    holders: tuple[str, ...]


@dataclass(frozen=True)
class Shortage:
    """(M, R) units that each pending model lacks for its smallest step, and that it frees by its whole move."""

    models: tuple[str, ...]
    lack: Floats
    frees: Floats
    rows: Sequence[Row]

    def waits(self) -> Iterator[Wait]:
        """Yield every wait, by model and row."""
        for m, model in enumerate(self.models):
            for r in map(int, np.flatnonzero(self.lack[m] > SLACK)):
                holders = np.flatnonzero(self.frees[:, r] > SLACK)
                names = tuple(self.models[k] for k in holders if k != m)
                yield Wait(model, self.rows[r], float(self.lack[m, r]), names)


def shortage(course: Course, to: Mapping[str, Standing], limits: Floats | None = None) -> Shortage:
    """Compute the shortage of the models that have not arrived, at their current state."""
    lines, ground = course.lines(to), course.ground
    start = np.zeros(len(lines.models))
    counts = lines.counts(start)
    now = lines.used(counts)
    growth = lines.used(np.maximum(counts, lines.counts(lines.ahead(start, 0.0)))) - now
    free = (ground.limits if limits is None else limits) - course.held_units()
    return Shortage(lines.models, np.maximum(growth - free, 0.0), now - lines.used(lines.new), ground.rows)


def short_rows(course: Course, to: Mapping[str, Standing]) -> set[Row]:
    """Return rows of which some pending model lacks units."""
    return {wait.row for wait in shortage(course, to).waits()}


def with_surge(course: Course, to: Mapping[str, Standing]) -> Course:
    """Advance to the end with additional units, as few as were found.

    The model that lacks least receives the units that its smallest step lacks, and all advance, until all have arrived.
    If many are stuck, each row receives the largest shortage of any of them, doubled every time.
    """
    limits = course.ground.limits.copy()
    for lift in range(MOST_LIFTS):
        course.ground.effort = EFFORT
        found = shortage(course, to, limits)
        if not found.models:
            return course
        lack = found.lack.sum(axis=1)
        some = np.flatnonzero(lack > SLACK)
        if not len(some):
            break
        few_stuck = len(found.models) <= MOST_ALONE
        limits += found.lack[some[np.argmin(lack[some])]] if few_stuck else found.lack.max(axis=0) * 2.0**lift
        course = course.go(to, limits=limits, attempts=1)
    course.ground.effort = math.inf
    everything = limits + shortage(course, to, limits).lack.sum(axis=0) + course.ground.total(to)
    return course.go(to, limits=everything)


def describe_waits(waits: Sequence[Wait]) -> str:
    """Return `x waits for y (1 units more of b/h), y waits for x (1 units more of a/h)`; a circle first, if there is one."""
    shown = circle(waits) or waits
    more = len(shown) - NAMED
    return ", ".join(_describe_wait(wait) for wait in shown[:NAMED]) + (f" and {more} more waits" if more > 0 else "")


def circle(waits: Sequence[Wait]) -> list[Wait]:
    """Return waits in a circle, each holder waiting in turn back to the first; empty if none was found."""
    of: dict[str, list[Wait]] = {}
    for wait in waits:
        of.setdefault(wait.model, []).append(wait)
    dead: set[str] = set()
    for model in of:
        path = _circle(model, of, dead)
        if path:
            return path
    return []


def _circle(start: str, of: Mapping[str, list[Wait]], dead: set[str]) -> list[Wait]:
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
    whom = f"waits for {few(wait.holders)}" if wait.holders else "waits for units that no model frees"
    return f"{wait.model} {whom} ({wait.units:.9g} units more of {wait.row[0]}/{wait.row[1]})"


def few(names: Sequence[str]) -> str:
    """Join the first names, and the number of the rest."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
