"""The reference placement of a drawn fleet: near the cheapest, every rule kept. It defines the tightness of a supply.

Called by `planner.generate.generate`. No optimiser: all models at once, each on the best of some ten sets of regions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.generate.fleet import DrawnFleet, Flags, Floats, Ints, qps_cost_of

SAMPLE = 2_000
"""Models that determine the prices."""


@dataclass(frozen=True)
class ReferencePlacement:
    """Whole replicas (O, R), the regions that serve (M, R), and $/h by model at the prices it was made for."""

    counts: Ints
    serves: Flags
    cost: Floats


def reference_of(fleet: DrawnFleet) -> ReferencePlacement:
    """Return the near-cheapest placement at prices that spread each kind over the regions by `share`."""
    stride = -(-fleet.models // SAMPLE)
    sample = fleet.some(np.arange(0, fleet.models, stride))
    price = fleet.price
    for _ in range(8):
        units = units_of(sample, _cheapest(sample, price).counts)
        wanted = fleet.share * units.sum(axis=0) + 1e-9
        price = price * np.clip(((units + 0.05 * wanted) / (1.05 * wanted)) ** 0.2, 0.8, 1.25)
        price = np.clip(price, 0.5 * fleet.price, 4.0 * fleet.price)
    return _cheapest(fleet, price)


def units_of(fleet: DrawnFleet, counts: Ints) -> Floats:
    """Return (R, H) units of the replicas."""
    units = np.zeros_like(fleet.share)
    for kind in range(units.shape[1]):
        chosen = fleet.option_hardware == kind
        units[:, kind] = fleet.option_units[chosen] @ counts[chosen]
    return units


def _cheapest(fleet: DrawnFleet, price: Floats) -> ReferencePlacement:
    """Return for each model the cheapest of some ten placements.

    They are on its 1, 2, ... all cheapest regions and those its users need.
    """
    qps_cost = qps_cost_of(fleet, price)
    regions = len(fleet.names)
    best = ReferencePlacement(
        np.zeros((len(fleet.option_part), regions), dtype=np.int64),
        np.zeros((fleet.models, regions), dtype=np.bool_),
        np.full(fleet.models, np.inf),
    )
    for k in sorted({min(k, regions) for k in (1, 2, 3, 4, 5, 6, 8, 11, 15, regions)}):
        tried = _place_replicas(fleet, price, _open_regions(fleet, qps_cost, k))
        better = tried.cost < best.cost * (1 - 1e-9)
        option = better[fleet.part_model[fleet.option_part]]
        best.counts[option], best.serves[better] = tried.counts[option], tried.serves[better]
        best.cost[better] = tried.cost[better]
    return best


def _open_regions(fleet: DrawnFleet, qps_cost: Floats, k: int) -> Flags:
    """Return (M, R) the k cheapest regions, then regions that reach the most unreached demand for their cost."""
    least = np.where(fleet.survives, max(k, 2), k)
    opened = (np.argsort(np.argsort(qps_cost, axis=1, kind="stable"), axis=1) < least[:, None]) & np.isfinite(qps_cost)
    while True:
        unreached = fleet.qps * (across(fleet, opened, back=True) == 0)
        rows = np.flatnonzero(unreached.any(axis=1))
        if not len(rows):
            return opened
        gain = across(fleet, unreached) / qps_cost
        opened[rows, np.argmax(gain[rows], axis=1)] = True


def across(fleet: DrawnFleet, figures: Any, *, back: bool = False) -> Floats:
    """Return (M, R) by users' region summed over the regions that may serve them, or `back` from those that serve."""
    total = np.zeros(figures.shape)
    for c, reach in enumerate(fleet.reach):
        rows = fleet.tolerance == c
        total[rows] = figures[rows].astype(np.float64) @ (reach.T if back else reach)
    return total


def _place_replicas(fleet: DrawnFleet, price: Floats, opened: Flags) -> ReferencePlacement:
    """Place whole replicas in the opened regions; all opened regions that users reach serve them in equal parts."""
    reached = np.maximum(across(fleet, opened, back=True), 1.0)
    load = _survivable(fleet, np.where(opened, across(fleet, fleet.qps / reached), 0.0), opened)
    part_load = load[fleet.part_model][fleet.option_part]
    whole = np.maximum(
        np.ceil(part_load / fleet.option_qps[:, None] * (1 - 1e-12)), fleet.part_min[fleet.option_part, None]
    )
    cost = np.zeros(whole.shape)
    np.multiply(whole * fleet.option_units[:, None], price.T[fleet.option_hardware], out=cost, where=part_load > 0)
    least = np.minimum.reduceat(cost, fleet.option_start)
    tied = cost == least[fleet.option_part]
    before = np.cumsum(tied, axis=0) - tied
    chosen = tied & (before == before[fleet.option_start][fleet.option_part]) & (part_load > 0)
    total = np.add.reduceat(least, fleet.part_start).sum(axis=1)
    counts = np.where(chosen, whole, 0).astype(np.int64)
    return ReferencePlacement(counts, opened & (load > 0), total)


def _survivable(fleet: DrawnFleet, load: Floats, opened: Flags) -> Floats:
    """Return (M, R) the load of each region raised to the lowest level at which the others can replace the largest."""
    largest = np.argmax(load, axis=1)
    rows = np.arange(len(load))
    others = np.where(opened, load, -np.inf)
    others[rows, largest] = -np.inf
    others = -np.sort(-others, axis=1)
    left = opened.sum(axis=1)[:, None] - 1 - np.arange(load.shape[1])
    kept = np.cumsum(np.where(np.isfinite(others), others, 0.0), axis=1)
    before = np.concatenate([np.zeros((len(load), 1)), kept[:, :-1]], axis=1)
    levels = np.where(left > 0, (load.sum(axis=1)[:, None] - before) / np.maximum(left, 1), np.inf)
    level = np.where(fleet.survives, np.maximum(levels.min(axis=1), 0.0), 0.0)
    return np.where(opened, np.maximum(load, level[:, None]), 0.0)
