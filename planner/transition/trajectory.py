"""A fleet in transition: schedules of waves, one after another, and the state that they lead to."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ipnext.model.planning.transition import GenerationReplicas, RouteChange, SurgeItem, Wave
from planner.transition.effort import Effort
from planner.transition.instance import SLACK, Floats, TransitionInstance
from planner.transition.model_state import DipKey, ModelState, list_route_changes, replica_row
from planner.transition.paths import Ints, LinearPaths, PathCache
from planner.transition.wave_scheduler import MAX_ATTEMPTS, Schedule, schedule_waves

Goal = Mapping[str, ModelState]
"""Model -> the state that it has to reach."""
MAX_RESTARTS = 6
"""Times that blocked models begin new paths at once, at most."""


@dataclass(frozen=True)
class Trajectory:
    """Schedules of waves from the origin on, and the state of every model after them. An immutable value.

    What continues it shares its effort and its cache of paths.
    """

    instance: TransitionInstance
    cache: PathCache
    effort: Effort
    origin: Mapping[str, ModelState]
    states: Mapping[str, ModelState]
    units: Mapping[str, Floats]
    """Model -> (R,) units that it uses."""
    schedules: tuple[Schedule, ...] = ()
    dips: Mapping[DipKey, float] = field(default_factory=dict)
    """Fractions of the traffic that may be missing at any moment; none unless a search for dips found this."""

    @classmethod
    def begin(cls, instance: TransitionInstance, origin: Mapping[str, ModelState]) -> "Trajectory":
        """Return a trajectory without a schedule, with effort without a limit."""
        units = {m: instance.used_units(m, s.counts) for m, s in origin.items()}
        return cls(instance, PathCache(instance), Effort(), origin, origin, units)

    def with_effort(self, effort: Effort) -> "Trajectory":
        """Return the same trajectory with this effort for all that continues it."""
        return replace(self, effort=effort)

    def with_dips(self, dips: Mapping[DipKey, float]) -> "Trajectory":
        """Return the same trajectory with these dips stated."""
        return replace(self, dips=dips)

    def state_of(self, model: str) -> ModelState:
        """Return the state of a model."""
        return self.states.get(model, ModelState())

    def pending_models(self, goal: Goal) -> list[str]:
        """Return models that have not reached `goal`, sorted."""
        return [m for m in sorted(self.instance.policies) if self.state_of(m) != goal.get(m, ModelState())]

    def paths_to(self, goal: Goal) -> LinearPaths:
        """Return the paths of all models that have not reached `goal`."""
        return self.cache.find_paths(self.pending_models(goal), self.states, goal)

    def used_units(self, but: Collection[str] = ()) -> Floats:
        """Return (R,) units that all models use, but for some."""
        excluded = set(but)
        rows = [units for m, units in self.units.items() if m not in excluded]
        total: Floats = np.sum(rows, axis=0) if rows else np.zeros(len(self.instance.rows))
        return total

    def free_units(self) -> Floats:
        """Return (R,) units that no model uses."""
        return self.instance.limits - self.used_units()

    def advance(self, goal: Goal, *, limits: Floats | None = None, attempts: int = MAX_ATTEMPTS) -> "Trajectory":
        """Advance all models in `goal` as far as the supply (or `limits`) allows. Models not in `goal` do not move.

        A blocked model restarts from its current state as long as that makes progress: its smallest step may differ
        there.
        """
        trajectory, whole = self, {m: goal.get(m, self.state_of(m)) for m in self.instance.policies}
        for _ in range(MAX_RESTARTS):
            if not trajectory.pending_models(whole):
                break
            paths = trajectory.paths_to(whole)
            room = (self.instance.limits if limits is None else limits) - trajectory.used_units(but=paths.models)
            further = trajectory.with_schedule(schedule_waves(paths, room, self.effort, attempts=attempts))
            if further is trajectory:
                break
            trajectory = further
        return trajectory

    def with_schedule(self, schedule: Schedule) -> "Trajectory":
        """Return the trajectory after one more schedule."""
        if len(schedule.positions) < 2:
            return self
        paths, counts = schedule.paths, schedule.paths.counts(schedule.end)
        reached = {
            model: end if x >= 1.0 else paths.state_at(m, float(x), counts)
            for m, (model, x, (_, end)) in enumerate(zip(paths.models, schedule.end, paths.ends, strict=True))
            if x > 0.0
        }
        units = {model: self.instance.used_units(model, state.counts) for model, state in reached.items()}
        schedules = (*self.schedules, schedule)
        return replace(self, states={**self.states, **reached}, units={**self.units, **units}, schedules=schedules)

    def peak_units(self) -> Floats:
        """Return (R,) the most units at any moment since the origin."""
        peak = Trajectory.begin(self.instance, self.origin).used_units()
        for units in self.units_by_wave():
            peak = np.maximum(peak, units)
        return peak

    def units_by_wave(self) -> Iterator[Floats]:
        """Yield (R,) units in each wave from its scale-up to its release."""
        at = Trajectory.begin(self.instance, self.origin)
        for schedule in self.schedules:
            paths, others = schedule.paths, at.used_units(but=schedule.paths.models)
            for before, after in pairwise(schedule.positions):
                up = np.maximum(paths.counts(before), paths.counts(after))
                yield others + paths.used_units(up).sum(axis=0)
            at = at.with_schedule(schedule)

    def waves(self) -> Iterator[Wave]:
        """Yield the waves of all schedules. In a `final` one all models that move arrive."""
        last = {model: number for number, schedule in enumerate(self.schedules) for model in schedule.paths.models}
        for number, schedule in enumerate(self.schedules):
            ends = np.array([last[model] == number for model in schedule.paths.models])
            for before, after in pairwise(schedule.positions):
                yield _wave(schedule.paths, before, after, ends)


def list_surge(instance: TransitionInstance, units: Floats) -> tuple[SurgeItem, ...]:
    """Return units above zero by row, in the order of the names."""
    over = {row: float(amount) for row, amount in zip(instance.rows, units, strict=True) if amount > SLACK}
    return tuple(SurgeItem(region=r, hardware=h, units=round(over[r, h], 9)) for r, h in sorted(over))


def _wave(paths: LinearPaths, before: Floats, after: Floats, ends: Ints) -> Wave:
    old, new = paths.counts(before), paths.counts(after)
    up = np.maximum(old, new)
    moved = np.flatnonzero(after > before)
    canary = bool((paths.begins & (before <= 0.0) & (after < 1.0))[moved].any())
    arrived = bool(((after >= 1.0) & ends)[moved].all())
    return Wave.model_construct(
        scale_up=_changes(paths, old, up),
        route=_routes(paths, before, after),
        scale_down=_changes(paths, up, new),
        hold_seconds=max(paths.instance.policy_of(paths.models[m]).hold_seconds for m in moved),
        gate="canary" if canary else "final" if arrived else "step",
    )


def _changes(paths: LinearPaths, before: Ints, after: Ints) -> tuple[GenerationReplicas, ...]:
    changed = np.flatnonzero(before != after)
    found = [(paths.models[paths.replica_sets[c][0]], paths.replica_sets[c][1], int(after[c])) for c in changed]
    return tuple(replica_row(model, key, count) for model, key, count in sorted(found))


def _routes(paths: LinearPaths, before: Floats, after: Floats) -> tuple[RouteChange, ...]:
    """Return the new shares of models that move; its shares at a position are those of the wave that led there."""
    found: list[RouteChange] = []
    for m in map(int, np.flatnonzero(after > before)):
        old, new = paths.shares(m, float(before[m])), paths.shares(m, float(after[m]))
        found += list_route_changes(paths.models[m], old, new)
    return tuple(sorted(found, key=lambda change: (change.model, change.origin)))
