"""Schedule of waves in which models advance along their paths in parallel, as many and as far as free units allow.

In a wave everything is scaled up before anything is released, so a wave may take only units that are free before it.
The order of the models decides whether all arrive: a model that permanently takes scarce units could lock in one that
would have freed them. Three rules prevent that:

- a *taker* (it ends with more of a scarce row than it has now) leaves as much free there as the others need for
  their smallest step; a row is scarce if not all could go to their ends at once;
- models that free most of the scarce units go first;
- models that were blocked at the end of one attempt go first in the next one, and takers leave room for them too
  (after the squeaky wheel: Joslin and Clements, Squeaky Wheel Optimization, JAIR 10, 1999).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.transition.effort import Effort
from planner.transition.instance import SLACK, Floats
from planner.transition.paths import Flags, Ints, LinearPaths

STEP_FRACTIONS = (1.0, 0.5, 0.25, 0.125, 0.0)
"""Fractions of the largest step that are tried, in this order; 0 means the next whole replica."""
MAX_ATTEMPTS = 6
MAX_WAVES = 2000
WAVE_EFFORT = 100
"""Of a wave, in addition to its replica sets."""


@dataclass(frozen=True)
class Schedule:
    """Position of the models after each wave, the start first."""

    paths: LinearPaths
    positions: Sequence[Floats]

    @property
    def end(self) -> Floats:
        """(M,) final position of the models."""
        return self.positions[-1]

    @property
    def blocked(self) -> Flags:
        """(M,) models that have not arrived."""
        return self.end < 1.0


def schedule_waves(paths: LinearPaths, limits: Floats, effort: Effort, *, attempts: int = MAX_ATTEMPTS) -> Schedule:
    """Return the first attempt in which all arrive, or else the one that leads farthest.

    `limits` is (R,) units for these models. An attempt ends early if `effort` is spent.
    """
    squeaky = np.zeros(len(paths.models), dtype=np.int64)
    best: Schedule | None = None
    for _ in range(attempts):
        found = _Scheduler(paths, limits, squeaky).schedule(effort)
        if best is None or found.end.sum() > best.end.sum():
            best = found
        if not found.blocked.any() or (squeaky > 0)[found.blocked].all():
            break
        squeaky += found.blocked
    return best or Schedule(paths, [np.zeros(len(paths.models))])


class _Scheduler:
    """One attempt: `squeaky` is (M,) the number of former ones in which a model was blocked."""

    def __init__(self, paths: LinearPaths, limits: Floats, squeaky: Ints) -> None:
        self.paths, self.limits, self.squeaky = paths, limits, squeaky
        self.final_units = paths.used_units(paths.new)

    def schedule(self, effort: Effort) -> Schedule:
        """Schedule waves until all have arrived or none can move."""
        positions = [np.zeros(len(self.paths.models))]
        while (positions[-1] < 1.0).any() and len(positions) <= MAX_WAVES and not effort.is_spent:
            effort.spend(WAVE_EFFORT + len(self.paths.replica_sets))
            after = _WavePacker(self, positions[-1]).pack()
            if (after == positions[-1]).all():
                break
            positions.append(after)
        return Schedule(self.paths, positions)


class _WavePacker:
    """Packs the steps of one wave from x on into the free units."""

    def __init__(self, scheduler: _Scheduler, x: Floats) -> None:
        self.scheduler, self.paths, self.x = scheduler, scheduler.paths, x
        self.counts = self.paths.counts(x)
        self.now = self.paths.used_units(self.counts)
        self.free: Floats = scheduler.limits - self.now.sum(axis=0) + SLACK

    def pack(self) -> Floats:
        """Return (M,) the position of the models after the wave."""
        ahead = self.paths.next_points(self.x, 1.0)
        growth = self._growth(ahead)
        if (growth.sum(axis=0) <= self.free).all():
            return ahead
        self._weigh()
        after = self._fill(self.reserve)
        return after if (after > self.x).any() else self._fill(np.zeros_like(self.reserve))

    def _growth(self, aim: Floats) -> Floats:
        """Return (M, R) units that the scale-up takes on the way to `aim`."""
        return self.paths.used_units(np.maximum(self.counts, self.paths.counts(aim))) - self.now

    def _weigh(self) -> None:
        """Set order and reserve of this wave."""
        net = self.scheduler.final_units - self.now
        whole = self.paths.used_units(np.maximum(self.counts, self.paths.new)) - self.now
        wanted = whole.sum(axis=0)
        scarce = wanted > self.free
        self.taker: Flags = np.any(net[:, scarce] > SLACK, axis=1)
        least = self._growth(self.paths.next_points(self.x, 0.0))
        waiting = self.x < 1.0
        kept = waiting & (~self.taker | (self.scheduler.squeaky > 0))
        self.reserve: Floats = np.where(scarce, least[kept].max(axis=0, initial=0.0), 0.0)
        scarcity = np.where(scarce, wanted / np.maximum(self.free, 1.0), 0.0)
        self.order = np.lexsort((net @ scarcity, self.taker, -self.scheduler.squeaky))

    def _fill(self, reserve: Floats) -> Floats:
        """Advance each model as far as it can, the largest steps first."""
        after, free, tried = self.x.copy(), self.free.copy(), self.x
        for fraction in STEP_FRACTIONS:
            aim, waiting = self.paths.next_points(self.x, fraction), (after <= self.x) & (self.x < 1.0)
            if (aim == tried)[waiting].all():
                continue
            tried, growth = aim, self._growth(aim)
            for m in self.order:
                if not waiting[m]:
                    continue
                room = free - reserve if self.taker[m] and not self.scheduler.squeaky[m] else free
                if (growth[m] <= np.maximum(room, SLACK)).all():
                    after[m] = aim[m]
                    free -= growth[m]
        return after
