"""Number of replicas of each part: kernels that fill, spread and relieve the parts of one model in given regions.

Called by `planner.fleet.demand_assignment`, `planner.fleet.configuration` and `planner.fleet.polishing`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.core.arrays import Floats, Ints
from planner.jit import kernel

SMALL = 1e-9
"""Relative slack on capacities: sums of floats are not exact."""

FEWER, FEW = 3, 20
"""If `need` fits at most FEW of an option, mixes with up to FEWER less of it are tried."""


class Model(NamedTuple):
    """One model for the kernels: S users' regions, R regions, P parts, O options."""

    demand: Floats
    """(S,) QPS."""
    reach: npt.NDArray[np.bool_]
    """(S, R) whether a region serves these users within the tolerance."""
    distance: Floats
    """(S, R) $/h for a QPS on this route."""
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
def price_replicas(model: Model, o: int, r: int, n: int) -> float:
    """Return $/h of n replicas."""
    return n * model.price[o, r] + model.move * max(0, n - model.running[o, r])


@kernel
def most(model: Model, o: int, r: int, left: Floats) -> int:
    """Return the replicas that fit into the rest of the cell."""
    return int(np.floor(left[r, model.kind[o]] / model.units[o] * (1 + 1e-12) + 1e-9))


@kernel
def take(model: Model, o: int, r: int, n: int, left: Floats, count: Ints) -> None:
    """Add n replicas, or remove them if n is negative."""
    count[o, r] += n
    left[r, model.kind[o]] -= n * model.units[o]


@kernel
def count_replicas(model: Model, p: int, r: int, count: Ints) -> int:
    """Return the replicas of a part in a region."""
    n = 0
    for o in range(model.starts[p], model.starts[p + 1]):
        n += count[o, r]
    return n


@kernel
def able(model: Model, p: int, r: int, count: Ints) -> float:
    """Return the QPS of a part in a region."""
    total = 0.0
    for o in range(model.starts[p], model.starts[p + 1]):
        total += count[o, r] * model.rate[o]
    return total


@kernel
def fill(model: Model, p: int, r: int, need: float, left: Floats, count: Ints) -> float:
    """Add the cheapest replicas for `need` QPS in a region that holds none of the part; return their throughput.

    At most two options are mixed: as many of one as `need` fits, or a few less, the rest of another. The running
    replicas are a further candidate.
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
                    cost = price_replicas(model, i, r, n + x)
                else:
                    if x > 0 and x > most(model, j, r, left):
                        continue
                    cost = price_replicas(model, i, r, n) + price_replicas(model, j, r, x)
                if cost < best:
                    best, bi, bn, bj, bx = cost, i, n, j, x
    if model.move > 0.0:
        kept = _keep_running(model, p, r, need, left, best, count)
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
def _keep_running(model: Model, p: int, r: int, need: float, left: Floats, limit: float, count: Ints) -> float:
    """Take the running replicas, less the superfluous ones, if that is cheaper than `limit` and enough.

    Otherwise return 0.
    """
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
    """Take the cheapest option first, as much of each as fits, up to `need`."""
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
    """Add replicas until the loss of any region leaves `served` QPS; return the worst remainder.

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
            here = count_replicas(model, p, r, count)
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
                cost = price_replicas(model, o, r, count[o, r] + n) - price_replicas(model, o, r, count[o, r])
                if cost / gain < best:
                    best, at, option, number = cost / gain, r, o, n
                if below > n or n > least:  # one less, so that the last one may be of another kind
                    n2 = n - 1
                    if n2 >= least:
                        after = ables[r] + n2 * rate
                        gain = min(n2 * rate - max(0.0, after - top), short)
                        cost = price_replicas(model, o, r, count[o, r] + n2) - price_replicas(model, o, r, count[o, r])
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
    """Add one replica in each of the two cheapest regions when all are level. False if there are no two."""
    done = 0
    taken = -1
    for _ in range(2):
        best, at, option = np.inf, -1, -1
        for r in range(len(ables)):
            if r == taken:
                continue
            least = max(1, model.least[p] - count_replicas(model, p, r, count))
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
    """Drop replicas that neither the load nor the loss of a region nor `least` needs, dearest first."""
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
            here = count_replicas(model, p, r, count)
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
                gain = price_replicas(model, o, r, count[o, r]) - price_replicas(model, o, r, count[o, r] - n)
                if gain > best:
                    best, at, option, number = gain, r, o, n
        if at < 0:
            return
        take(model, option, at, -number, left, count)
        ables[at] = max(0.0, able(model, p, at, count))


@kernel
def _spare_at_top(here: float, top: float, second: float, total: float, served: float) -> float:
    """Return QPS that the fullest region may lose: while it stays the fullest, the others are not affected."""
    if here < top:
        return 0.0
    if total - top < served * (1 - SMALL):
        return 0.0
    return (here - second) + max(0.0, (total - top) - served)


@kernel
def extend(model: Model, p: int, r: int, need: float, left: Floats, count: Ints) -> float:
    """Add the cheapest replicas of one option until the part reaches `need` QPS there; return its throughput."""
    here = able(model, p, r, count)
    if here >= need * (1 - SMALL):
        return here
    least = max(1, model.least[p] - count_replicas(model, p, r, count))
    best, option, number = np.inf, -1, 0
    for o in range(model.starts[p], model.starts[p + 1]):
        n = max(least, int(np.ceil((need - here) / model.rate[o] * (1 - 1e-12))))
        cost = price_replicas(model, o, r, count[o, r] + n) - price_replicas(model, o, r, count[o, r])
        if n <= most(model, o, r, left) and cost < best:
            best, option, number = cost, o, n
    if option < 0:
        return here
    take(model, option, r, number, left, count)
    return here + number * model.rate[option]
