"""The levels at which one part of a model can run in one region, and their cost at given prices.

Called by `planner.bound.subproblem`. A level is the joint throughput of replicas: whole replicas of one option,
undominated mixes of several options, or, if there are too many of those, replicas that count as divisible.
"""

# Kernels: numba infers their types, arrays come one by one, and the loops of one search stay in one function.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs, no-warn-return-any

from typing import NamedTuple

import numpy as np

from planner.core.arrays import Floats, Ints
from planner.jit import kernel

SMALL = 1e-9
"""Relative: sums of floats are not exact."""
MOST_CORNERS = 96
"""Levels of one part in one region that are distinguished."""
MOST_MIXES = 8000
"""Mixes of options that are distinguished, roughly; replicas in larger mixes count as divisible."""


class Shop(NamedTuple):
    """One model's figures. O options, P parts, S users' regions, R regions."""

    qps: Floats
    """(S,)"""
    rtt: Floats
    """(S, R) ms."""
    tolerance: float
    latency: float
    """$/h for a QPS and a ms."""
    missed: float
    """$/h for an unmet QPS."""
    survives: bool
    starts: Ints
    """(P + 1,) options of part p."""
    least: Ints
    """(P,) replicas of a part in a region that holds it."""
    most: Ints
    """(O, R) replicas that fit."""
    price: Floats
    """(O, R) $/h a replica."""
    rate: Floats
    """(O,) QPS a replica."""
    running: Ints
    """(O, R) replicas now."""
    move: float
    """$/h for a replica started."""


@kernel
def replicas_cost(shop, o, r, n):
    """Return the $/h of n replicas of an option."""
    return n * shop.price[o, r] + shop.move * max(0.0, n - shop.running[o, r])


@kernel
def whole_levels(shop, p, r, top, level, cost):
    """Return the levels of one option: replicas."""
    o = shop.starts[p]
    least, running = float(max(1, shop.least[p])), float(shop.running[o, r])
    first, last = min(least, top), min(top, float(shop.most[o, r]))
    level[0], cost[0] = first, replicas_cost(shop, o, r, least)
    n = 1
    if first < running < last:
        level[n], cost[n] = running, replicas_cost(shop, o, r, running)
        n += 1
    if last > first:
        level[n], cost[n] = last, replicas_cost(shop, o, r, last)
        n += 1
    return n


@kernel
def mixes_of(rate, least, total):
    """Return mixes of options without a superfluous replica: a limit, (N,) QPS up to it, ascending, and (N, O).

    All mixes up to the limit are among them, and all that reach the total if the limit is the total.
    """
    options, minimum = len(rate), max(1, least)
    most = np.zeros(options, np.int64)
    limit = total
    while True:
        number = 1.0
        for o in range(options):
            most[o] = max(int(np.ceil(limit / rate[o] * (1 - SMALL))), minimum)
            number *= most[o] + 1
        if number <= MOST_MIXES:
            break
        if limit < 1e-3 * total:  # the least number of replicas is so large that even the fewest have too many mixes
            return 0.0, np.zeros(0), np.zeros((0, options), np.int64)
        limit *= 0.9
    able = np.zeros(int(number))
    counts = np.zeros((len(able), options), np.int64)
    count = np.zeros(options, np.int64)
    enough = total * (1 - SMALL)
    n = 0
    while True:
        o = 0
        while o < options:  # the next mix
            count[o] += 1
            if count[o] <= most[o]:
                break
            count[o] = 0
            o += 1
        if o == options:
            break
        qps, replicas, spare = 0.0, 0, np.inf
        for o in range(options):
            qps += count[o] * rate[o]
            replicas += count[o]
            spare = min(spare, rate[o]) if count[o] > 0 else spare
        if replicas < minimum or (qps - spare >= enough and replicas > minimum) or (qps > limit and limit < total):
            continue
        able[n] = total if qps >= enough else qps
        counts[n] = count
        n += 1
    order = np.argsort(able[:n])
    return limit, able[order], counts[order]


@kernel
def corner_levels(shop, p, r, mixes, counts, top, room, level, cost):
    """Compute the lowest undominated mixes, and the highest level up to which none is left out."""
    a = shop.starts[p]
    k, best, cut = 0, np.inf, np.inf
    for i in range(len(mixes) - 1, -1, -1):
        here = 0.0
        for o in range(counts.shape[1]):
            if counts[i, o] > shop.most[a + o, r]:
                here = np.inf
                break
            here += replicas_cost(shop, a + o, r, float(counts[i, o]))
        if here >= best:
            continue
        best = here
        x = min(mixes[i], top)
        if k > 0 and level[(k - 1) % room] == x:
            cost[(k - 1) % room] = here
            continue
        if k >= room:
            cut = level[k % room]
        level[k % room], cost[k % room] = x, here
        k += 1
    n = min(k, room)
    if k > room:  # only the last ones fitted: from the first free place on, circularly
        cut *= 1 - SMALL
        first = k % room
        _turn(level, first, room)
        _turn(cost, first, room)
    for i in range(n // 2):
        j = n - 1 - i
        level[i], level[j] = level[j], level[i]
        cost[i], cost[j] = cost[j], cost[i]
    return n, cut


@kernel
def _turn(figures, first, n):
    """Rotate the figures so that the one at `first` comes first."""
    figures[:n] = np.concatenate((figures[first:n], figures[:first]))


@kernel
def divisible_levels(shop, p, r, total, above, level, cost):
    """Compute levels above a limit, replicas beyond the first counting as divisible. Returns their number.

    The cost is at least that of the fewest replicas of the cheapest option, and the sum of the options' slopes.
    """
    a, b = shop.starts[p], shop.starts[p + 1]
    least = max(1, shop.least[p])
    slope, width = np.empty(2 * (b - a)), np.empty(2 * (b - a))
    n = 0
    first, cheapest = np.inf, np.inf
    for o in range(a, b):
        if shop.most[o, r] < 1:
            continue
        first = min(first, shop.rate[o] * least)
        kept = least > 1 or shop.running[o, r] > 0
        cheapest = min(cheapest, shop.price[o, r] + (0.0 if kept else shop.move))
        for started in range(2):
            here = (shop.price[o, r] + shop.move * started) / shop.rate[o]
            kept_most = min(shop.running[o, r], shop.most[o, r])
            wide = (shop.most[o, r] - kept_most if started else kept_most) * shop.rate[o]
            if wide <= 0.0:
                continue
            i = n
            while i > 0 and slope[i - 1] > here:
                slope[i], width[i] = slope[i - 1], width[i - 1]
                i -= 1
            slope[i], width[i] = here, wide
            n += 1
    cheapest *= least
    first = min(max(first, above), total)
    points, x, y = 0, 0.0, 0.0
    for i in range(n):
        end = min(x + width[i], total)
        y_end = y + slope[i] * (end - x)
        if points == 0 and end >= first:
            level[0], cost[0] = first, max(cheapest, y + slope[i] * (first - x))
            points = 1
        if points > 0 and y < cheapest < y_end:
            cross = x + (cheapest - y) / slope[i]
            if cross > level[points - 1]:
                level[points], cost[points] = cross, cheapest
                points += 1
        if points > 0 and end > level[points - 1]:
            level[points], cost[points] = end, max(y_end, cheapest)
            points += 1
        x, y = end, y_end
    if points == 0 and above == 0.0:
        level[0], cost[0] = x, max(y, cheapest)
        points = 1
    return points
