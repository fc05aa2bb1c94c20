"""Cost of serving one model from a given set of regions: kernels that assign its demand and fill its parts.

Called by `planner.fleet.configuration`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.core.arrays import Floats, Ints
from planner.fleet.replica_allocation import SMALL, Model, able, fill, most, price_replicas, relieve, spread
from planner.jit import kernel


@kernel
def assign(
    model: Model, members: npt.NDArray[np.bool_], rent: Floats, soft: Floats, hard: Floats, load: Floats, flow: Floats
) -> float:
    """Send demand to members, the cheapest first; up to `soft` QPS each, then up to `hard`. Returns unmet QPS."""
    regions = len(load)
    load[:] = 0.0
    flow[:] = 0.0
    unmet = 0.0
    order = np.empty(regions, dtype=np.int64)
    cost = np.empty(regions)
    for number in range(1, regions + 1):
        for s in range(len(model.demand)):
            if model.demand[s] <= 0.0:
                continue
            ways = 0
            for r in range(regions):
                if members[r] and model.reach[s, r] and rent[r] + model.distance[s, r] < model.missed:
                    order[ways] = r
                    cost[ways] = rent[r] + model.distance[s, r]
                    ways += 1
            if ways != number and not (ways == 0 and number == 1):
                continue
            _sort(order, cost, ways)
            rest = model.demand[s]
            for phase in range(2):
                for w in range(ways):
                    r = order[w]
                    limit = min(soft[r], hard[r]) if phase == 0 else hard[r]
                    x = min(rest, limit - load[r])
                    if x > SMALL * model.demand[s]:
                        load[r] += x
                        flow[s, r] += x
                        rest -= x
            if rest > SMALL * model.demand[s]:
                unmet += rest
    return unmet


@kernel
def _sort(order: Ints, cost: Floats, n: int) -> None:
    """Sort the first n by cost, by insertion."""
    for i in range(1, n):
        key, value = order[i], cost[i]
        j = i - 1
        while j >= 0 and cost[j] > value:
            order[j + 1], cost[j + 1] = order[j], cost[j]
            j -= 1
        order[j + 1], cost[j + 1] = key, value


@kernel
def least_choice_first(model: Model) -> Ints:
    """Return (P,) parts, those with the fewest options first: they may have no alternative cell."""
    options = model.starts[1:] - model.starts[:-1]
    return np.argsort(options, kind="mergesort")


@kernel
def bearable(model: Model, r: int, most_qps: float, supply: Floats, left: Floats, count: Ints) -> float:
    """Return the QPS that all parts together can serve in an empty region, at most `most_qps`; by bisection.

    Parts of one model may compete for one cell: the capacity of each alone would be too optimistic.
    """
    low, high = 0.0, most_qps
    kept = left[r].copy()
    for _ in range(12):
        middle = (low + high) / 2
        count[:, r] = 0
        left[r] = supply[r]
        can = np.inf
        for p in least_choice_first(model):
            can = min(can, fill(model, p, r, middle, left, count))
        if can >= middle * (1 - SMALL):
            low = middle
        else:
            high = middle
    count[:, r] = 0
    left[r] = kept
    return low


@kernel
def evaluate(
    model: Model,
    members: npt.NDArray[np.bool_],
    rent: Floats,
    soft: Floats,
    supply: Floats,
    scale: float,
    count: Ints,
    load: Floats,
    flow: Floats,
    left: Floats,
    hard: Floats,
    ables: Floats,
) -> float:
    """Return $/h of serving from `members`, unmet demand included. Fills count (O, R), load (R,) and flow (S, R)."""
    regions = len(load)
    demand = 0.0
    for s in range(len(model.demand)):
        demand += model.demand[s]
    order = least_choice_first(model)
    for r in range(regions):
        hard[r] = np.inf
    for _ in range(6):
        assign(model, members, rent, soft, hard, load, flow)
        if scale < 1.0:
            for r in range(regions):
                load[r] *= scale
                for s in range(regions):
                    flow[s, r] *= scale
        count[:] = 0
        left[:] = supply
        fits = True
        for r in range(regions):
            if load[r] <= 0.0:
                continue
            can = np.inf
            for p in order:
                can = min(can, fill(model, p, r, load[r], left, count))
            if can < load[r] * (1 - SMALL):
                hard[r] = bearable(model, r, load[r], supply, left, count)
                fits = False
        if fits:
            break
    if not fits:
        return np.inf
    return finish_assignment(model, demand, count, load, flow, left, ables)


@kernel
def finish_assignment(
    model: Model, demand: float, count: Ints, load: Floats, flow: Floats, left: Floats, ables: Floats
) -> float:
    """Make filled parts survive the loss of a region, relieve them, and return the total cost ($/h)."""
    regions, parts = len(load), len(model.least)
    served = 0.0
    for r in range(regions):
        served += load[r]
    if served <= SMALL * demand:
        count[:] = 0
        flow[:] = 0.0
        load[:] = 0.0
        return demand * model.missed
    if model.survives:
        worst = served
        for p in least_choice_first(model):
            for r in range(regions):
                ables[r] = able(model, p, r, count)
            worst = min(worst, spread(model, p, served, left, count, ables))
        if worst < served * (1 - SMALL):
            for r in range(regions):
                load[r] *= worst / served
                for s in range(regions):
                    flow[s, r] *= worst / served
            served = worst
            if served <= SMALL * demand:
                count[:] = 0
                flow[:] = 0.0
                load[:] = 0.0
                return demand * model.missed
    cost = 0.0
    for p in range(parts):
        for r in range(regions):
            ables[r] = able(model, p, r, count)
        relieve(model, p, served if model.survives else 0.0, load, left, count, ables)
        for o in range(model.starts[p], model.starts[p + 1]):
            for r in range(regions):
                if count[o, r]:
                    cost += price_replicas(model, o, r, count[o, r])
    arrived = 0.0
    for s in range(regions):
        for r in range(regions):
            if flow[s, r] > 0.0:
                arrived += flow[s, r]
                cost += flow[s, r] * model.distance[s, r]
    return cost + model.missed * max(0.0, demand - arrived)


@kernel
def rents(model: Model, supply: Floats) -> Floats:
    """Return (R,) $/h for a QPS in each region, all parts; infinite if a part cannot run there."""
    regions = supply.shape[0]
    rent = np.zeros(regions)
    for r in range(regions):
        for p in range(len(model.least)):
            cheapest = np.inf
            for o in range(model.starts[p], model.starts[p + 1]):
                if most(model, o, r, supply) >= 1:
                    cheapest = min(cheapest, model.price[o, r] / model.rate[o])
            rent[r] += cheapest
    return rent


@kernel
def cover(model: Model, rent: Floats, supply: Floats, members: npt.NDArray[np.bool_]) -> None:
    """Choose a first set of members: greedily the region with the least $/h for a QPS not yet in reach of one."""
    regions = len(rent)
    covered = np.zeros(regions, dtype=np.bool_)
    while True:
        best, at = np.inf, -1
        for r in range(regions):
            if members[r] or rent[r] == np.inf:
                continue
            reached, way = 0.0, 0.0
            for s in range(regions):
                if not covered[s] and model.reach[s, r] and rent[r] + model.distance[s, r] < model.missed:
                    reached += model.demand[s]
                    way += model.demand[s] * model.distance[s, r]
            if reached <= 0.0:
                continue
            score = (opening(model, r, reached, supply) + way) / reached
            if score < best:
                best, at = score, r
        if at < 0:
            return
        members[at] = True
        for s in range(regions):
            if model.reach[s, at]:
                covered[s] = True


@kernel
def opening(model: Model, r: int, load: float, supply: Floats) -> float:
    """Return $/h for `load` QPS in one region, each part on its cheapest single option."""
    cost = 0.0
    for p in range(len(model.least)):
        cheapest = np.inf
        for o in range(model.starts[p], model.starts[p + 1]):
            if most(model, o, r, supply) >= 1:
                n = max(int(np.ceil(load / model.rate[o] * (1 - 1e-12))), model.least[p])
                cheapest = min(cheapest, price_replicas(model, o, r, n))
        cost += cheapest
    return cost


class Space(NamedTuple):
    """Workspace of one model's search, allocated once for each thread of work."""

    counts: Ints
    load: Floats
    flow: Floats
    left: Floats
    hard: Floats
    ables: Floats


@kernel
def space(model: Model, supply: Floats) -> Space:
    """Allocate the workspace for a model of this shape."""
    options, regions = model.price.shape
    return Space(
        np.zeros((options, regions), dtype=np.int64),
        np.zeros(regions),
        np.zeros((regions, regions)),
        np.zeros_like(supply),
        np.zeros(regions),
        np.zeros(regions),
    )


@kernel
def cost_within(
    model: Model,
    members: npt.NDArray[np.bool_],
    rent: Floats,
    soft: Floats,
    supply: Floats,
    scale: float,
    room: Space,
) -> float:
    """Return $/h of serving from `members`, in the workspace of one search."""
    return evaluate(
        model, members, rent, soft, supply, scale, room.counts, room.load, room.flow, room.left, room.hard, room.ables
    )
