"""The straight lines along which models move from one state to another, all of them at once as arrays.

The rule: to advance to the fraction x of the way, scale growing counts up to the ceiling of their fraction, move the
traffic, then scale shrinking counts down to the ceiling of their remainder. Every count stays on or above the straight
line between the two states and the traffic is on it, so no generation is short if it is not short in the two states.

Axes: M models, C copies (part, region, hardware, generation of a model), P places (copies but for the generation), F
flows, R rows of supply. x is (M,), from 0 to 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from planner.transition.instance import Floats, Ground
from planner.transition.model_state import Copy, Flow, Standing

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
EPSILON = 1e-9
"""Of a replica: less is rounding."""
LEAST_STEP = 1e-3
"""No step is smaller, however many replicas a part has."""
KEPT_LINES = 4
KEPT_COUNTS = 1_000_000
"""Counts that are cached, of all points of the lines together."""


class Lines:
    """The lines of `models`, in their order."""

    def __init__(self, ground: Ground, models: Sequence[str], ends: tuple[tuple[Standing, Standing], ...]) -> None:
        self.ground, self.models, self.ends = ground, tuple(models), ends
        self._read_copies()
        self._read_flows()
        self._read_pace()

    def _read_copies(self) -> None:
        self.copies: list[tuple[int, Copy]] = [
            (m, copy) for m, (a, b) in enumerate(self.ends) for copy in sorted(a.counts.keys() | b.counts.keys())
        ]
        ends = self.ends
        self.model: Ints = np.array([m for m, _ in self.copies], dtype=np.int64)
        self.old: Ints = np.array([ends[m][0].counts.get(copy, 0) for m, copy in self.copies], dtype=np.int64)
        self.new: Ints = np.array([ends[m][1].counts.get(copy, 0) for m, copy in self.copies], dtype=np.int64)
        places = [(m, *copy[:3]) for m, copy in self.copies]
        starts = [k for k, place in enumerate(places) if k == 0 or place != places[k - 1]]
        self.start: Ints = np.array(starts, dtype=np.int64)
        sizes = np.diff([*starts, len(places)])
        self.place: Ints = np.repeat(np.arange(len(starts)), sizes)
        self.together: Flags = np.array([not self.ground.apart(self.models[places[k][0]]) for k in starts], dtype=bool)
        options, row = self.ground.options, self.ground.row
        heads = [places[k] for k in starts]
        self.units: Floats = np.array([options[self.models[m]][part, h].units for m, part, _, h in heads])
        rows = np.array([row[region, h] for _, _, region, h in heads], dtype=np.int64)
        owners = np.array([m for m, _, _, _ in heads], dtype=np.int64)
        self.cell: Ints = owners * len(self.ground.rows) + rows
        self._shared = bool(self.together.any())
        self._change: Ints = np.abs(self.new - self.old)
        self._changes: Flags = self._change > 0
        self._most_change: Ints = np.maximum(self._change, 1)
        self._most_copies = tuple(
            np.maximum.reduceat(end, self.start) if starts else end for end in (self.old, self.new)
        )
        self._kept: dict[bytes, Ints] = {}

    def _read_flows(self) -> None:
        self.flows: list[tuple[int, Flow]] = [
            (m, flow) for m, (a, b) in enumerate(self.ends) for flow in sorted(a.shares.keys() | b.shares.keys())
        ]

    def _read_pace(self) -> None:
        """Set (M,) largest step, first step, whether a generation begins beside another one, and whether one step may be all.

        One step may be all if nothing is served yet, or if nothing is served any more.
        """
        paces = [self._pace(m) for m in range(len(self.models))]
        self.stride: Floats = np.array([pace[0] for pace in paces])
        self.first: Floats = np.array([pace[1] for pace in paces])
        self.fresh: Flags = np.array([pace[2] for pace in paces], dtype=bool)
        self.leaps: Flags = np.array([not a.shares or not b.shares for a, b in self.ends], dtype=bool)

    def _pace(self, m: int) -> tuple[float, float, bool]:
        """Return the pace of one model; the canary is for a generation that begins beside another one."""
        (before, after), policy = self.ends[m], self.ground.policy_of(self.models[m])
        moved: dict[tuple[str, bool], float] = {}
        fresh: dict[str, float] = {}
        for flow in sorted(before.shares.keys() | after.shares.keys()):
            change = after.shares.get(flow, 0.0) - before.shares.get(flow, 0.0)
            key = flow[0], change > 0
            moved[key] = moved.get(key, 0.0) + abs(change)
            if flow[2] not in before.generations:
                fresh[flow[0]] = fresh.get(flow[0], 0.0) + after.shares.get(flow, 0.0)
        stride = _least(policy.max_step, max(moved.values(), default=0.0))
        if not before.shares or not after.shares:
            return stride, stride, False
        return stride, min(stride, _least(policy.canary, max(fresh.values(), default=0.0))), bool(fresh)

    def counts(self, x: Floats) -> Ints:
        """Return (C,) replicas after the release at x; read-only."""
        key = x.tobytes()
        found = self._kept.get(key)
        if found is None:
            found = self._counts(x)
            found.flags.writeable = False
            if len(self._kept) * len(found) > KEPT_COUNTS:
                self._kept.clear()
            self._kept[key] = found
        return found

    def _counts(self, x: Floats) -> Ints:
        at = x[self.model]
        line = between(at, self.old, self.new)
        if self._shared:
            line = np.where(self.together[self.place], self._side_by_side(at), line)
        return np.where(at >= 1.0, self.new, line)

    def _side_by_side(self, at: Floats) -> Ints:
        """Return counts if one process holds several generations.

        The number of processes of a place is the most replicas of any generation; they must hold all its traffic, so a
        generation that leaves stays on every process until the end, and a new one grows with its share.
        """
        processes = between(at[self.start], *self._most_copies)[self.place]
        leaving = np.minimum(self.old, processes)
        counts = np.where(self.new > self.old, between(at, self.old, self.new), leaving)
        counts = np.where(self.new == self.old, self.old, counts)
        short = np.maximum.reduceat(counts, self.start)[self.place] < processes
        return np.where(short, np.maximum(counts, np.minimum(self.new, processes)), counts)

    def used(self, counts: Ints) -> Floats:
        """Return (M, R) units."""
        shape = len(self.models), len(self.ground.rows)
        if not len(counts):
            return np.zeros(shape)
        most, total = np.maximum.reduceat(counts, self.start), np.add.reduceat(counts, self.start)
        taken = np.where(self.together, most, total) * self.units
        units: Floats = np.bincount(self.cell, taken, shape[0] * shape[1]).astype(np.float64)
        return units.reshape(shape)

    def shares(self, m: int, x: float) -> dict[Flow, float]:
        """Return the traffic of one model at x."""
        before, after = self.ends[m]
        if x >= 1.0:
            return dict(after.shares)
        flows = sorted(before.shares.keys() | after.shares.keys())
        line = {f: round((1 - x) * before.shares.get(f, 0.0) + x * after.shares.get(f, 0.0), 12) for f in flows}
        return {flow: fraction for flow, fraction in line.items() if fraction > 0}

    def whole(self, x: Floats) -> Floats:
        """Return (M,) the next point of each line at which a whole replica is done, at most 1."""
        least = np.ones(len(self.models))
        steps = (np.floor(x[self.model] * self._change + EPSILON) + 1) / self._most_change
        np.minimum.at(least, self.model, np.where(self._changes, steps, 1.0))
        return np.minimum(1.0, np.maximum(least, x + LEAST_STEP))

    def ahead(self, x: Floats, part: float) -> Floats:
        """Return (M,) the end of a step of this part of the largest one; at least to a whole replica, at most the largest."""
        most = self._most(x)
        aim = np.minimum(x + most, np.maximum(x + most * part, self.whole(x)))
        if part >= 1.0:
            aim = np.where(self.leaps & (x <= 0.0), 1.0, aim)
        return np.where(aim >= 1.0 - EPSILON, 1.0, np.round(aim, 12))

    def is_paced(self, x: Floats, after: Floats) -> bool:
        """True if no model goes farther than one step may lead."""
        leaps = self.leaps & (x <= 0.0) & (after >= 1.0)
        return bool((leaps | (after <= x + self._most(x) + EPSILON)).all())

    def _most(self, x: Floats) -> Floats:
        return np.where(x <= 0.0, self.first, self.stride)

    def standing(self, m: int, x: float, counts: Ints) -> Standing:
        """Return one model's state at x; `counts` are all models' there."""
        mine = range(*np.searchsorted(self.model, [m, m + 1]))
        return Standing({self.copies[c][1]: int(counts[c]) for c in mine if counts[c]}, self.shares(m, x))


def draw_lines(
    ground: Ground, models: Sequence[str], origin: Mapping[str, Standing], to: Mapping[str, Standing]
) -> Lines:
    """Return the lines of `models`, cached if they were computed lately."""
    ends = tuple((origin.get(m, Standing()), to.get(m, Standing())) for m in models)
    known = next((lines for lines in ground.lines if lines.models == tuple(models) and lines.ends == ends), None)
    lines = known or Lines(ground, models, ends)
    ground.lines = [lines, *(other for other in ground.lines if other is not lines)][:KEPT_LINES]
    return lines


def between(x: Floats, old: Ints, new: Ints) -> Ints:
    """Return replicas at x: the ceiling of growing counts, and of the remainder of shrinking ones."""
    counts: Ints = (old + np.ceil(x * (new - old) - EPSILON)).astype(np.int64)
    return counts


def _least(limit: float, whole: float) -> float:
    """Return the fraction of a way of `whole` that keeps within the limit."""
    return min(1.0, limit / whole) if whole > 0 else 1.0
