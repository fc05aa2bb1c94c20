"""The priced costs of a part in each region, as convex hulls, and the cheapest way to fill them up to totals.

Called by `planner.bound.part_subproblem`.
"""

# Kernels: numba infers their types, arrays come one by one, and the loops of one search stay in one function.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs, no-warn-return-any

import numpy as np

from planner.bound.subproblem import WHOLE
from planner.bound.workspace import leaf
from planner.jit import kernel


@leaf
@kernel
def weigh(case, room, value):
    """Sort the classes in reach of each region by the worth of a QPS there, with sums."""
    classes, regions = case.reach.shape
    for r in range(regions):
        order, k = room.order[r], 0
        for c in range(classes):
            if not case.reach[c, r]:
                continue
            worth = value[c] - case.way[c, r]
            i = k
            while i > 0 and value[order[i - 1]] - case.way[order[i - 1], r] < worth:
                order[i] = order[i - 1]
                i -= 1
            order[i] = c
            k += 1
        room.breaks[r] = 0
        for i in range(k):
            c = order[i]
            q = min(case.demand[c], case.crest[1] - room.broad[r, i])
            if q <= 0.0:
                break
            room.breaks[r] = i + 1
            room.broad[r, i + 1] = room.broad[r, i] + q
            room.gain[r, i + 1] = room.gain[r, i] + q * (value[c] - case.way[c, r])


@leaf
@kernel
def gain_at(room, r, x, i, k, share, extra):
    """Return the $/h gained by a part from x QPS in a region, and the number of replicas that fit.

    Its first i classes fit, and k are useful.
    """
    broad, gain = room.broad[r], room.gain[r]
    while i < k and broad[i + 1] <= x:
        i += 1
    if i == k:
        return share * gain[k] + extra * broad[k], i
    part = (x - broad[i]) / (broad[i + 1] - broad[i])
    return share * (gain[i] + part * (gain[i + 1] - gain[i])) + extra * x, i


@leaf
@kernel
def bends(case, room, p, r, k, share, extra):
    """Compute the levels at which the priced cost of a part in a region can bend, and the cost there.

    Returns their number.
    """
    fixed, scale = case.levels[p, r], case.scale[p]
    level, cost = case.level[p, r], case.cost[p, r]
    at, at_cost = room.bend, room.bend_cost
    n, i, j, up, fit = 0, 0, 0, 0, np.int64(0)
    while i < case.corners[p, r]:
        gain, fit = gain_at(room, r, level[i], fit, k, share, extra)
        at[i], at_cost[i] = level[i], cost[i] - gain
        room.table[r, i] = at_cost[i]
        i += 1
    n, first = i, i
    while first < fixed and (i < fixed or j < k):
        x = np.inf
        if j < k:
            x = room.broad[r, j + 1] / scale
            if case.mode[p] == WHOLE:
                x = np.ceil(x) if up else np.floor(x)
        if i < fixed and level[i] <= x:
            x, here = level[i], cost[i]
            i += 1
        else:
            j += 1 if up or case.mode[p] != WHOLE else 0
            up = 1 - up if case.mode[p] == WHOLE else 0
            if i == first or i == fixed:
                continue
            slope = (cost[i] - cost[i - 1]) / (level[i] - level[i - 1])
            here = cost[i - 1] + slope * (x - level[i - 1])
        gain, fit = gain_at(room, r, x * scale, fit, k, share, extra)
        if n > 0 and x <= at[n - 1]:
            if x == at[n - 1]:
                at_cost[n - 1] = min(at_cost[n - 1], here - gain)
            continue
        at[n], at_cost[n] = x, here - gain
        n += 1
    return n


@leaf
@kernel
def hull(case, room, r, n, first):
    """Append the segments of the lower convex hull of the origin and the bends. Returns their end.

    If the region must serve, the hull begins at the first bend instead.
    """
    m, skipped = first, 0
    begin, begin_cost = 0.0, 0.0
    if case.forced[r]:
        i = _least_segment(room, r)
        begin, begin_cost, skipped = room.bend[0], room.bend_cost[0], 1
        room.begin[i], room.end[i], room.slope[i], room.base[r] = 0.0, begin, 0.0, begin_cost
    for i in range(skipped, n):
        x, y = room.bend[i], room.bend_cost[i]
        slope = (y - begin_cost) / (x - begin)
        while m > first and slope <= room.slope[m - 1]:
            m -= 1
            begin = room.begin[m]
            begin_cost -= room.slope[m] * (room.end[m] - begin)
            slope = (y - begin_cost) / (x - begin)
        room.begin[m], room.end[m], room.slope[m], room.region[m] = begin, x, slope, r
        m += 1
        begin, begin_cost = x, y
    return m


@leaf
@kernel
def _least_segment(room, r):
    """Return the index of the segment for the least level of a region that must serve."""
    return len(room.begin) - 1 - r


@leaf
@kernel
def rank_segments(room, n, runs):
    """Sort segments by slope: merge the regions' ascending runs."""
    bounds = room.runs
    now = 0
    for i in range(n):
        room.rank[now, i] = i
    while runs > 1:
        source, target = room.rank[now], room.rank[1 - now]
        out, k = 0, 0
        while k < runs:
            a, b = bounds[k], bounds[k + 1]
            c = bounds[k + 2] if k + 1 < runs else b
            i, j = a, b
            for w in range(a, c):
                if i < b and (j >= c or room.slope[source[i]] <= room.slope[source[j]]):
                    target[w] = source[i]
                    i += 1
                else:
                    target[w] = source[j]
                    j += 1
            out += 1
            bounds[out] = c
            k += 2
        runs = out
        now = 1 - now
    if now:
        for i in range(n):
            room.rank[0, i] = room.rank[1, i]


@leaf
@kernel
def _fill_least(case, room, p, cap, groups):
    """Fill the regions that must serve up to their least levels.

    Returns the total level and $/h (infinite if above the cap).
    """
    total, cost = 0.0, 0.0
    for r in range(len(case.group)):
        if case.forced[r] and case.levels[p, r] > 0:
            i = _least_segment(room, r)
            if room.end[i] > cap:
                return 0.0, np.inf
            room.filled[r], room.last[r] = room.end[i], i
            total += room.end[i]
            cost += room.base[r]
            if groups > 0 and case.group[r] >= 0:
                room.held[case.group[r]] += room.end[i]
    return total, cost


@leaf
@kernel
def fill(case, room, p, n, cap, target, groups):
    """Fill all targets at least cost with no region above the cap: $/h (infinite if impossible), and the total's price.

    First each group is filled to its target, and all segments that pay for themselves are taken; then all regions to
    the total.
    """
    filled, last = room.filled, room.last
    filled[:] = 0.0
    last[:] = -1
    price = 0.0
    lacking = 0
    for g in range(groups):
        room.held[g] = 0.0
        room.toll[g] = 0.0
    total, cost = _fill_least(case, room, p, cap, groups)
    if cost == np.inf:
        return np.inf, 0.0
    for g in range(groups):
        lacking += room.target[g] > room.held[g]
    for k in range(n):
        i = room.rank[0, k]
        slope = room.slope[i]
        if slope >= 0.0 and lacking == 0:
            break
        r = room.region[i]
        begin = room.begin[i]
        width = min(room.end[i], cap) - begin
        if width <= 0.0:
            continue
        g = case.group[r] if groups > 0 else -1
        if g >= 0:
            lack = room.target[g] - room.held[g]
            if slope >= 0.0:
                if lack <= 0.0:
                    continue
                width = min(width, lack)
                room.toll[g] = slope
            room.held[g] += width
            lacking -= lack > 0.0 and lack <= width
        elif slope >= 0.0:
            continue
        filled[r], last[r] = begin + width, i
        total += width
        cost += width * slope
    if lacking > 0:
        return np.inf, 0.0
    for k in range(n):
        i = room.rank[0, k]
        if total >= target:
            break
        r = room.region[i]
        begin = max(room.begin[i], filled[r])
        width = min(room.end[i], cap) - begin
        if width <= 0.0:
            continue
        price = room.slope[i]
        width = min(width, target - total)
        filled[r], last[r] = begin + width, i
        total += width
        cost += width * price
    if total < target * (1 - 1e-12):
        return np.inf, 0.0
    return cost, price
