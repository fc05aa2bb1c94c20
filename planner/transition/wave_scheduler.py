"""Models advance along their lines in parallel within one supply: wave after wave, as many and as far as free units allow.

In a wave everything is scaled up before anything is released, so a wave may take only units that are free before it.
The order of the models decides whether all arrive: a model that permanently takes scarce units could lock in one that
would have freed them. Three rules prevent that:

- a *taker* (it ends with more of a scarce row than it has now) leaves as much free there as the others need for
  their smallest step; a row is scarce if not all could go to their ends at once;
- models that free most of the scarce units go first;
- models that were locked in at the end of one attempt go first in the next one, and takers leave room for them too
  (after the squeaky wheel: Joslin and Clements, Squeaky Wheel Optimization, JAIR 10, 1999).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.transition.instance import SLACK, Floats
from planner.transition.paths import Flags, Ints, Lines

PARTS = (1.0, 0.5, 0.25, 0.125, 0.0)
"""Fractions of the largest step that are tried, in this order; 0 means the next whole replica."""
ATTEMPTS = 6
MOST_WAVES = 2000
WAVE_EFFORT = 100
"""Of a wave, in addition to its copies."""


@dataclass(frozen=True)
class March:
    """Position of the models after each wave, the start first."""

    lines: Lines
    stops: Sequence[Floats]

    @property
    def at(self) -> Floats:
        """(M,) final position of the models."""
        return self.stops[-1]

    @property
    def stuck(self) -> Flags:
        """(M,) models that have not arrived."""
        return self.at < 1.0


def march(lines: Lines, limits: Floats, *, attempts: int = ATTEMPTS) -> March:
    """Return the first attempt in which all arrive, or else the one that leads farthest. `limits` is (R,) units for these models."""
    squeaky = np.zeros(len(lines.models), dtype=np.int64)
    best: March | None = None
    for _ in range(attempts):
        found = _Attempt(lines, limits, squeaky).march()
        if best is None or found.at.sum() > best.at.sum():
            best = found
        if not found.stuck.any() or (squeaky > 0)[found.stuck].all():
            break
        squeaky += found.stuck
    return best or March(lines, [np.zeros(len(lines.models))])


class _Attempt:
    def __init__(self, lines: Lines, limits: Floats, squeaky: Ints) -> None:
        self.lines, self.limits, self.squeaky = lines, limits, squeaky
        self.end = lines.used(lines.new)

    def march(self) -> March:
        """Schedule waves until all have arrived or none can move."""
        stops = [np.zeros(len(self.lines.models))]
        ground = self.lines.ground
        while (stops[-1] < 1.0).any() and len(stops) <= MOST_WAVES and ground.effort > 0:
            ground.effort -= WAVE_EFFORT + len(self.lines.copies)
            after = _Wave(self, stops[-1]).after()
            if (after == stops[-1]).all():
                break
            stops.append(after)
        return March(self.lines, stops)


class _Wave:
    """One wave from x on."""

    def __init__(self, attempt: _Attempt, x: Floats) -> None:
        self.attempt, self.lines, self.x = attempt, attempt.lines, x
        self.counts = self.lines.counts(x)
        self.now = self.lines.used(self.counts)
        self.free: Floats = attempt.limits - self.now.sum(axis=0) + SLACK

    def after(self) -> Floats:
        """Return (M,) the position of the models after the wave."""
        ahead = self.lines.ahead(self.x, 1.0)
        growth = self._growth(ahead)
        if (growth.sum(axis=0) <= self.free).all():
            return ahead
        self._weigh()
        after = self._fill(self.reserve)
        return after if (after > self.x).any() else self._fill(np.zeros_like(self.reserve))

    def _growth(self, aim: Floats) -> Floats:
        """Return (M, R) units that the scale-up takes on the way to `aim`."""
        return self.lines.used(np.maximum(self.counts, self.lines.counts(aim))) - self.now

    def _weigh(self) -> None:
        """Set order and reserve of this wave."""
        net = self.attempt.end - self.now
        whole = self.lines.used(np.maximum(self.counts, self.lines.new)) - self.now
        wanted = whole.sum(axis=0)
        scarce = wanted > self.free
        self.taker: Flags = np.any(net[:, scarce] > SLACK, axis=1)
        least = self._growth(self.lines.ahead(self.x, 0.0))
        waiting = self.x < 1.0
        kept = waiting & (~self.taker | (self.attempt.squeaky > 0))
        self.reserve: Floats = np.where(scarce, least[kept].max(axis=0, initial=0.0), 0.0)
        scarcity = np.where(scarce, wanted / np.maximum(self.free, 1.0), 0.0)
        self.order = np.lexsort((net @ scarcity, self.taker, -self.attempt.squeaky))

    def _fill(self, reserve: Floats) -> Floats:
        """Advance each model as far as it can, the largest steps first."""
        after, free, tried = self.x.copy(), self.free.copy(), self.x
        for part in PARTS:
            aim, waiting = self.lines.ahead(self.x, part), (after <= self.x) & (self.x < 1.0)
            if (aim == tried)[waiting].all():
                continue
            tried, growth = aim, self._growth(aim)
            for m in self.order:
                if not waiting[m]:
                    continue
                room = free - reserve if self.taker[m] and not self.attempt.squeaky[m] else free
                if (growth[m] <= np.maximum(room, SLACK)).all():
                    after[m] = aim[m]
                    free -= growth[m]
        return after
