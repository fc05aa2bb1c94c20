"""One model for the bound: classes of users, groups of regions, and the levels at which parts can run.

Called by `planner.bound.bound`. A *class* is users who reach the same regions. A *level* is the throughput of a part in
one region: replicas if it has one option, else QPS. A *group* is a set of regions that must serve all of some classes'
demand.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.bound.levels import MOST_CORNERS, SMALL, corner_levels, divisible_levels, mixes_of, whole_levels
from planner.core.arrays import Floats, Ints
from planner.jit import kernel

Flags = npt.NDArray[np.bool_]

UNROUNDED = 1e-4
"""Share of the demand that the rules on totals ignore, so that leaving that little unmet never pays."""
MOST_PAIRED = 24
"""Number of classes up to which groups are searched among the regions of two of them, not only of one."""
MOST_STEPS = 2000
"""Steps in the choice of the groups."""

WHOLE, MIXED = 0, 1
"""Storage of a part's levels: whole replicas of its one option; mixes of its options."""


class Case(NamedTuple):
    """C classes, P parts, R regions, G groups, K levels."""

    demand: Floats
    """(C,) QPS."""
    reach: Flags
    """(C, R)"""
    way: Floats
    """(C, R) $/h for a QPS on this route."""
    missed: float
    survives: bool
    total: float
    """QPS in reach of some region."""
    cover: float
    """QPS that all parts can serve together, at most."""
    group: Ints
    """(R,) group of a region, or -1."""
    inside: Floats
    """(G,) QPS that a group must serve if all servable demand is served."""
    mode: Ints
    """(P,)"""
    scale: Floats
    """(P,) QPS of one level."""
    top: Floats
    """(P,) level beyond which more is useless in any region."""
    corner: Floats
    """(P,) highest level up to which all mixes are distinguished; MIXED only."""
    corners: Ints
    """(P, R) number of a part's levels in a region that are those mixes."""
    levels: Ints
    """(P, R) number of levels of a part in a region; 0 if it cannot run there."""
    level: Floats
    """(P, R, K) ascending; beyond the corners the cost is linear between two of them."""
    cost: Floats
    """(P, R, K) $/h of a level."""
    peaks: Ints
    """(P,) number of entries in `peak`; MIXED only."""
    peak: Floats
    """(P, R x K) the corners of a part in any region, ascending."""
    rent: Floats
    """(P, R) $/h a QPS of the demand in reach; infinite if a part cannot run there."""
    forced: Flags
    """(R,) regions that must serve in the current branch."""
    crest: Floats
    """(2,) QPS, least and most, of the region that serves most, in the current branch."""


@kernel
def holding(shop):
    """Return (P, R) whether a part can run in a region."""
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
    """Group users by the regions they reach.

    (C,) QPS, (C, R) reach, (C, R) cost of the route, and QPS that reach none.
    """
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
    """Return the QPS, at most `total`, that every part can serve, without its largest region if the model survives."""
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
def group_regions(shop, demand, reach):
    """Return disjoint groups of regions: (R,) group or -1, and (G,) QPS that each must serve.

    Chosen among the regions in reach of one class, or of two, so that whole replicas for all groups cost most.
    """
    classes, regions = reach.shape
    most = classes * (classes + 1) // 2 if classes <= MOST_PAIRED else classes
    sets = np.zeros((most, regions), np.bool_)
    load, worth = np.zeros(len(sets)), np.zeros(len(sets))
    n = 0
    for c in range(classes):
        for d in range(c + 1 if classes <= MOST_PAIRED else 1):
            here = reach[c] | reach[d if classes <= MOST_PAIRED else c]
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
    """Return $/h of whole replicas for a load in the cheapest of some regions, each part on its cheapest option."""
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
    """Return (N,) the disjoint sets of the highest total worth.

    Ties go to those of fewer regions, then to the first found.
    """
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
    """Return the model with its levels."""
    parts, regions = holds.shape
    total = demand.sum()
    group, inside = group_regions(shop, demand, reach)
    inside = np.maximum(0.0, inside - (demand.sum() - cover))  # that much may be unmet anywhere
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
        np.zeros(regions, np.bool_),
        np.array([0.0, total]),
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
            case.rent[p, r] = cost_at(case, p, r, load) / load if case.levels[p, r] > 0 else np.inf
    return case


@kernel
def _set_levels(shop, useful, case, p):
    """Fill the levels of a part. Throughput beyond a region's demand counts for nothing, unless the model survives."""
    a, b = shop.starts[p], shop.starts[p + 1]
    regions = useful.shape[1]
    if b - a == 1:
        case.mode[p] = WHOLE
        case.scale[p] = shop.rate[a]
        for r in range(regions):
            if useful[p, r]:
                qps = case.total if shop.survives else case.rent[p, r]
                top = np.ceil(qps / shop.rate[a] * (1 - SMALL))
                case.top[p] = max(case.top[p], top)
                case.levels[p, r] = whole_levels(shop, p, r, top, case.level[p, r], case.cost[p, r])
        return
    case.mode[p] = MIXED
    for r in range(regions):
        if useful[p, r]:
            case.top[p] = max(case.top[p], case.total if shop.survives else case.rent[p, r])
    limit, mixes, counts = mixes_of(shop.rate[a:b], shop.least[p], case.top[p])
    for r in range(regions):
        if useful[p, r]:
            top = case.total if shop.survives else case.rent[p, r]
            room = MOST_CORNERS - 2 * (b - a) - 4
            n, cut = corner_levels(shop, p, r, mixes, counts, top, room, case.level[p, r], case.cost[p, r])
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
            case.levels[p, r] = n
            if top > limit:
                beyond = divisible_levels(shop, p, r, top, limit, case.level[p, r, n:], case.cost[p, r, n:])
                case.levels[p, r] += beyond


@kernel
def cost_at(case, p, r, qps):
    """Return the $/h of the least level of a part in a region that reaches `qps`, or of its highest level."""
    n = case.levels[p, r]
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
    """Set the corners that the fullest region of a part may have."""
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
