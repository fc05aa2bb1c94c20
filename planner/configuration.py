"""The cheapest configuration of one model at given prices: compiled kernels that `planner.pricing` maps over a fleet.

A *configuration* is everything a plan says about one model: whole replicas of each part by region and hardware, and the
flow of its demand. The search is a local one over the set of regions that serve: for a set, the demand goes to the
cheapest member within tolerance, each part is filled up to its load, filled further until the loss of any region is
survived, and relieved of what it does not need. Nothing here proves anything: bounds are `planner.bounding`'s.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.arrays import Floats, Ints
from planner.compiled import kernel

SMALL = 1e-9
"""Relative slack on capacities: sums of floats are not exact."""


FEWER, FEW = 3, 20
"""Of an option that `need` holds at most so many of, mixes are tried with so many less."""

THOROUGH = 20
"""Evaluations from which other levels of load are tried as well."""


class Model(NamedTuple):
    """One model as the kernels read it: S users' regions, R regions, P parts, O options."""

    demand: Floats
    """(S,) QPS."""
    reach: npt.NDArray[np.bool_]
    """(S, R) whether a region serves these users within the tolerance."""
    distance: Floats
    """(S, R) $/h for a QPS on this way."""
    missed: float
    """$/h for an unmet QPS."""
    survives: bool
    least: Ints
    """(P,) replicas of a part in a region that holds it."""
    starts: Ints
    """(P + 1,) options of part p."""
    kind: Ints
    """(O,) hardware."""
    units: Floats
    """(O,) units a replica."""
    rate: Floats
    """(O,) QPS a replica."""
    price: Floats
    """(O, R) $/h a replica, prices of shared limits included."""
    move: float
    """$/h for a replica started."""
    running: Ints
    """(O, R) replicas now."""


@kernel
def priced(model: Model, o: int, r: int, n: int) -> float:
    """$/h of n replicas."""
    return n * model.price[o, r] + model.move * max(0, n - model.running[o, r])


@kernel
def most(model: Model, o: int, r: int, left: Floats) -> int:
    """Replicas that what is left of the cell holds."""
    return int(np.floor(left[r, model.kind[o]] / model.units[o] * (1 + 1e-12) + 1e-9))


@kernel
def take(model: Model, o: int, r: int, n: int, left: Floats, count: Ints) -> None:
    """N replicas more, or less."""
    count[o, r] += n
    left[r, model.kind[o]] -= n * model.units[o]


@kernel
def held(model: Model, p: int, r: int, count: Ints) -> int:
    """Replicas of a part in a region."""
    n = 0
    for o in range(model.starts[p], model.starts[p + 1]):
        n += count[o, r]
    return n


@kernel
def able(model: Model, p: int, r: int, count: Ints) -> float:
    """QPS of a part in a region."""
    total = 0.0
    for o in range(model.starts[p], model.starts[p + 1]):
        total += count[o, r] * model.rate[o]
    return total


@kernel
def fill(model: Model, p: int, r: int, need: float, left: Floats, count: Ints) -> float:
    """Adds the cheapest replicas that do `need` QPS in a region that holds none of the part; returns what they do.

    Two options at most are mixed: as many of one as `need` holds, or a few less, the rest of another. What runs now is a further candidate.
    """
    first, last = model.starts[p], model.starts[p + 1]
    best, bi, bn, bj, bx = np.inf, -1, 0, -1, 0
    for i in range(first, last):
        room = most(model, i, r, left)
        if room <= 0:
            continue
        n = min(int(np.floor(need / model.rate[i] * (1 + 1e-12))), room)
        full = n
        for n in range(full, max(0, full - FEWER if full <= FEW else full) - 1, -1):
            rest = need - n * model.rate[i]
            for j in range(first, last):
                if j == i and n < full:
                    continue
                x = 0
                if rest > SMALL * need:
                    x = int(np.ceil(rest / model.rate[j] * (1 - 1e-12)))
                x = max(x, model.least[p] - n)
                if j == i:
                    if n + x > room:
                        continue
                    cost = priced(model, i, r, n + x)
                else:
                    if x > 0 and x > most(model, j, r, left):
                        continue
                    cost = priced(model, i, r, n) + priced(model, j, r, x)
                if cost < best:
                    best, bi, bn, bj, bx = cost, i, n, j, x
    if model.move > 0.0:
        kept = _kept(model, p, r, need, left, best, count)
        if kept > 0.0:
            return kept
    if bi < 0:
        return _all_that_fits(model, p, r, need, left, count)
    if bn:
        take(model, bi, r, bn, left, count)
    if bx:
        take(model, bj, r, bx, left, count)
    return bn * model.rate[bi] + bx * model.rate[bj]


@kernel
def _kept(model: Model, p: int, r: int, need: float, left: Floats, limit: float, count: Ints) -> float:
    """Takes what runs now, less what is too much, where that is cheaper than `limit` and enough; else 0."""
    first, last = model.starts[p], model.starts[p + 1]
    total, number = 0.0, 0
    for o in range(first, last):
        n = min(model.running[o, r], max(0, most(model, o, r, left)))
        count[o, r] = n
        total += n * model.rate[o]
        number += n
    while number > model.least[p]:
        worst, dearest = -1, 0.0
        for o in range(first, last):
            if count[o, r] and total - model.rate[o] >= need * (1 - SMALL) and model.price[o, r] > dearest:
                worst, dearest = o, model.price[o, r]
        if worst < 0:
            break
        count[worst, r] -= 1
        number -= 1
        total -= model.rate[worst]
    cost = 0.0
    for o in range(first, last):
        cost += count[o, r] * model.price[o, r]
    enough = total >= need * (1 - SMALL) and number >= model.least[p] and cost < limit
    for o in range(first, last):
        n = count[o, r]
        count[o, r] = 0
        if enough and n:
            take(model, o, r, n, left, count)
    return total if enough else 0.0


@kernel
def _all_that_fits(model: Model, p: int, r: int, need: float, left: Floats, count: Ints) -> float:
    """Cheapest option first, as much of each as fits, up to `need`."""
    first, last = model.starts[p], model.starts[p + 1]
    total, number = 0.0, 0
    used = np.zeros(last - first, dtype=np.bool_)
    for _ in range(last - first):
        best, cheapest = -1, np.inf
        for o in range(first, last):
            if not used[o - first] and model.price[o, r] / model.rate[o] < cheapest:
                best, cheapest = o, model.price[o, r] / model.rate[o]
        if best < 0 or total >= need * (1 - SMALL):
            break
        used[best - first] = True
        n = min(max(0, most(model, best, r, left)), int(np.ceil((need - total) / model.rate[best] * (1 - 1e-12))))
        if n:
            take(model, best, r, n, left, count)
            total += n * model.rate[best]
            number += n
    if number < model.least[p]:
        for o in range(first, last):
            if count[o, r]:
                take(model, o, r, -count[o, r], left, count)
        return 0.0
    return total


@kernel
def spread(model: Model, p: int, served: float, left: Floats, count: Ints, ables: Floats) -> float:
    """Adds replicas until the loss of any region leaves `served` QPS; returns what is left at worst.

    `ables` is (R,) QPS by region, kept up to date. The cheapest $/h per QPS of the shortage comes first.
    """
    regions = len(ables)
    first, last = model.starts[p], model.starts[p + 1]
    for _ in range(400):
        total, top = 0.0, 0.0
        for r in range(regions):
            total += ables[r]
            top = max(top, ables[r])
        short = served - (total - top)
        if short <= SMALL * served:
            return total - top
        best, at, option, number = np.inf, -1, -1, 0
        for r in range(regions):
            here = held(model, p, r, count)
            for o in range(first, last):
                room = most(model, o, r, left)
                least = max(1, model.least[p] - here)
                if room < least:
                    continue
                rate = model.rate[o]
                wanted = int(np.ceil(short / rate * (1 - 1e-12)))
                below = int(np.floor((top - ables[r]) / rate * (1 + 1e-12)))
                n = min(max(least, min(wanted, max(below, 1))), room)
                after = ables[r] + n * rate
                gain = min(n * rate - max(0.0, after - top), short)
                if gain <= SMALL * served:
                    continue
                cost = priced(model, o, r, count[o, r] + n) - priced(model, o, r, count[o, r])
                if cost / gain < best:
                    best, at, option, number = cost / gain, r, o, n
                if below > n or n > least:  # one less, so that the last one may be of another kind
                    n2 = n - 1
                    if n2 >= least:
                        after = ables[r] + n2 * rate
                        gain = min(n2 * rate - max(0.0, after - top), short)
                        cost = priced(model, o, r, count[o, r] + n2) - priced(model, o, r, count[o, r])
                        if gain > SMALL * served and cost / gain < best * (1 - 1e-9):
                            best, at, option, number = cost / gain, r, o, n2
        if at < 0:
            if not _raise_two(model, p, left, count, ables):
                return total - top
            continue
        take(model, option, at, number, left, count)
        ables[at] += number * model.rate[option]
    return total - top


@kernel
def _raise_two(model: Model, p: int, left: Floats, count: Ints, ables: Floats) -> bool:
    """All regions are level: one replica more in each of the two cheapest. False where there are no two."""
    done = 0
    taken = -1
    for _ in range(2):
        best, at, option = np.inf, -1, -1
        for r in range(len(ables)):
            if r == taken:
                continue
            least = max(1, model.least[p] - held(model, p, r, count))
            for o in range(model.starts[p], model.starts[p + 1]):
                if least == 1 and most(model, o, r, left) >= 1 and model.price[o, r] / model.rate[o] < best:
                    best, at, option = model.price[o, r] / model.rate[o], r, o
        if at < 0:
            break
        take(model, option, at, 1, left, count)
        ables[at] += model.rate[option]
        taken = at
        done += 1
    return done == 2


@kernel
def relieve(model: Model, p: int, served: float, load: Floats, left: Floats, count: Ints, ables: Floats) -> None:
    """Drops replicas that neither the load nor the loss of a region nor `least` needs, dearest first."""
    regions = len(ables)
    first, last = model.starts[p], model.starts[p + 1]
    while True:
        total, top, second = 0.0, 0.0, 0.0
        for r in range(regions):
            total += ables[r]
            if ables[r] > top:
                top, second = ables[r], top
            elif ables[r] > second:
                second = ables[r]
        best, at, option, number = 0.0, -1, -1, 0
        for r in range(regions):
            if ables[r] == 0.0:
                continue
            here = held(model, p, r, count)
            for o in range(first, last):
                if count[o, r] == 0:
                    continue
                spare = ables[r] - load[r]
                if model.survives:
                    others = top if ables[r] < top else second
                    spare = min(spare, max(total - top - served, _spare_at_top(ables[r], top, others, total, served)))
                n = int(np.floor(spare / model.rate[o] * (1 + 1e-12) + 1e-12))
                n = min(n, count[o, r])
                if n < here:
                    n = min(n, here - model.least[p])
                if n <= 0:
                    continue
                gain = priced(model, o, r, count[o, r]) - priced(model, o, r, count[o, r] - n)
                if gain > best:
                    best, at, option, number = gain, r, o, n
        if at < 0:
            return
        take(model, option, at, -number, left, count)
        ables[at] = max(0.0, able(model, p, at, count))


@kernel
def _spare_at_top(here: float, top: float, second: float, total: float, served: float) -> float:
    """QPS that the fullest region may lose: while it stays the fullest, nothing is lost for the others."""
    if here < top:
        return 0.0
    if total - top < served * (1 - SMALL):
        return 0.0
    return (here - second) + max(0.0, (total - top) - served)


@kernel
def assign(
    model: Model, members: npt.NDArray[np.bool_], rent: Floats, soft: Floats, hard: Floats, load: Floats, flow: Floats
) -> float:
    """Sends demand to members, the cheapest first; up to `soft` QPS each, then up to `hard`. Returns unmet QPS."""
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
    """Insertion sort of the first n by cost."""
    for i in range(1, n):
        key, value = order[i], cost[i]
        j = i - 1
        while j >= 0 and cost[j] > value:
            order[j + 1], cost[j + 1] = order[j], cost[j]
            j -= 1
        order[j + 1], cost[j + 1] = key, value


@kernel
def least_choice_first(model: Model) -> Ints:
    """(P,) parts, those with the fewest options first: they may have no other cell to go to."""
    options = model.starts[1:] - model.starts[:-1]
    return np.argsort(options, kind="mergesort")


@kernel
def bearable(model: Model, r: int, most_qps: float, supply: Floats, left: Floats, count: Ints) -> float:
    """QPS that all parts together can do in a region of which nothing is taken yet, at most `most_qps`; by halving.

    Parts of one model may compete for one cell: what each could do alone tells too much.
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
    """$/h of serving from `members`, unmet demand included. Fills count (O, R), load (R,) and flow (S, R)."""
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
    return _finished(model, demand, count, load, flow, left, ables)


@kernel
def _finished(
    model: Model, demand: float, count: Ints, load: Floats, flow: Floats, left: Floats, ables: Floats
) -> float:
    """Makes filled parts survive the loss of a region, relieves them, and counts what all costs ($/h)."""
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
                    cost += priced(model, o, r, count[o, r])
    arrived = 0.0
    for s in range(regions):
        for r in range(regions):
            if flow[s, r] > 0.0:
                arrived += flow[s, r]
                cost += flow[s, r] * model.distance[s, r]
    return cost + model.missed * max(0.0, demand - arrived)


@kernel
def rents(model: Model, supply: Floats) -> Floats:
    """(R,) $/h for a QPS in each region, all parts; infinite where a part cannot run."""
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
def _cover(model: Model, rent: Floats, supply: Floats, members: npt.NDArray[np.bool_]) -> None:
    """A first set of members: greedily the region with the least $/h for a QPS not yet in reach of one."""
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
    """$/h for `load` QPS in one region, each part on its cheapest single option."""
    cost = 0.0
    for p in range(len(model.least)):
        cheapest = np.inf
        for o in range(model.starts[p], model.starts[p + 1]):
            if most(model, o, r, supply) >= 1:
                n = max(int(np.ceil(load / model.rate[o] * (1 - 1e-12))), model.least[p])
                cheapest = min(cheapest, priced(model, o, r, n))
        cost += cheapest
    return cost


class Space(NamedTuple):
    """Room for one model's search, made once for each thread of work."""

    counts: Ints
    load: Floats
    flow: Floats
    left: Floats
    hard: Floats
    ables: Floats


@kernel
def space(model: Model, supply: Floats) -> Space:
    """Room for a model of this shape."""
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
def _cost(
    model: Model,
    members: npt.NDArray[np.bool_],
    rent: Floats,
    soft: Floats,
    supply: Floats,
    scale: float,
    room: Space,
) -> float:
    return evaluate(
        model, members, rent, soft, supply, scale, room.counts, room.load, room.flow, room.left, room.hard, room.ables
    )


class Best(NamedTuple):
    """The cheapest configuration so far: its $/h (in an array of one), replicas, flows and loads."""

    cost: Floats
    counts: Ints
    flow: Floats
    load: Floats


@kernel
def _keep(best: Best, cost: float, room: Space) -> None:
    if cost < best.cost[0] * (1 - 1e-12):
        best.cost[0] = cost
        best.counts[:] = room.counts
        best.flow[:] = room.flow
        best.load[:] = room.load


@kernel
def _try(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    level: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
) -> float:
    """The cost of serving from `members`, each taking `level` QPS before the dearer ones get any."""
    soft[:] = level
    value = _cost(model, members, rent, soft, supply, scale, room)
    _keep(best, value, room)
    return value


@kernel
def _survivable(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    total: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
    effort: int,
) -> float:
    """Where a region may be lost: the best level of load, with as many members as it takes. Returns the level.

    The lower the level, the less is lost with one region and the more regions hold replicas. Levels tried: the kth part of
    the demand, and whole replicas of each option. Leaves in `members` those that the best level sends load to.
    """
    regions = len(rent)
    everywhere = rent < np.inf
    level, cheapest = total, np.inf
    quick = effort < THOROUGH
    for k in range(1, regions + 1):
        if quick and k > 6 and k not in (8, 10, 12, 15, 20):
            continue
        value = _try(model, rent, supply, scale, total / k * (1 + 1e-9), everywhere, soft, room, best)
        if value < cheapest:
            cheapest, level = value, total / k * (1 + 1e-9)
            members[:] = room.load > 0.0
    if not quick:
        for o in range(len(model.rate)):
            usual = np.floor(level / model.rate[o])
            for n in range(1, 9):
                count = float(n) if n <= 6 else usual + n - 7
                if count < 1.0 or count * model.rate[o] < total / regions or (n > 6 and count <= 6):
                    continue
                if count * model.rate[o] > total + model.rate[o]:
                    continue
                trial = count * model.rate[o] * (1 + 1e-9)
                value = _try(model, rent, supply, scale, trial, everywhere, soft, room, best)
                if value < cheapest:
                    cheapest, level = value, trial
                    members[:] = room.load > 0.0
    return level


@kernel
def configure(model: Model, supply: Floats, scale: float, effort: int, count: Ints, flow: Floats) -> float:
    """The cheapest configuration found: its $/h at the model's prices. Writes count (O, R) and flow (S, R) QPS.

    `supply` (R, H) is what may be taken; `scale` the share of each demand that is served; `effort` the evaluations (none: only
    what runs now is adapted, if anything does).
    """
    regions = supply.shape[0]
    rent = rents(model, supply)
    room = space(model, supply)
    total = model.demand.sum()
    best = Best(np.array([total * model.missed]), count, flow, np.zeros(regions))
    count[:] = 0
    flow[:] = 0.0
    members = np.zeros(regions, dtype=np.bool_)
    soft = np.full(regions, np.inf)
    level = np.inf
    used = 1
    if scale >= 1.0 and model.running.any():
        _keep(best, adapt(model, supply, rent, room), room)
        if effort == 0:
            return best.cost[0]
    if model.survives:
        level = _survivable(model, rent, supply, scale, total, members, soft, room, best, effort)
    else:
        _cover(model, rent, supply, members)
        if members.any():
            used = _grow(model, rent, supply, scale, members, soft, room, best)
    if members.any():
        _exchange(model, rent, supply, scale, level, members, soft, room, best, used, effort)
        soft[:] = level
        if effort >= THOROUGH:
            _levels(model, rent, supply, scale, total, level, members, soft, room, best)
        _squeeze(model, rent, supply, scale, members, soft, room, best, effort)
    return best.cost[0]


@kernel
def _extend(model: Model, p: int, r: int, need: float, left: Floats, count: Ints) -> float:
    """Adds the cheapest replicas of one option until the part does `need` QPS there; returns what it does."""
    here = able(model, p, r, count)
    if here >= need * (1 - SMALL):
        return here
    least = max(1, model.least[p] - held(model, p, r, count))
    best, option, number = np.inf, -1, 0
    for o in range(model.starts[p], model.starts[p + 1]):
        n = max(least, int(np.ceil((need - here) / model.rate[o] * (1 - 1e-12))))
        cost = priced(model, o, r, count[o, r] + n) - priced(model, o, r, count[o, r])
        if n <= most(model, o, r, left) and cost < best:
            best, option, number = cost, o, n
    if option < 0:
        return here
    take(model, option, r, number, left, count)
    return here + number * model.rate[option]


@kernel
def adapt(model: Model, supply: Floats, rent: Floats, room: Space) -> float:
    """What runs now, with as little more as today's demand needs and without what it no longer needs: its $/h.

    Infinite where it does not fit into `supply`. Fills `room` as `evaluate` does.
    """
    regions = len(rent)
    room.counts[:] = model.running
    room.left[:] = supply
    for p in range(len(model.least)):
        for r in range(regions):
            if held(model, p, r, room.counts) < model.least[p]:
                for o in range(model.starts[p], model.starts[p + 1]):
                    room.counts[o, r] = 0
    for o in range(len(model.rate)):
        for r in range(regions):
            room.left[r, model.kind[o]] -= room.counts[o, r] * model.units[o]
    soft = np.empty(regions)
    for r in range(regions):
        for h in range(supply.shape[1]):
            if room.left[r, h] < -1e-9 * max(1.0, supply[r, h]):
                return np.inf
        soft[r] = np.inf
        for p in range(len(model.least)):
            soft[r] = min(soft[r], able(model, p, r, room.counts))
        room.hard[r] = np.inf
    members = rent < np.inf
    for r in range(regions):
        members[r] = members[r] or soft[r] > 0.0
    way = np.where(rent < np.inf, rent, 0.0)
    for _ in range(3):
        assign(model, members, way, soft, room.hard, room.load, room.flow)
        fits = True
        for r in range(regions):
            if room.load[r] <= 0.0:
                continue
            can = np.inf
            for p in range(len(model.least)):
                can = min(can, _extend(model, p, r, room.load[r], room.left, room.counts))
            if can < room.load[r] * (1 - SMALL):
                room.hard[r] = can
                fits = False
        if fits:
            return _finished(model, model.demand.sum(), room.counts, room.load, room.flow, room.left, room.ables)
    return np.inf


@kernel
def _serves(model: Model, r: int) -> bool:
    """Whether any users reach the region."""
    found = False
    for s in range(len(model.demand)):
        found = found or (model.demand[s] > 0.0 and model.reach[s, r])
    return found


@kernel
def _grow(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
) -> int:
    """Further members in the order of their rent, for as long as one of three helps."""
    here = _try(model, rent, supply, scale, np.inf, members, soft, room, best)
    used, fails = 1, 0
    for r in np.argsort(rent, kind="mergesort"):
        if members[r] or rent[r] == np.inf or not _serves(model, r):
            continue
        members[r] = True
        value = _try(model, rent, supply, scale, np.inf, members, soft, room, best)
        used += 1
        if value < here * (1 - 1e-9):
            here, fails = value, 0
            continue
        members[r] = False
        fails += 1
        if fails >= 3:
            break
    return used


@kernel
def _drop_spared(model: Model, kept: int, order: Ints, members: npt.NDArray[np.bool_]) -> bool:
    """Drops members, dearest first, whose users all reach another one. False where fewer than two can go."""
    dropped = 0
    for i in range(len(order) - 1, -1, -1):
        r = order[i]
        if not members[r] or r == kept:
            continue
        needed = False
        for s in range(len(model.demand)):
            if model.demand[s] > 0.0 and model.reach[s, r]:
                other = False
                for x in range(len(members)):
                    other = other or (x != r and members[x] and model.reach[s, x])
                if not other:
                    needed = True
                    break
        if not needed:
            members[r] = False
            dropped += 1
    return dropped >= 2


@kernel
def _exchange(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    level: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
    used: int,
    effort: int,
) -> int:
    """Drops one member, or takes another in its place, while that helps."""
    order = np.argsort(rent, kind="mergesort")
    trial = members.copy()
    here = best.cost[0]
    improved = True
    while improved and used < effort:
        improved = False
        for x in order:
            if members[x] or rent[x] == np.inf or used >= effort:
                continue
            trial[:] = members
            trial[x] = True
            if not _drop_spared(model, x, order, trial):
                continue
            value = _try(model, rent, supply, scale, level, trial, soft, room, best)
            used += 1
            if value < here * (1 - 1e-9):
                here, improved = value, True
                members[:] = trial
        for r in range(len(members)):
            if not members[r]:
                continue
            for i in range(-1, len(order)):
                if used >= effort:
                    return used
                trial[:] = members
                trial[r] = False
                if i < 0 and not trial.any():
                    continue
                if i >= 0:
                    x = order[i]
                    if members[x] or rent[x] == np.inf:
                        continue
                    trial[x] = True
                value = _try(model, rent, supply, scale, level, trial, soft, room, best)
                used += 1
                if value < here * (1 - 1e-9):
                    here, improved = value, True
                    members[:] = trial
                    break
    return used


@kernel
def _levels(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    total: float,
    level: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
) -> None:
    """Other levels of load for the same members: whole replicas of one option. Leaves the best in `soft`."""
    base = level if level < np.inf else total / members.sum()
    levelled = np.empty_like(soft)
    here = best.cost[0]
    for o in range(len(model.rate)):
        for up in range(2):
            trial = max(1.0, np.floor(base / model.rate[o] * (1 + 1e-9)) + up) * model.rate[o]
            value = _try(model, rent, supply, scale, trial, members, levelled, room, best)
            if value < here * (1 - 1e-12):
                here = value
                soft[:] = levelled


@kernel
def _squeeze(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
    effort: int,
) -> None:
    """Lowers the load of one member to what one replica less of some part can do, while that helps."""
    trial = soft.copy()
    used = 0
    improved = True
    while improved and used < effort:
        improved = False
        for r in range(len(members)):
            for p in range(len(model.least)):
                load = best.load[r]
                if load <= 0.0 or used >= effort:
                    continue
                cheapest, rate = np.inf, 1.0
                for o in range(model.starts[p], model.starts[p + 1]):
                    if best.counts[o, r] and model.price[o, r] / model.rate[o] < cheapest:
                        cheapest, rate = model.price[o, r] / model.rate[o], model.rate[o]
                trial[:] = soft
                trial[r] = np.floor(load / rate * (1 - 1e-9)) * rate
                value = _cost(model, members, rent, trial, supply, scale, room)
                used += 1
                if value < best.cost[0] * (1 - 1e-9):
                    soft[:] = trial
                    _keep(best, value, room)
                    improved = True
