"""The greedy peer: models by priority, each placed at least cost on what those before it left.

Best fit as an experienced operator would do it: it keeps every rule (`latency_weight`, `move_cost` and `moves` aside,
which it does not look at) and leaves demand unmet only if a model does not fit or costs more than leaving it. Three
orders among models of one priority are tried, and the best result counts: largest first; fewest options first; tightest
latency first.
"""

import numpy as np

from benchmarks.planner.holding import Holding
from benchmarks.planner.peers.greedy_kernel import Model, place
from ipnext.model.planning.plan import Problem
from planner.core.arrays import FleetArrays, Floats, Ints

Placed = tuple[int, Floats, Floats]
"""A model, its replicas (O, R) and flows (R, R)."""


def solve_greedily(problem: Problem) -> Holding:
    """Replicas and traffic of the best of the three orders."""
    fleet = FleetArrays.of(problem)
    results = [_placed(fleet, order) for order in _orders(fleet)]
    _, best = min(results, key=lambda result: result[0])
    holding = Holding(problem)
    for m, counts, flow in best:
        holding.put(m, counts, flow)
    return holding


def _placed(fleet: FleetArrays, order: Ints) -> tuple[float, list[Placed]]:
    """$/h of hardware and unmet demand, and the placements, of one order."""
    left, money = fleet.supply.copy(), fleet.owner_budget.copy()
    total, placed = 0.0, list[Placed]()
    for m in order:
        model = model_of(fleet, m, left, min(fleet.model_budget[m], money[fleet.owner[m]]))
        counts, flow = place(model)
        units = np.zeros_like(left)
        np.add.at(units.T, model.kind, counts * model.units[:, None])
        cost = float((units * fleet.unit_cost).sum())
        left -= units
        money[fleet.owner[m]] -= cost
        total += cost + fleet.missed[m] * (model.demand.sum() - flow.sum())
        placed.append((int(m), counts, flow))
    return total, placed


def model_of(fleet: FleetArrays, m: int, left: Floats, budget: float) -> Model:
    """Model m as the kernel takes it, on the units (R, H) left and $/h left."""
    first, last = fleet.part_start[m], fleet.part_start[m + 1]
    start = fleet.option_start[first : last + 1]
    options = slice(start[0], start[-1])
    return Model(
        demand=fleet.qps[m],
        near=fleet.rtt <= fleet.tolerance[m],
        survives=bool(fleet.survives[m]),
        budget=float(budget),
        missed=float(fleet.missed[m]),
        parts=start - start[0],
        least=fleet.part_min[first:last],
        kind=fleet.option_hardware[options],
        units=fleet.option_units[options],
        qps=fleet.option_qps[options],
        left=left,
        price=fleet.unit_cost,
    )


def _orders(fleet: FleetArrays) -> list[Ints]:
    """Models by priority, and among equals in three ways."""
    size = sizes_of(fleet)
    choices = np.minimum.reduceat(np.diff(fleet.option_start), fleet.part_start[:-1])
    return [
        np.lexsort((-size, -fleet.missed)),
        np.lexsort((-size, choices, -fleet.missed)),
        np.lexsort((-size, choices, fleet.tolerance, -fleet.missed)),
    ]


def sizes_of(fleet: FleetArrays) -> Floats:
    """(M,) $/h that the demand of each model costs at the cheapest price anywhere, replicas being divisible."""
    price = np.where(fleet.supply > 0, fleet.unit_cost, np.inf).min(axis=0)
    option = price[fleet.option_hardware] * fleet.option_units / fleet.option_qps
    part = np.minimum.reduceat(option, fleet.option_start[:-1])
    total: Floats = np.add.reduceat(part, fleet.part_start[:-1]) * fleet.qps.sum(axis=1)
    return total
