"""A lower bound for every model: no plan of it costs less at given prices, whatever the other models do.

Called by `planner.fleet.solver`. The models share only supply, owners' budgets and `max_moves`. With a price for each
of those, the least cost of a fleet is at least the sum of the models' least priced costs, minus the value of the limits
at these prices (Lagrangian relaxation: Geoffrion, Mathematical Programming Study 2, 1974). The bounds hold over every
plan of a model, not only over those that some search considers.
"""

import math
from dataclasses import dataclass

import numpy as np

from planner.bound.branch_and_bound import model_bound
from planner.bound.levels import Shop
from planner.core.arrays import FleetArrays, Floats, Ints, Prices
from planner.jit import entry_kernel, side_by_side

ROUNDING = 1e-9
"""Share of a figure that is subtracted so that floating point never makes a bound too large."""
SLACK = 1e-6
"""Units beyond the supply of a cell that may be taken: this share of it and as many units; the checker tolerates the
same."""
MOST = 1e9
"""No model needs more replicas than this in one place."""
CLOSE = 1e-4
"""A bound as close as this to the known cost is not tightened further."""


@dataclass(frozen=True)
class Hints:
    """Results of a search that make the bounds faster, never wrong."""

    upper: Floats | None = None
    """(M,) $/h, the priced cost of the best known configuration."""


def lower_bounds(
    arrays: FleetArrays, prices: Prices, hints: Hints | None = None, effort: int = 40, nodes: Ints | None = None
) -> Floats:
    """Return (M,) $/h: at most the priced cost of any plan of each model that keeps the model's rules.

    The priced cost: replicas at `Prices.option_cost`, replicas started at `move_cost` and the price of moves, traffic
    at `latency_weight`, unmet demand at `missed`. The model's rules: `served`, `latency`, `capacity`, `survive`,
    `min_replicas`, and that no cell holds more of the model than its supply. `effort` is the number of trials.
    """
    known = None if hints is None else hints.upper
    roomy = arrays.supply + SLACK * np.maximum(arrays.supply, 1.0)
    most = np.floor(roomy.T[arrays.option_hardware] / arrays.option_units[:, None])
    figures = (
        arrays.qps,
        arrays.rtt,
        arrays.tolerance,
        arrays.latency_weight,
        arrays.missed,
        arrays.survives,
        arrays.part_start,
        arrays.part_min,
        arrays.option_start,
        np.minimum(most, MOST).astype(np.int64),
        prices.option_cost(arrays),
        arrays.option_qps,
        arrays.current,
        arrays.move_cost + prices.moves,
        np.full(arrays.models, np.inf) if known is None else known * (1 - CLOSE),
        effort,
        np.zeros(arrays.models, np.int64) if nodes is None else nodes,
    )
    bounds = np.zeros(arrays.models)
    side_by_side(arrays.models, lambda begin, end: _bound(*figures, begin, bounds[begin:end]))
    return bounds * (1 - ROUNDING)


def total_bound(arrays: FleetArrays, prices: Prices, bounds: Floats) -> float:
    """Return $/h that no plan of the fleet undercuts: the models' `bounds` minus the value of the limits at the prices.

    Minus infinity if an infinite limit has a price.
    """
    limits = ((prices.supply, arrays.supply), (prices.owner, arrays.owner_budget), (prices.moves, arrays.max_moves))
    worth = [_worth(np.ravel(price), np.ravel(limit)) for price, limit in limits]
    terms = np.concatenate([bounds, *worth])
    total, size = math.fsum(terms), math.fsum(np.abs(terms))
    return total - ROUNDING * size if math.isfinite(size) else -math.inf


def _worth(price: Floats, limit: Floats) -> Floats:
    priced = price > 0
    return np.asarray(-price[priced] * limit[priced])


@entry_kernel
def _bound(
    qps,
    rtt,
    tolerance,
    latency,
    missed,
    survives,
    part_start,
    part_min,
    option_start,
    most,
    price,
    rate,
    running,
    move,
    ceiling,
    effort,
    nodes,
    start,
    bounds,
):
    """Fill the bounds of the models from `start` on."""
    for i in range(len(bounds)):
        m = start + i
        a, b = part_start[m], part_start[m + 1]
        first, last = option_start[a], option_start[b]
        shop = Shop(
            qps[m],
            rtt,
            tolerance[m],
            latency,
            missed[m],
            survives[m],
            option_start[a : b + 1] - first,
            part_min[a:b],
            most[first:last],
            price[first:last],
            rate[first:last],
            running[first:last],
            move,
        )
        bounds[i] = model_bound(shop, ceiling[m], effort, nodes[m])
