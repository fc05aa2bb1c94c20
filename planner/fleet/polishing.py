"""Cheaper configurations by small changes: replicas exchanged within a part, and load moved between two regions.

Called by `planner.fleet.pricing` if a configuration is worth the time. The result of `planner.fleet.configuration`,
built region by region and part by part, is changed in places: replicas of one option leave one region, and the part is
completed without them; some load of one region goes to another, and all parts are fitted to that.
"""

from typing import NamedTuple

import numpy as np

from planner.core.arrays import Floats, Ints
from planner.fleet.demand_assignment import least_choice_first
from planner.fleet.replica_allocation import (
    SMALL,
    Model,
    able,
    count_replicas,
    extend,
    fill,
    most,
    price_replicas,
    relieve,
    take,
)
from planner.jit import entry_kernel, kernel


class Bench(NamedTuple):
    """Working copy of a configuration. Shapes as in `planner.fleet.configuration`."""

    counts: Ints
    """(O, R)"""
    load: Floats
    """(R,) QPS."""
    flow: Floats
    """(S, R) QPS."""
    left: Floats
    """(R, H) units."""
    ables: Floats
    """(R,)"""


@entry_kernel
def polish(model: Model, supply: Floats, trials: int, count: Ints, flow: Floats) -> int:
    """Improve a configuration in place, by at most `trials` moves of load; return the number of moves tried."""
    regions = supply.shape[0]
    load = np.zeros(regions)
    for s in range(regions):
        for r in range(regions):
            load[r] += flow[s, r]
    if load.sum() <= 0.0:
        return 0
    bench = Bench(count.copy(), load.copy(), flow.copy(), supply.copy(), np.zeros(regions))
    kept = Bench(count, load, flow, supply.copy(), np.zeros(regions))
    _set_left(model, supply, kept)
    cost = _mend(model, kept, bench)
    used = 0
    improved = True
    while improved and used < trials:
        improved = False
        for a in range(regions):
            for b in range(regions):
                if a == b or kept.load[a] <= 0.0 or used >= trials:
                    continue
                movable = _movable(model, kept, a, b)
                if movable <= SMALL * kept.load[a]:
                    continue
                for amount in _amounts(model, kept, a, b, movable):
                    _copy(kept, bench)
                    _move(model, bench, a, b, amount)
                    here = _fit_replicas(model, supply, bench)
                    used += 1
                    if here < cost * (1 - 1e-9):
                        _copy(bench, kept)
                        cost = min(here, _mend(model, kept, bench))
                        improved = True
                        break
    return used


@kernel
def _copy(source: Bench, target: Bench) -> None:
    target.counts[:] = source.counts
    target.load[:] = source.load
    target.flow[:] = source.flow
    target.left[:] = source.left


@kernel
def _set_left(model: Model, supply: Floats, bench: Bench) -> None:
    """Set the units of the supply that the replicas leave."""
    bench.left[:] = supply
    for o in range(len(model.rate)):
        for r in range(len(bench.load)):
            bench.left[r, model.kind[o]] -= bench.counts[o, r] * model.units[o]


@kernel
def _part_cost(model: Model, p: int, count: Ints) -> float:
    """Return $/h of the replicas of a part."""
    cost = 0.0
    for o in range(model.starts[p], model.starts[p + 1]):
        for r in range(count.shape[1]):
            if count[o, r]:
                cost += price_replicas(model, o, r, count[o, r])
    return cost


@kernel
def _cost(model: Model, bench: Bench) -> float:
    """Return $/h of a configuration, as `planner.fleet.demand_assignment` counts it."""
    cost, missed = 0.0, 0.0
    for p in range(len(model.least)):
        cost += _part_cost(model, p, bench.counts)
    for s in range(len(model.demand)):
        missed += model.demand[s]
        for r in range(len(bench.load)):
            missed -= bench.flow[s, r]
            cost += bench.flow[s, r] * model.distance[s, r]
    return float(cost + model.missed * max(0.0, missed))


@kernel
def _mend(model: Model, kept: Bench, bench: Bench) -> float:
    """Exchange replicas of each part for others while that helps; return the $/h of the result."""
    served = kept.load.sum()
    for p in range(len(model.least)):
        here = _part_cost(model, p, kept.counts)
        improved = True
        while improved:
            improved = False
            for o in range(model.starts[p], model.starts[p + 1]):
                for r in range(len(kept.load)):
                    for all_of_them in range(2):
                        n = kept.counts[o, r] if all_of_them else 1
                        if kept.counts[o, r] < 1 + (not all_of_them):
                            continue
                        _copy(kept, bench)
                        take(model, o, r, -n, bench.left, bench.counts)
                        if not _complete_part(model, p, o, r, served, bench):
                            continue
                        cost = _part_cost(model, p, bench.counts)
                        if cost < here * (1 - 1e-9):
                            _copy(bench, kept)
                            here, improved = cost, True
    return float(_cost(model, kept))


@kernel
def _complete_part(model: Model, p: int, o: int, r: int, served: float, bench: Bench) -> bool:
    """Complete a part that lacks replicas in region r, without any more of option o there.

    False if that is impossible.
    """
    kept = bench.left[r, model.kind[o]]
    bench.left[r, model.kind[o]] = 0.0
    done = True
    number = 0
    for i in range(model.starts[p], model.starts[p + 1]):
        number += bench.counts[i, r]
    if 0 < number < model.least[p]:
        done = False
    if done and bench.load[r] > 0.0:
        if number == 0:
            done = fill(model, p, r, bench.load[r], bench.left, bench.counts) >= bench.load[r] * (1 - SMALL)
        else:
            done = extend(model, p, r, bench.load[r], bench.left, bench.counts) >= bench.load[r] * (1 - SMALL)
    if done:
        for i in range(len(bench.load)):
            bench.ables[i] = able(model, p, i, bench.counts)
        if model.survives:
            done = _cover_loss(model, p, served, bench)
    bench.left[r, model.kind[o]] += kept
    if done:
        relieve(model, p, served if model.survives else 0.0, bench.load, bench.left, bench.counts, bench.ables)
    return done


@kernel
def _movable(model: Model, bench: Bench, a: int, b: int) -> float:
    """Return QPS of region a whose users reach region b."""
    qps = 0.0
    for s in range(len(model.demand)):
        if model.reach[s, b]:
            qps += bench.flow[s, a]
    return float(qps)


@kernel
def _amounts(model: Model, bench: Bench, a: int, b: int, movable: float) -> Floats:
    """Return (N,) QPS worth moving.

    All, amounts that save a replica of some part in a, and amounts that fill those in b.
    """
    found = np.zeros(2 + 2 * len(model.rate))
    found[0] = movable
    n = 1
    for p in range(len(model.least)):
        can, there = able(model, p, a, bench.counts), able(model, p, b, bench.counts)
        for o in range(model.starts[p], model.starts[p + 1]):
            if bench.counts[o, a]:
                found[n] = bench.load[a] - (can - model.rate[o]) * (1 - SMALL)
                n += 1
            if bench.counts[o, b]:
                found[n] = there - bench.load[b]
                n += 1
    k = 0
    for i in range(n):
        if found[i] <= SMALL * movable or found[i] > movable:
            continue
        known = False
        for j in range(k):
            known = known or abs(found[j] - found[i]) <= 1e-6 * movable
        if not known:
            found[k] = found[i]
            k += 1
    return found[:k]


@kernel
def _move(model: Model, bench: Bench, a: int, b: int, amount: float) -> None:
    """Move load from region a to region b."""
    bench.load[a] = 0.0
    rest = amount
    for s in range(len(model.demand)):
        if model.reach[s, b] and rest > 0.0:
            x = min(rest, bench.flow[s, a])
            if bench.flow[s, a] - x <= SMALL * model.demand[s]:
                x = bench.flow[s, a]
            bench.flow[s, a] -= x
            bench.flow[s, b] += x
            bench.load[b] += x
            rest -= x
        bench.load[a] += bench.flow[s, a]


@kernel
def _fit_replicas(model: Model, supply: Floats, bench: Bench) -> float:
    """Return $/h of the cheapest replicas found for the loads; infinite if they don't fit.

    Fills the rest of the bench.
    """
    bench.counts[:] = 0
    bench.left[:] = supply
    for r in range(len(bench.load)):
        if bench.load[r] > 0.0:
            for p in least_choice_first(model):
                if fill(model, p, r, bench.load[r], bench.left, bench.counts) < bench.load[r] * (1 - SMALL):
                    return np.inf
    served = bench.load.sum()
    for p in least_choice_first(model):
        for r in range(len(bench.load)):
            bench.ables[r] = able(model, p, r, bench.counts)
        if model.survives and not _cover_loss(model, p, served, bench):
            return np.inf
        relieve(model, p, served if model.survives else 0.0, bench.load, bench.left, bench.counts, bench.ables)
    return float(_cost(model, bench))


@kernel
def _cover_loss(model: Model, p: int, served: float, bench: Bench) -> bool:
    """Add replicas until the loss of any region leaves `served` QPS; False if they don't fit."""
    ables = bench.ables
    cheapest = np.full(len(model.rate), np.inf)
    for o in range(model.starts[p], model.starts[p + 1]):
        for r in range(len(ables)):
            if most(model, o, r, bench.left) >= 1:
                cheapest[o] = min(cheapest[o], model.price[o, r])
    for _ in range(60):
        if served - (ables.sum() - ables.max()) <= SMALL * served:
            return True
        r, o, n = _next_replicas(model, p, served, bench, cheapest)
        if n == 0:
            return False
        take(model, o, r, n, bench.left, bench.counts)
        ables[r] += n * model.rate[o]
    return False


@kernel
def _next_replicas(model: Model, p: int, served: float, bench: Bench, cheapest: Floats) -> tuple[int, int, int]:
    """Return region, option and number of the replicas with the least total cost.

    It includes the cost of the remaining shortage.
    """
    ables = bench.ables
    top = ables.max()
    short = served - (ables.sum() - top)
    best, region, option, number = np.inf, 0, 0, 0
    for r in range(len(ables)):
        here = count_replicas(model, p, r, bench.counts)
        for o in range(model.starts[p], model.starts[p + 1]):
            room, rate = most(model, o, r, bench.left), model.rate[o]
            least = max(1, model.least[p] - here)
            wanted = int(np.ceil(short / rate * (1 - 1e-12)))
            below = int(np.floor((top - ables[r]) / rate * (1 + 1e-12)))
            for tried in (wanted, wanted - 1, below):
                n = min(max(least, tried), room)
                gain = min(n * rate - max(0.0, ables[r] + n * rate - top), short)
                if room < least or gain <= SMALL * served:
                    continue
                cost = price_replicas(model, o, r, bench.counts[o, r] + n) - price_replicas(
                    model, o, r, bench.counts[o, r]
                )
                cost += _least_cost(model, p, short - gain, SMALL * served, cheapest)
                if cost < best:
                    best, region, option, number = cost, r, o, n
    return region, option, number


@kernel
def _least_cost(model: Model, p: int, qps: float, enough: float, cheapest: Floats) -> float:
    """Return the least $/h of this many QPS with replicas of one option, each at its `cheapest` (O,)."""
    if qps <= enough:
        return 0.0
    least = np.inf
    for o in range(model.starts[p], model.starts[p + 1]):
        least = min(least, np.ceil(qps / model.rate[o] * (1 - 1e-12)) * cheapest[o])
    return least
