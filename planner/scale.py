"""Plans for whole fleets: prices, configurations for each model, whole numbers, and a proof of how good they are.

Called by `planner.solve`. The stated problem falls into one small problem for each model once every unit of supply, every
dollar of an owner's budget and every move has a price (Lagrangian relaxation). `planner.price_search` finds the prices,
`planner.configuration` the best configuration of a model at them, `planner.rounding` one whole configuration for each
model within all limits, and `planner.bounding` proves how much less any plan could cost. The work is counted, not timed:
the same problem gives the same plan.
"""

import time
from dataclasses import dataclass

import numpy as np

from ipnext.model.plan import Problem
from planner.arrays import FleetArrays, Floats, Ints, Prices
from planner.bounding import Hints, lower_bounds, total_bound
from planner.price_search import SOFTNESS, Effort, Found, Limits, Master, search
from planner.pricing import Columns, Placer, Single, best_columns, joined
from planner.rounding import Holding, Improvement, complete, shared_out

@dataclass(frozen=True)
class FleetAnswer:
    """A configuration for each model, the bound on what any plan costs, and the prices that prove it."""

    configurations: tuple[Single, ...]
    bound: float
    """$/h, over all plans of the stated problem."""
    prices: Prices
    rounds: int
    out_of_time: bool


def solve_fleet(problem: Problem, arrays: FleetArrays | None = None) -> FleetAnswer:
    """The best plan found for a valid problem, of any size."""
    ends = time.monotonic() + problem.limits.time_seconds
    fleet = FleetArrays.of(problem) if arrays is None else arrays
    found = find_prices(fleet)
    every = np.arange(fleet.models, dtype=np.int64)
    columns = joined([found.columns, best_columns(fleet, found.prices, every, effort=EFFORT_LAST)])
    limits = Limits.of(fleet)
    price = limits.values(found.prices)
    holding = shared_out(fleet, limits, columns, price)
    placer = Placer(fleet)
    complete(holding, placer, found.prices, _largest_first(fleet, every))
    out_of_time = improve(Improvement(holding, placer, found.prices, columns), ends)
    bound = proven(fleet, found.prices, columns)
    return FleetAnswer(tuple(s for s in holding.chosen if s is not None), bound, found.prices, found.rounds, out_of_time)


EFFORT_QUICK, EFFORT_FIRST, EFFORT_LAST = 4, 40, 300
"""Evaluations for a model in the first rounds of the price search, in the later ones, and at the final prices."""


def prices_of(problem: Problem) -> Prices:
    """What one more unit of each shared limit is worth, as near to the best dual prices as the search comes."""
    return find_prices(FleetArrays.of(problem)).prices


def find_prices(arrays: FleetArrays) -> Found:
    """Prices from quick proposals first, then from good ones."""
    every = np.arange(arrays.models, dtype=np.int64)
    quick = search(arrays, every, Effort(rounds=8, effort=EFFORT_QUICK, enough=2e-3))
    more = Effort(rounds=8, effort=EFFORT_FIRST, width=0.3)
    return search(arrays, every, more, start=quick.prices, columns=quick.columns)


def size_of(arrays: FleetArrays) -> Floats:
    """(M,) $/h that the demand would cost on the cheapest hardware of each part, roughly."""
    usual = np.where(arrays.supply > 0, arrays.unit_cost, np.nan)
    kind = np.nan_to_num(np.nanmean(usual, axis=0) if usual.size else usual, nan=np.nanmax(usual, initial=1.0))
    each = arrays.option_units * kind[arrays.option_hardware] / arrays.option_qps
    part = np.minimum.reduceat(each, arrays.option_start[:-1]) if len(each) else each
    model = np.add.reduceat(part, arrays.part_start[:-1]) if len(part) else part
    return arrays.qps.sum(axis=1) * model


def _largest_first(arrays: FleetArrays, models: Ints) -> Ints:
    return models[np.argsort(-size_of(arrays)[models], kind="stable")]


def improve(improvement: Improvement, ends: float) -> bool:
    """Rounds of placing models anew, the worst placed first. True where the clock ended it."""
    holding = improvement.holding
    nothing = Prices(np.zeros_like(improvement.prices.supply), np.zeros_like(improvement.prices.owner), 0.0)
    for number in range(ROUNDS):
        before = float(holding.cost.sum()) + holding.over()
        regret = improvement.regrets()
        worst = [int(m) for m in np.argsort(-regret, kind="stable")[:MOST_ATTEMPTS] if regret[m] > 1e-9]
        short = [m for m in worst if holding.chosen[m].unmet > 0]
        for m in short + worst[: MOST_ATTEMPTS // 4]:
            for size in (2, 5) if number else (1, 3, 8):
                if time.monotonic() > ends:
                    return True
                rivals = improvement.rivals(m, size)
                if rivals and improvement.attempt([m, *rivals], improvement.prices):
                    break
        for m in worst:
            if time.monotonic() > ends:
                return True
            improvement.attempt([m], nothing)
        after = float(holding.cost.sum()) + holding.over()
        if before - after < 2e-5 * before:
            break
    return False


ROUNDS = 6
MOST_ATTEMPTS = 400


def proven(arrays: FleetArrays, prices: Prices, columns: Columns) -> float:
    """What no plan of the stated problem costs less than, $/h."""
    limits = Limits.of(arrays)
    z = columns.cost + limits.taken(arrays, columns) @ limits.values(prices)
    first = np.unique(columns.model, return_index=True)[1]
    hints = Hints(upper=np.minimum.reduceat(z, first))
    return max(0.0, total_bound(arrays, prices, lower_bounds(arrays, prices, hints)))
