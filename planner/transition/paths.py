"""The straight paths along which models move from one state to another, all of them at once as arrays.

The rule: to advance to the fraction x of the way, scale growing counts up to the ceiling of their fraction, move the
traffic, then scale shrinking counts down to the ceiling of their remainder. Every count stays on or above the straight
line between the two states and the traffic is on it, so no generation is short if it is not short in the two states.

Axes: M models, C replica sets (part, region, hardware, generation of a model), P places (replica sets but for the
generation), R rows of supply. x is (M,), from 0 to 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from planner.transition.instance import Floats, TransitionInstance
from planner.transition.model_state import ModelState, ReplicaKey, RouteKey

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
EPSILON = 1e-9
"""Of a replica: less is rounding."""
LEAST_STEP = 1e-3
"""No step is smaller, however many replicas a part has."""
MAX_CACHED = 4
"""Paths of all models together that are cached."""
MAX_CACHED_COUNTS = 1_000_000
"""Counts that are cached, of all points of the paths together."""


class LinearPaths:
    """The paths of `models`, in their order."""

    def __init__(
        self, instance: TransitionInstance, models: Sequence[str], ends: tuple[tuple[ModelState, ModelState], ...]
    ) -> None:
        self.instance, self.models, self.ends = instance, tuple(models), ends
        self._read_replica_sets()
        self._read_pace()

    def _read_replica_sets(self) -> None:
        self.replica_sets: list[tuple[int, ReplicaKey]] = [
            (m, key) for m, (a, b) in enumerate(self.ends) for key in sorted(a.counts.keys() | b.counts.keys())
        ]
        ends = self.ends
        self.model: Ints = np.array([m for m, _ in self.replica_sets], dtype=np.int64)
        self.old: Ints = np.array([ends[m][0].counts.get(key, 0) for m, key in self.replica_sets], dtype=np.int64)
        self.new: Ints = np.array([ends[m][1].counts.get(key, 0) for m, key in self.replica_sets], dtype=np.int64)
        places = [(m, *key[:3]) for m, key in self.replica_sets]
        starts = [k for k, place in enumerate(places) if k == 0 or place != places[k - 1]]
        self.start: Ints = np.array(starts, dtype=np.int64)
        sizes = np.diff([*starts, len(places)])
        self.place: Ints = np.repeat(np.arange(len(starts)), sizes)
        self.combined: Flags = np.array(
            [not self.instance.separates_generations(self.models[places[k][0]]) for k in starts], dtype=bool
        )
        options, row = self.instance.options, self.instance.row_of
        heads = [places[k] for k in starts]
        self.units: Floats = np.array([options[self.models[m]][part, h].units for m, part, _, h in heads])
        rows = np.array([row[region, h] for _, _, region, h in heads], dtype=np.int64)
        owners = np.array([m for m, _, _, _ in heads], dtype=np.int64)
        self.cell: Ints = owners * len(self.instance.rows) + rows
        self._shared = bool(self.combined.any())
        self._change: Ints = np.abs(self.new - self.old)
        self._changes: Flags = self._change > 0
        self._divisor: Ints = np.maximum(self._change, 1)
        self._processes = tuple(np.maximum.reduceat(end, self.start) if starts else end for end in (self.old, self.new))
        self._cache: dict[bytes, Ints] = {}

    def _read_pace(self) -> None:
        """Set (M,) largest step, first step, if a generation begins next to another one, and if one step may be all.

        One step may be all if nothing is served at the start, or nothing at the end.
        """
        paces = [self._pace(m) for m in range(len(self.models))]
        self.max_step: Floats = np.array([pace[0] for pace in paces])
        self.first_step: Floats = np.array([pace[1] for pace in paces])
        self.begins: Flags = np.array([pace[2] for pace in paces], dtype=bool)
        self.may_jump: Flags = np.array([not a.shares or not b.shares for a, b in self.ends], dtype=bool)

    def _pace(self, m: int) -> tuple[float, float, bool]:
        """Return the pace of one model; the canary is for a generation that begins next to another one."""
        (before, after), policy = self.ends[m], self.instance.policy_of(self.models[m])
        moved: dict[tuple[str, bool], float] = {}
        begun: dict[str, float] = {}
        for key in sorted(before.shares.keys() | after.shares.keys()):
            change = after.shares.get(key, 0.0) - before.shares.get(key, 0.0)
            users, rises, generation = key[0], change > 0, key[2]
            moved[users, rises] = moved.get((users, rises), 0.0) + abs(change)
            if generation not in before.generations:
                begun[users] = begun.get(users, 0.0) + after.shares.get(key, 0.0)
        step = _fraction_within(policy.max_step, max(moved.values(), default=0.0))
        if not before.shares or not after.shares:
            return step, step, False
        return step, min(step, _fraction_within(policy.canary, max(begun.values(), default=0.0))), bool(begun)

    def counts(self, x: Floats) -> Ints:
        """Return (C,) replicas after the release at x; read-only."""
        key = x.tobytes()
        counts = self._cache.get(key)
        if counts is None:
            counts = self._counts(x)
            counts.flags.writeable = False
            if len(self._cache) * len(counts) > MAX_CACHED_COUNTS:
                self._cache.clear()
            self._cache[key] = counts
        return counts

    def _counts(self, x: Floats) -> Ints:
        at = x[self.model]
        counts = interpolate_counts(at, self.old, self.new)
        if self._shared:
            counts = np.where(self.combined[self.place], self._side_by_side(at), counts)
        return np.where(at >= 1.0, self.new, counts)

    def _side_by_side(self, at: Floats) -> Ints:
        """Return counts if one process holds several generations.

        The number of processes of a place is the most replicas of any generation; they must hold all its traffic, so a
        generation that leaves stays on every process until the end, and a new one grows with its share.
        """
        processes = interpolate_counts(at[self.start], *self._processes)[self.place]
        leaving = np.minimum(self.old, processes)
        counts = np.where(self.new > self.old, interpolate_counts(at, self.old, self.new), leaving)
        counts = np.where(self.new == self.old, self.old, counts)
        short = np.maximum.reduceat(counts, self.start)[self.place] < processes
        return np.where(short, np.maximum(counts, np.minimum(self.new, processes)), counts)

    def used_units(self, counts: Ints) -> Floats:
        """Return (M, R) units."""
        shape = len(self.models), len(self.instance.rows)
        if not len(counts):
            return np.zeros(shape)
        most, total = np.maximum.reduceat(counts, self.start), np.add.reduceat(counts, self.start)
        of_place = np.where(self.combined, most, total) * self.units
        units: Floats = np.bincount(self.cell, of_place, shape[0] * shape[1]).astype(np.float64)
        return units.reshape(shape)

    def shares(self, m: int, x: float) -> dict[RouteKey, float]:
        """Return the traffic of one model at x."""
        before, after = self.ends[m]
        if x >= 1.0:
            return dict(after.shares)
        keys = sorted(before.shares.keys() | after.shares.keys())
        shares = {k: round((1 - x) * before.shares.get(k, 0.0) + x * after.shares.get(k, 0.0), 12) for k in keys}
        return {key: fraction for key, fraction in shares.items() if fraction > 0}

    def next_whole(self, x: Floats) -> Floats:
        """Return (M,) the next point of each path at which a whole replica is done, at most 1."""
        least = np.ones(len(self.models))
        steps = (np.floor(x[self.model] * self._change + EPSILON) + 1) / self._divisor
        np.minimum.at(least, self.model, np.where(self._changes, steps, 1.0))
        return np.minimum(1.0, np.maximum(least, x + LEAST_STEP))

    def next_points(self, x: Floats, part: float) -> Floats:
        """Return (M,) the end of a step: this part of the largest one, but at least to a whole replica."""
        most = self._step_limit(x)
        aim = np.minimum(x + most, np.maximum(x + most * part, self.next_whole(x)))
        if part >= 1.0:
            aim = np.where(self.may_jump & (x <= 0.0), 1.0, aim)
        return np.where(aim >= 1.0 - EPSILON, 1.0, np.round(aim, 12))

    def is_paced(self, x: Floats, after: Floats) -> bool:
        """Return whether no model goes farther than one step may lead."""
        jumps = self.may_jump & (x <= 0.0) & (after >= 1.0)
        return bool((jumps | (after <= x + self._step_limit(x) + EPSILON)).all())

    def _step_limit(self, x: Floats) -> Floats:
        return np.where(x <= 0.0, self.first_step, self.max_step)

    def state_at(self, m: int, x: float, counts: Ints) -> ModelState:
        """Return one model's state at x; `counts` are all models' there."""
        mine = range(*np.searchsorted(self.model, [m, m + 1]))
        return ModelState({self.replica_sets[c][1]: int(counts[c]) for c in mine if counts[c]}, self.shares(m, x))


class PathCache:
    """The paths that were computed last for an instance: many branches of a search begin alike."""

    def __init__(self, instance: TransitionInstance) -> None:
        self.instance = instance
        self._latest: list[LinearPaths] = []

    def find_paths(
        self, models: Sequence[str], origin: Mapping[str, ModelState], to: Mapping[str, ModelState]
    ) -> LinearPaths:
        """Return the paths of `models` from `origin` to `to`."""
        ends = tuple((origin.get(m, ModelState()), to.get(m, ModelState())) for m in models)
        known = next((paths for paths in self._latest if paths.models == tuple(models) and paths.ends == ends), None)
        found = known or LinearPaths(self.instance, models, ends)
        self._latest = [found, *(paths for paths in self._latest if paths is not found)][:MAX_CACHED]
        return found


def interpolate_counts(x: Floats, old: Ints, new: Ints) -> Ints:
    """Return replicas at x: the ceiling of growing counts, and of the remainder of shrinking ones."""
    counts: Ints = (old + np.ceil(x * (new - old) - EPSILON)).astype(np.int64)
    return counts


def _fraction_within(limit: float, whole: float) -> float:
    """Return the fraction of a way of `whole` that keeps within the limit."""
    return min(1.0, limit / whole) if whole > 0 else 1.0
