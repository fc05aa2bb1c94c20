"""One model as the bound sees it: classes of users, groups of regions, and the levels at which parts can run.

Called by `planner.bounding`. A *class* is users who reach the same regions. A *level* is what a part can do in one region:
replicas where it has one option, else QPS. A *group* is a set of regions that must serve all of some classes' demand.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.arrays import Floats, Ints
from planner.compiled import kernel

Flags = npt.NDArray[np.bool_]

SMALL = 1e-9
"""Relative: sums of floats are not exact."""
UNROUNDED = 1e-4
"""Share of the demand that the rules on totals let go, so that leaving so little unmet never pays."""
MOST_CORNERS = 48
"""Levels of one part in one region that are told apart."""
MOST_MIXES = 1000
"""Mixes of options that are told apart, roughly; replicas in larger mixes count as divisible."""
MOST_STEPS = 2000
"""Steps in the choice of the groups."""

WHOLE, MIXED = 0, 1
"""How a part's levels are held: whole replicas of its one option; mixes of its options."""


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


class Case(NamedTuple):
    """C classes, P parts, R regions, G groups, K levels."""

    demand: Floats
    """(C,) QPS."""
    reach: Flags
    """(C, R)"""
    way: Floats
    """(C, R) $/h for a QPS on this way."""
    missed: float
    survives: bool
    total: float
    """QPS in reach of some region."""
    cover: float
    """QPS that all parts can serve together, at most."""
    group: Ints
    """(R,) group of a region, or -1."""
    inside: Floats
    """(G,) QPS that a group must serve."""
    mode: Ints
    """(P,)"""
    scale: Floats
    """(P,) QPS of one level."""
    top: Floats
    """(P,) level that holds the whole demand."""
    corner: Floats
    """(P,) highest level up to which all mixes are told apart; MIXED only."""
    corners: Ints
    """(P, R) how many of a part's levels in a region are those mixes."""
    count: Ints  # type: ignore[assignment]  # hides tuple.count, which no kernel calls
    """(P, R) levels held for a part in a region; 0 where it cannot run."""
    level: Floats
    """(P, R, K) ascending; beyond the corners the cost is linear between two of them."""
    cost: Floats
    """(P, R, K) $/h of a level."""
    peaks: Ints
    """(P,) how many of `peak` are held; MIXED only."""
    peak: Floats
    """(P, R x K) the corners of a part in any region, ascending."""
    rent: Floats
    """(P, R) $/h a QPS of the demand in reach; infinite where a part cannot run."""


@kernel
def holding(shop):
    """(P, R) whether a part can run in a region."""
    parts, regions = len(shop.least), shop.most.shape[1]
    holds = np.zeros((parts, regions), np.bool_)
    for p in range(parts):
        for r in range(regions):
            number = 0
            for o in range(shop.starts[p], shop.starts[p + 1]):
                number += shop.most[o, r]
            holds[p, r] = number >= max(1, shop.least[p])
    return holds


@kernel
def classes_of(shop, holds):
    """Users by the regions they reach: (C,) QPS, (C, R) reach, (C, R) cost of the way, and QPS that reach none."""
    users, regions = shop.rtt.shape
    demand = np.zeros(users)
    reach = np.zeros((users, regions), np.bool_)
    way = np.zeros((users, regions))
    n, lost = 0, 0.0
    for s in range(users):
        if shop.qps[s] <= 0.0:
            continue
        some = False
        for r in range(regions):
            here = shop.rtt[s, r] <= shop.tolerance
            for p in range(len(holds)):
                here = here and holds[p, r]
            reach[n, r] = here
            way[n, r] = shop.latency * shop.rtt[s, r]
            some = some or here
        if not some:
            lost += shop.qps[s]
            continue
        at = n
        for c in range(n if shop.latency == 0.0 else 0):
            if (reach[c] == reach[n]).all():
                at = c
                break
        if at == n:
            demand[n] = 0.0
            n += 1
        demand[at] += shop.qps[s]
    return demand[:n].copy(), reach[:n].copy(), way[:n].copy(), lost


@kernel
def coverable(shop, holds, total):
    """QPS, at most `total`, that every part can do, without its largest region where the model survives."""
    cover = total
    for p in range(len(holds)):
        able, largest = 0.0, 0.0
        for r in range(holds.shape[1]):
            here = 0.0
            for o in range(shop.starts[p], shop.starts[p + 1]):
                here += shop.most[o, r] * shop.rate[o] if holds[p, r] else 0.0
            able += here
            largest = max(largest, here)
        cover = min(cover, able - largest if shop.survives else able)
    return cover


@kernel
def grouped(shop, demand, reach):
    """Disjoint groups of regions: (R,) group or -1, and (G,) QPS that each must serve.

    Chosen among the regions in reach of one class, or of two, so that whole replicas for all groups cost most.
    """
    classes, regions = reach.shape
    sets = np.zeros((classes * (classes + 1) // 2, regions), np.bool_)
    load, worth = np.zeros(len(sets)), np.zeros(len(sets))
    n = 0
    for c in range(classes):
        for d in range(c + 1):
            here = reach[c] | reach[d]
            known = False
            for i in range(n):
                known = known or (sets[i] == here).all()
            if known:
                continue
            sets[n] = here
            for e in range(classes):
                if not (reach[e] & ~here).any():
                    load[n] += demand[e]
            worth[n] = _whole_cost(shop, here, load[n])
            n += 1
    best = _disjoint(sets[:n], worth[:n])
    group = np.full(regions, -1)
    inside = np.zeros(best.sum())
    k = 0
    for i in range(n):
        if best[i]:
            for r in range(regions):
                if sets[i, r]:
                    group[r] = k
            inside[k] = load[i]
            k += 1
    return group, inside


@kernel
def _whole_cost(shop, regions, load):
    """$/h of whole replicas for a load in the cheapest of some regions, each part on its cheapest option."""
    cost = 0.0
    for p in range(len(shop.least)):
        cheapest = np.inf
        for o in range(shop.starts[p], shop.starts[p + 1]):
            number = np.ceil(load / shop.rate[o] * (1 - SMALL))
            for r in range(len(regions)):
                if regions[r] and shop.most[o, r] > 0:
                    cheapest = min(cheapest, number * shop.price[o, r])
        cost += cheapest
    return cost


@kernel
def _disjoint(sets, worth):
    """(N,) the disjoint sets that are worth most together; of equals those of fewer regions, then the first found."""
    n = len(sets)
    size = np.zeros(n)
    for i in range(n):
        size[i] = sets[i].sum()
    order = np.argsort(size - 1e3 * worth / max(worth.max(), 1e-300), kind="mergesort")
    clash = np.zeros((n, n), np.bool_)
    for i in range(n):
        for j in range(n):
            clash[i, j] = (sets[order[i]] & sets[order[j]]).any()
    stack = np.zeros(n + 1, np.int64)
    best = np.zeros(n, np.bool_)
    best_worth, best_size = -1.0, 0.0
    depth, at, value, total = 0, 0, 0.0, 0.0
    for _ in range(MOST_STEPS):
        while at < n:
            free = True
            for d in range(depth):
                free = free and not clash[stack[d], at]
            if free:
                break
            at += 1
        if at < n:
            stack[depth] = at
            depth += 1
            value += worth[order[at]]
            total += size[order[at]]
            at += 1
            if value > best_worth * (1 + SMALL) or (value > best_worth * (1 - SMALL) and total < best_size):
                best_worth, best_size = value, total
                best[:] = False
                for d in range(depth):
                    best[order[stack[d]]] = True
        elif depth == 0:
            break
        else:
            depth -= 1
            value -= worth[order[stack[depth]]]
            total -= size[order[stack[depth]]]
            at = stack[depth] + 1
    return best


@kernel
def case_of(shop, holds, demand, reach, way, cover):
    """The model with its levels."""
    parts, regions = holds.shape
    total = demand.sum()
    group, inside = grouped(shop, demand, reach)
    useful = holds.copy()
    for r in range(regions):
        if not shop.survives and not reach[:, r].any():
            useful[:, r] = False
    case = Case(
        demand,
        reach,
        way,
        shop.missed,
        shop.survives,
        total,
        cover,
        group,
        inside,
        np.zeros(parts, np.int64),
        np.ones(parts),
        np.zeros(parts),
        np.zeros(parts),
        np.zeros((parts, regions), np.int64),
        np.zeros((parts, regions), np.int64),
        np.zeros((parts, regions, MOST_CORNERS)),
        np.zeros((parts, regions, MOST_CORNERS)),
        np.zeros(parts, np.int64),
        np.zeros((parts, regions * MOST_CORNERS)),
        np.full((parts, regions), np.inf),
    )
    for r in range(regions):
        load = 0.0
        for c in range(len(demand)):
            load += demand[c] if reach[c, r] else 0.0
        case.rent[:, r] = load if load > 0.0 else total
    for p in range(parts):
        _set_levels(shop, useful, case, p)
        _set_peaks(case, p)
        for r in range(regions):
            load = case.rent[p, r]
            case.rent[p, r] = cost_at(case, p, r, load) / load if case.count[p, r] > 0 else np.inf
    return case


@kernel
def _set_levels(shop, useful, case, p):
    """Fills the levels of a part. More than a region can serve counts for nothing, unless the model survives."""
    a, b = shop.starts[p], shop.starts[p + 1]
    regions = useful.shape[1]
    case.top[p] = case.total
    if b - a == 1:
        case.mode[p] = WHOLE
        case.scale[p] = shop.rate[a]
        case.top[p] = np.ceil(case.total / shop.rate[a] * (1 - SMALL))
        for r in range(regions):
            if useful[p, r]:
                top = case.top[p]
                if not shop.survives:
                    top = np.ceil(case.rent[p, r] / shop.rate[a] * (1 - SMALL))
                case.count[p, r] = _whole_levels(shop, p, r, top, case.level[p, r], case.cost[p, r])
        return
    case.mode[p] = MIXED
    limit, mixes, counts = _mixes(shop.rate[a:b], shop.least[p], case.total)
    for r in range(regions):
        if useful[p, r]:
            top = case.total if shop.survives else case.rent[p, r]
            room = MOST_CORNERS - 2 * (b - a) - 4
            n, cut = _corner_levels(shop, p, r, mixes, counts, top, room, case.level[p, r], case.cost[p, r])
            case.corners[p, r] = n
            limit = min(limit, cut)
    case.corner[p] = limit
    for r in range(regions):
        if useful[p, r]:
            top = case.total if shop.survives else case.rent[p, r]
            n = case.corners[p, r]
            while n > 0 and case.level[p, r, n - 1] > limit:
                n -= 1
            case.corners[p, r] = n
            case.count[p, r] = n
            if top > limit:
                beyond = _divisible_levels(shop, p, r, top, limit, case.level[p, r, n:], case.cost[p, r, n:])
                case.count[p, r] += beyond


@kernel
def replicas_cost(shop, o, r, n):
    """$/h of n replicas of an option."""
    return n * shop.price[o, r] + shop.move * max(0.0, n - shop.running[o, r])


@kernel
def _whole_levels(shop, p, r, top, level, cost):
    """One option: levels are replicas."""
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
def _mixes(rate, least, total):
    """Mixes of options of which none has a replica too many: a limit, (N,) QPS up to it, ascending, and (N, O).

    All mixes up to the limit are among them, and all that do the total where the limit is the total.
    """
    options, minimum = len(rate), max(1, least)
    most = np.zeros(options, np.int64)
    limit = total
    while True:
        number = 1.0
        for o in range(options):
            most[o] = max(int(np.ceil(limit / rate[o] * (1 - SMALL))), minimum)
            number *= most[o] + 1
        if number <= MOST_MIXES or limit < 1e-3 * total:
            break
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
def _corner_levels(shop, p, r, mixes, counts, top, room, level, cost):
    """The least of the mixes that no other beats, and the highest level up to which none is left out."""
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
            k -= 1
        if k >= room:
            cut = level[k % room]
        level[k % room], cost[k % room] = x, here
        k += 1
    n = min(k, room)
    if k > room:  # only the last ones fitted: from the first free place on, and around
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
    """Moves the figures so that the one at `first` comes first."""
    figures[:n] = np.concatenate((figures[first:n], figures[:first]))


@kernel
def _divisible_levels(shop, p, r, total, above, level, cost):
    """Levels above a limit, replicas beyond the first counting as divisible. Returns how many.

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


@kernel
def cost_at(case, p, r, qps):
    """$/h of the least level of a part in a region that does `qps`, or of its highest."""
    n = case.count[p, r]
    x = qps / case.scale[p]
    if case.mode[p] == WHOLE:
        x = np.ceil(x * (1 - SMALL))
    level, cost = case.level[p, r], case.cost[p, r]
    i = 0
    while i < n and level[i] < x * (1 - SMALL):
        i += 1
    if i == n:
        return cost[n - 1]
    if i == 0 or i < case.corners[p, r] or level[i] <= level[i - 1]:
        return cost[i]
    return cost[i - 1] + (cost[i] - cost[i - 1]) * (x - level[i - 1]) / (level[i] - level[i - 1])


@kernel
def _set_peaks(case, p):
    """The corners that the fullest region of a part may have."""
    n = 0
    for r in range(case.reach.shape[1]):
        for i in range(case.corners[p, r]):
            case.peak[p, n] = case.level[p, r, i]
            n += 1
    case.peak[p, :n] = np.sort(case.peak[p, :n])
    k = 0
    for i in range(n):
        if k == 0 or case.peak[p, i] > case.peak[p, k - 1]:
            case.peak[p, k] = case.peak[p, i]
            k += 1
    case.peaks[p] = k
