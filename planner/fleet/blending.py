"""A model that a linear program splits between configurations: their mean, in whole replicas.

Called by `planner.fleet.rounding`. If configurations keep every rule of one model, so does their mean, and so does any
number of replicas above it. So the shares' mean, rounded up, is a configuration again, and uses hardly more of the
limits than the program gave the model (Geoffrion's convexification in reverse). Unneeded replicas are then dropped.
"""

import numpy as np

from planner.core.arrays import FleetArrays, Floats, Ints
from planner.fleet.pricing import Columns

EXACT = 1e-9
"""Sums of floats are not exact: relative, and of a replica."""


def blend_columns(arrays: FleetArrays, m: int, columns: Columns, rows: Ints, shares: Floats) -> tuple[Ints, Floats]:
    """Return replicas (options of m, R) and traffic (R, R) of model m.

    The mean of some columns, whose shares sum to 1.
    """
    first, last = arrays.option_start[arrays.part_start[[m, m + 1]]]
    regions = arrays.regions
    mean, flow = np.zeros((last - first) * regions), np.zeros(regions * regions)
    for row, share in zip(rows, shares / shares.sum(), strict=True):
        counts = slice(columns.count_start[row], columns.count_start[row + 1])
        flows = slice(columns.flow_start[row], columns.flow_start[row + 1])
        mean[columns.count_at[counts] - first * regions] += share * columns.count_n[counts]
        flow[columns.flow_at[flows]] += share * columns.flow_qps[flows]
    part = _Whole(arrays, m, mean.reshape(-1, regions), flow.reshape(regions, regions))
    part.fill_up()
    part.trim()
    return part.count, part.flow


class _Whole:
    """The replicas of one model, whole, and their throughput."""

    def __init__(self, arrays: FleetArrays, m: int, mean: Floats, flow: Floats) -> None:
        parts = np.arange(arrays.part_start[m], arrays.part_start[m + 1])
        options = np.arange(arrays.option_start[parts[0]], arrays.option_start[parts[-1] + 1])
        self.mean, self.flow = mean, flow
        self.count: Ints = np.ceil(mean - EXACT).astype(np.int64)
        self.part = np.searchsorted(arrays.option_start[parts], options, side="right") - 1
        self.rate, self.least = arrays.option_qps[options], arrays.part_min[parts]
        self.load = flow.sum(axis=0) * (1 + EXACT)
        self.total = float(self.load.sum()) if arrays.survives[m] else 0.0
        cell = arrays.option_hardware[options]
        self.price = (arrays.unit_cost[:, cell] * arrays.option_units[options]).T

    def fill_up(self) -> None:
        """Raise every part that a region holds to `min_replicas`."""
        for p, least in enumerate(self.least):
            own = np.flatnonzero(self.part == p)
            held = self.count[own].sum(axis=0)
            for r in np.flatnonzero((held > 0) & (held < least)):
                self.count[own[np.argmax(self.count[own, r])], r] += least - held[r]

    def trim(self) -> None:
        """Drop replicas that were rounded up and that no rule needs, those of the costliest rounding first."""
        extra = (self.count - self.mean) * self.price
        option, region = np.nonzero(self.count > self.mean)
        for i in np.argsort(-extra[option, region], kind="stable"):
            self._give_up(option[i], region[i])

    def _give_up(self, o: int, r: int) -> None:
        own = np.flatnonzero(self.part == self.part[o])
        able = self.rate[own] @ self.count[own]
        able[r] -= self.rate[o]
        held = int(self.count[own, r].sum()) - 1
        enough = able[r] >= self.load[r] and able.sum() - able.max() >= self.total
        if enough and (held == 0 or held >= self.least[self.part[o]]):
            self.count[o, r] -= 1
