"""A fleet in transition: legs of straight lines, one after another, and their waves. An immutable value."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ipnext.model.planning.transition import GenerationReplicas, RouteChange, SurgeItem, Wave
from planner.transition.instance import SLACK, Floats, Ground
from planner.transition.model_state import Standing, replica_row, routes
from planner.transition.paths import Ints, Lines, draw_lines
from planner.transition.wave_scheduler import ATTEMPTS, March, march

MOST_LINES = 6
"""Number of new lines that a stuck model begins at once, at most."""


@dataclass(frozen=True)
class Course:
    """The current state of every model, and the legs that led to it."""

    ground: Ground
    standing: Mapping[str, Standing]
    units: Mapping[str, Floats]
    """Model -> (R,) units that it holds."""
    legs: tuple[March, ...] = ()

    @classmethod
    def begin(cls, ground: Ground, standing: Mapping[str, Standing]) -> "Course":
        """Return a course without a leg."""
        return cls(ground, standing, {m: ground.used(m, s.counts) for m, s in standing.items()})

    def at(self, model: str) -> Standing:
        """Return the state of a model."""
        return self.standing.get(model, Standing())

    def pending(self, to: Mapping[str, Standing]) -> list[str]:
        """Return models that have not reached `to`, sorted."""
        return [m for m in sorted(self.ground.policy) if self.at(m) != to.get(m, Standing())]

    def lines(self, to: Mapping[str, Standing]) -> Lines:
        """Return the lines of all models that have not reached `to`."""
        return draw_lines(self.ground, self.pending(to), self.standing, to)

    def held_units(self, but: Collection[str] = ()) -> Floats:
        """Return (R,) units that all models hold, but for some."""
        left = set(but)
        kept = [units for m, units in self.units.items() if m not in left]
        total: Floats = np.sum(kept, axis=0) if kept else np.zeros(len(self.ground.rows))
        return total

    def free(self) -> Floats:
        """Return (R,) units that no model holds."""
        return self.ground.limits - self.held_units()

    def go(self, to: Mapping[str, Standing], *, limits: Floats | None = None, attempts: int = ATTEMPTS) -> "Course":
        """Advance all models in `to` as far as the supply (or `limits`) allows. Models not in `to` do not move.

        A blocked model restarts from its current state as long as that makes progress: its smallest step may differ
        there.
        """
        course, goal = self, {m: to.get(m, self.at(m)) for m in self.ground.policy}
        for _ in range(MOST_LINES):
            if not course.pending(goal):
                break
            lines = course.lines(goal)
            room = (self.ground.limits if limits is None else limits) - course.held_units(but=lines.models)
            further = course.with_leg(march(lines, room, attempts=attempts))
            if further is course:
                break
            course = further
        return course

    def with_leg(self, leg: March) -> "Course":
        """Return the course after one more leg."""
        if len(leg.stops) < 2:
            return self
        lines, counts = leg.lines, leg.lines.counts(leg.at)
        reached = {
            model: end if x >= 1.0 else lines.standing(m, float(x), counts)
            for m, (model, x, (_, end)) in enumerate(zip(lines.models, leg.at, lines.ends, strict=True))
            if x > 0.0
        }
        units = {model: self.ground.used(model, standing.counts) for model, standing in reached.items()}
        return Course(self.ground, {**self.standing, **reached}, {**self.units, **units}, (*self.legs, leg))

    def peak(self, origin: Mapping[str, Standing]) -> Floats:
        """Return (R,) the most units at any moment since `origin`, the state before the first leg."""
        peak = Course.begin(self.ground, origin).held_units()
        for height in self.heights(origin):
            peak = np.maximum(peak, height)
        return peak

    def heights(self, origin: Mapping[str, Standing]) -> Iterator[Floats]:
        """Yield (R,) units in each wave from its scale-up to its release; `origin` is the state before the first leg."""
        at = Course.begin(self.ground, origin)
        for leg in self.legs:
            lines, others = leg.lines, at.held_units(but=leg.lines.models)
            for before, after in pairwise(leg.stops):
                up = np.maximum(lines.counts(before), lines.counts(after))
                yield others + lines.used(up).sum(axis=0)
            at = at.with_leg(leg)

    def waves(self) -> Iterator[Wave]:
        """Yield the waves of all legs. In a `final` one all models that move arrive."""
        last = {model: number for number, leg in enumerate(self.legs) for model in leg.lines.models}
        for number, leg in enumerate(self.legs):
            ends = np.array([last[model] == number for model in leg.lines.models])
            for before, after in pairwise(leg.stops):
                yield _wave(leg.lines, before, after, ends)


def surge_items(ground: Ground, units: Floats) -> tuple[SurgeItem, ...]:
    """Return units above zero by row, in the order of the names."""
    over = {row: float(amount) for row, amount in zip(ground.rows, units, strict=True) if amount > SLACK}
    return tuple(SurgeItem(region=r, hardware=h, units=round(over[r, h], 9)) for r, h in sorted(over))


def _wave(lines: Lines, before: Floats, after: Floats, ends: Ints) -> Wave:
    old, new = lines.counts(before), lines.counts(after)
    up = np.maximum(old, new)
    moved = np.flatnonzero(after > before)
    canary = bool((lines.fresh & (before <= 0.0) & (after < 1.0))[moved].any())
    arrived = bool(((after >= 1.0) & ends)[moved].all())
    return Wave.model_construct(
        scale_up=_changes(lines, old, up),
        route=_routes(lines, before, after),
        scale_down=_changes(lines, up, new),
        hold_seconds=max(lines.ground.policy_of(lines.models[m]).hold_seconds for m in moved),
        gate="canary" if canary else "final" if arrived else "step",
    )


def _changes(lines: Lines, before: Ints, after: Ints) -> tuple[GenerationReplicas, ...]:
    changed = np.flatnonzero(before != after)
    found = [(lines.models[lines.copies[c][0]], lines.copies[c][1], int(after[c])) for c in changed]
    return tuple(replica_row(model, copy, count) for model, copy, count in sorted(found))


def _routes(lines: Lines, before: Floats, after: Floats) -> tuple[RouteChange, ...]:
    """Return the new shares of models that move; a model's shares at a stop are those of the wave that led there."""
    found: list[RouteChange] = []
    for m in map(int, np.flatnonzero(after > before)):
        old, new = lines.shares(m, float(before[m])), lines.shares(m, float(after[m]))
        found += routes(lines.models[m], old, new)
    return tuple(sorted(found, key=lambda change: (change.model, change.origin)))
