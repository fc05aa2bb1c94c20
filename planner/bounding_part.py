"""The least priced cost of one part of a model, over all regions, with the rules that bind the part as a whole.

Called by `planner.bounding_ascent`. The rules: each group of regions and all regions together reach their totals; a model
that survives the loss of a region reaches the total without its fullest one. For each level of the fullest region that
is a linear program over the convex hulls of the regions' costs, filled greedily; for few replicas it is then solved over
whole replicas, by a dynamic program over the choices that the linear program's prices leave open.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.arrays import Floats, Ints
from planner.bounding_case import MOST_CORNERS, SMALL, UNROUNDED, WHOLE
from planner.compiled import kernel

GRID = 4000
"""Steps of the fullest region's level where replicas are divisible."""
MOST_STATES = 256
"""Sums of levels that the dynamic program tells apart."""
FIRST_GAP = 0.01
"""Share of a part's cost by which whole replicas may exceed the linear program, at the first try."""
LOOSE, HULLS, WHOLES = 0, 1, 2
"""Programs: without the rules on totals; over the regions' hulls; over whole replicas, where they are few."""
UNSET = -2
"""No choice is known yet; -1 is the choice of no replicas."""


class Room(NamedTuple):
    """Space for the bounds of one model. N segments, B bends; the rest as in Case."""

    order: Ints
    """(R, C) classes that reach a region, the most valued first."""
    broad: Floats
    """(R, C + 1) their QPS, summed up to each."""
    gain: Floats
    """(R, C + 1) $/h they are worth, summed up to each."""
    breaks: Ints
    """(R,) how many they are."""
    useful: Ints
    """(P, R) how many of them a part gains from."""
    bend: Floats
    """(B,) levels at which one region's priced cost bends."""
    bend_cost: Floats
    """(B,) its priced cost there."""
    table: Floats
    """(R, K) priced costs of the corners."""
    slope: Floats
    """(N,) of the segments of the regions' hulls."""
    begin: Floats
    end: Floats
    region: Ints
    rank: Ints
    """(N,) segments by slope."""
    spare: Ints
    runs: Ints
    filled: Floats
    """(R,) level of a region in the last fill."""
    last: Ints
    """(R,) segment in which it ends, or -1."""
    target: Floats
    """(G,) levels that the groups must reach."""
    held: Floats
    """(G,) what they hold."""
    toll: Floats
    """(G,) price of one level in a group."""
    peak: Ints
    """(P,) best step of the fullest region, to start the next search from."""
    price: Floats
    """(P,) $/h for one QPS more in total."""
    choice: Ints
    """(P, R) levels chosen in the last program over whole replicas."""
    trial: Ints
    """(R,) levels chosen for one peak."""
    ways: Ints
    """(R,) how many choices a region has."""
    way_index: Ints
    """(R, K + 1) the choices: level by number, -1 for none."""
    way_level: Floats
    way_excess: Floats
    """(R, K + 1) $/h above the region's cheapest choice at the prices."""
    sums: Floats
    """(4, MOST_STATES) two lists of a group's states, two of all groups'."""
    excess: Floats
    parent: npt.NDArray[np.int16]
    """(R + G + 1, MOST_STATES) where each state came from."""
    pick: npt.NDArray[np.int16]
    """(R + G + 1, MOST_STATES) by which choice."""
    kept: npt.NDArray[np.int16]
    """(G + 1, MOST_STATES) states of a group that reach its target."""
    merged: Floats
    """(2, 2 MOST_STATES) states while they are merged."""
    merged_excess: Floats
    merged_parent: npt.NDArray[np.int16]
    merged_pick: npt.NDArray[np.int16]
    work: Ints
    """(1,) states that may still be merged."""


@kernel
def room_for(case):
    """Space for a model of this shape."""
    classes, regions = case.reach.shape
    parts, groups = len(case.mode), len(case.inside)
    bends = 2 * classes + MOST_CORNERS + 4
    n = regions * bends
    return Room(
        np.zeros((regions, classes), np.int64),
        np.zeros((regions, classes + 1)),
        np.zeros((regions, classes + 1)),
        np.zeros(regions, np.int64),
        np.zeros((parts, regions), np.int64),
        np.zeros(bends),
        np.zeros(bends),
        np.zeros((regions, MOST_CORNERS)),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(regions + 1, np.int64),
        np.zeros(regions),
        np.zeros(regions, np.int64),
        np.zeros(groups),
        np.zeros(groups),
        np.zeros(groups),
        np.zeros(parts, np.int64),
        np.zeros(parts),
        np.full((parts, regions), UNSET),
        np.zeros(regions, np.int64),
        np.zeros(regions, np.int64),
        np.zeros((regions, MOST_CORNERS + 1), np.int64),
        np.zeros((regions, MOST_CORNERS + 1)),
        np.zeros((regions, MOST_CORNERS + 1)),
        np.zeros((4, MOST_STATES)),
        np.zeros((4, MOST_STATES)),
        np.zeros((regions + groups + 1, MOST_STATES), np.int16),
        np.zeros((regions + groups + 1, MOST_STATES), np.int16),
        np.zeros((groups + 1, MOST_STATES), np.int16),
        np.zeros((2, 2 * MOST_STATES)),
        np.zeros((2, 2 * MOST_STATES)),
        np.zeros((2, 2 * MOST_STATES), np.int16),
        np.zeros((2, 2 * MOST_STATES), np.int16),
        np.zeros(1, np.int64),
    )


@kernel
def weigh(case, room, value):
    """For each region: the classes in reach by what a QPS of them is worth there, with sums."""
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
        room.breaks[r] = k
        for i in range(k):
            c = order[i]
            room.broad[r, i + 1] = room.broad[r, i] + case.demand[c]
            room.gain[r, i + 1] = room.gain[r, i] + case.demand[c] * (value[c] - case.way[c, r])


@kernel
def _gain(room, r, x, i, k, share, extra):
    """$/h that a part gains from x QPS in a region, if its first i classes fit; k are of use. And how many fit."""
    broad, gain = room.broad[r], room.gain[r]
    while i < k and broad[i + 1] <= x:
        i += 1
    if i == k:
        return share * gain[k] + extra * broad[k], i
    part = (x - broad[i]) / (broad[i + 1] - broad[i])
    return share * (gain[i] + part * (gain[i + 1] - gain[i])) + extra * x, i


@kernel
def _bends(case, room, p, r, k, share, extra):
    """Levels at which the priced cost of a part in a region can bend, and the cost there. Returns how many."""
    fixed, scale = case.count[p, r], case.scale[p]
    level, cost = case.level[p, r], case.cost[p, r]
    at, at_cost = room.bend, room.bend_cost
    n, i, j, up, fit = 0, 0, 0, 0, 0
    while i < case.corners[p, r]:
        gain, fit = _gain(room, r, level[i], fit, k, share, extra)
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
        gain, fit = _gain(room, r, x * scale, fit, k, share, extra)
        if n > 0 and x <= at[n - 1]:
            if x == at[n - 1]:
                at_cost[n - 1] = min(at_cost[n - 1], here - gain)
            continue
        at[n], at_cost[n] = x, here - gain
        n += 1
    return n


@kernel
def _hull(room, r, n, first):
    """Appends the segments of the lower convex hull of the origin and the bends. Returns where they end."""
    m = first
    begin, begin_cost = 0.0, 0.0
    for i in range(n):
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


@kernel
def _ranked(room, n, runs):
    """Segments by slope: merges the regions' ascending runs."""
    source, target, bounds = room.rank, room.spare, room.runs
    for i in range(n):
        source[i] = i
    while runs > 1:
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
        source, target = target, source
    return source[:n]


@kernel
def _fill(case, room, rank, cap, target, groups):
    """Cheapest way to reach all targets with no region above the cap: $/h (infinite if none), and the total's price.

    First each group is filled to its own target, and whatever pays for itself is taken; then all regions to the total.
    """
    filled, last = room.filled, room.last
    filled[:] = 0.0
    last[:] = -1
    total, cost, price = 0.0, 0.0, 0.0
    lacking = 0
    for g in range(groups):
        room.held[g] = 0.0
        room.toll[g] = 0.0
        lacking += room.target[g] > 0.0
    for i in rank:
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
    for i in rank:
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


@kernel
def _target(case, p, qps, peak):
    """Least level, all regions together, at which a part can serve `qps` beside a region of level `peak`."""
    zone = case.cover * UNROUNDED
    if case.mode[p] == WHOLE and qps > 0.0:
        whole = np.ceil(qps / case.scale[p] * (1 - SMALL))
        if qps - (whole - 1) * case.scale[p] > zone:
            return whole + peak
    return max(0.0, qps - zone) / case.scale[p] + peak


@kernel
def _at_peak(case, room, p, rank, m, less, program):
    """Value of the linear program with the fullest region at step m (-1: at any level), and the price of its total."""
    cap, target, groups = np.inf, 0.0, 0
    if program > LOOSE:
        cap, low = _peak(case, p, m)
        target = _target(case, p, case.cover - less, low)
        groups = len(case.inside)
    return _fill(case, room, rank, cap, target, groups)


@kernel
def _peak(case, p, m):
    """Most and least level of the fullest region at step m."""
    if m < 0:
        return np.inf, 0.0
    if case.mode[p] == WHOLE:
        return m + 1.0, m + 1.0
    if m >= GRID:
        return case.peak[p, m - GRID], case.peak[p, m - GRID]
    step = case.total / GRID
    return (m + 1) * step, m * step


@kernel
def _peak_slope(case, room, cap, price):
    """How the value of the last fill grows with the fullest region's level: a subgradient, by the prices of the fill."""
    slope = price
    for r in range(len(case.group)):
        i = room.last[r]
        if i >= 0 and room.filled[r] >= cap:
            g = case.group[r]
            here = max(price, room.toll[g]) if g >= 0 else price
            slope += min(0.0, room.slope[i] - here)
    return slope


@kernel
def _best_peak(case, room, p, rank, less, program, start, first, last):
    """The best step of the fullest region, from the first to the last, and its value: convex in it, so by bisection."""
    low, high = first - 1, last + 1
    low_value, high_value = np.inf, np.inf
    m, reach = min(max(start, first), last), 2
    while high - low > 1:
        value, price = _at_peak(case, room, p, rank, m, less, program)
        if value == np.inf or _peak_slope(case, room, _peak(case, p, m)[0], price) < 0.0:
            low, low_value = m, value
            m = min(m + reach, last) if high > last else (low + high) // 2
        else:
            high, high_value = m, value
            m = max(m - reach, first) if low < first else (low + high) // 2
        m = min(max(m, low + 1), high - 1)
        reach *= 4
    return (low, low_value) if low_value <= high_value else (high, high_value)


@kernel
def part_value(case, room, value, p, split, extra, less, program):
    """Least priced cost of one part if `less` of the QPS that can be served are not; leaves the best fill in the room.

    `split` and `extra` (P, R) say what a part gains from a QPS in a region: a share of its worth, and a sum beside.
    """
    n, runs = 0, 0
    for r in range(len(case.group)):
        if case.count[p, r] == 0:
            continue
        k = 0
        while k < room.breaks[r]:
            c = room.order[r, k]
            if split[p, r] * (value[c] - case.way[c, r]) + extra[p, r] <= 0.0:
                break
            k += 1
        room.useful[p, r] = k
        k = _bends(case, room, p, r, k, split[p, r], extra[p, r])
        room.runs[runs] = n
        n = _hull(room, r, k, n)
        runs += 1
    room.runs[runs] = n
    rank = _ranked(room, n, runs)
    for g in range(len(case.inside)):
        room.target[g] = _target(case, p, case.inside[g] - less, 0.0)
    at, best = -1, np.inf
    if case.survives and program > LOOSE:
        last = int(case.top[p]) - 1 if case.mode[p] == WHOLE else GRID - 1
        at, _ = _best_peak(case, room, p, rank, less, program, room.peak[p], 0, last)
        at = min(max(at, 0), last)
        room.peak[p] = at
    if program == WHOLES and case.peaks[p] > 0 and (case.survives or case.corner[p] >= case.total):
        best, at = _whole_value(case, room, p, rank, at, less, program)
        if at < 0:
            return best
        best = np.inf
    while best == np.inf:  # if there is no room for that much: without the rules on totals the value is lower
        best, price = _at_peak(case, room, p, rank, at, less, program)
        room.price[p] = price / case.scale[p]
        program = LOOSE
    return best


@kernel
def _whole_value(case, room, p, rank, at, less, program):
    """Least priced cost of whole mixes; leaves the choice in the room as one segment for each region.

    From the best peak among the corners down, then up, for as long as the linear program promises more. Returns -1 too,
    or the step of a fullest region beyond the corners at which the linear program is lower than that.
    """
    best = _known_value(case, room, p, less)
    end, middle = GRID + case.peaks[p], -1
    if case.survives:
        middle = GRID + np.searchsorted(case.peak[p, : case.peaks[p]], _peak(case, p, at)[0])
        middle, _ = _best_peak(case, room, p, rank, less, program, middle, GRID, end - 1)
        middle = min(max(middle, GRID), end - 1)
    m, way = middle, -1
    while True:
        value, price = _at_peak(case, room, p, rank, m, less, program)
        if value < best:
            cap, low = _peak(case, p, m)
            here = _program(case, room, p, cap, _target(case, p, case.cover - less, low), price, best)
            if here < best:
                best = here
                room.choice[p] = room.trial
            m += way
        else:
            m = GRID - 1 if way < 0 else end
        if way < 0 and m < GRID:
            m, way = middle + 1, 1
        if middle < 0 or m >= end:
            break
    if case.survives and case.corner[p] < case.total:
        first = min(int(case.corner[p] / case.total * GRID), GRID - 1)
        m, value = _best_peak(case, room, p, rank, less, program, at, first, GRID - 1)
        if value < best:
            return value, m
    if best < np.inf:
        for r in range(len(case.group)):
            i = room.choice[p, r]
            room.last[r] = r if i >= 0 else -1
            if i >= 0:
                room.begin[r], room.end[r], room.filled[r] = 0.0, case.level[p, r, i], case.level[p, r, i]
        return best, -1
    return best, at if case.survives else 0


@kernel
def _known_value(case, room, p, less):
    """Priced cost of the choice that was best last time; infinite if there is none or it misses a target."""
    cost, total, peak = 0.0, 0.0, 0.0
    room.held[:] = 0.0
    for r in range(len(case.group)):
        i = room.choice[p, r]
        if i == UNSET:
            return np.inf
        if i < 0 or case.count[p, r] == 0:
            continue
        level = case.level[p, r, i]
        cost += room.table[r, i]
        total += level
        peak = max(peak, level)
        if case.group[r] >= 0:
            room.held[case.group[r]] += level
    for g in range(len(case.inside)):
        if room.held[g] < room.target[g] * (1 - 1e-12):
            return np.inf
    if total < _target(case, p, case.cover - less, peak if case.survives else 0.0) * (1 - 1e-12):
        return np.inf
    return cost


@kernel
def _program(case, room, p, peak, target, price, limit):
    """Least cost, below `limit`, of whole choices that reach all targets, no region above the peak; else infinite.

    At the prices of the linear program every choice costs its bound and an excess >= 0: only small ones matter.
    """
    for g in range(len(case.inside)):
        room.toll[g] = max(0.0, room.toll[g] - price)
    gap, known, excess = np.inf, False, np.inf
    while True:
        bound = _ways(case, room, p, peak, target, price, gap)
        if known:
            excess = _least_excess(case, room, target, price, gap)
        if room.work[0] <= 0:
            room.trial[:] = UNSET
            return bound
        if bound >= limit or excess < np.inf or (known and (limit < np.inf or gap == np.inf)):
            return bound + excess
        if limit < np.inf:
            gap = limit - bound
        else:
            gap = 4 * gap if known else FIRST_GAP * max(abs(bound), SMALL)
            gap = gap if gap < 100 * abs(bound) else np.inf
        known = True


@kernel
def _ways(case, room, p, peak, target, price, gap):
    """Sets each region's choices up to the peak with their excess, those within the gap; returns the bound at the prices."""
    bound = price * target
    for g in range(len(case.inside)):
        bound += room.toll[g] * room.target[g]
    for r in range(len(case.group)):
        here = price + (room.toll[case.group[r]] if case.group[r] >= 0 else 0.0)
        n, least = case.corners[p, r], 0.0
        for i in range(n):
            if case.level[p, r, i] > peak:
                n = i
                break
            least = min(least, room.table[r, i] - here * case.level[p, r, i])
        bound += least
        k = 0
        for i in range(-1, n):
            level = case.level[p, r, i] if i >= 0 else 0.0
            excess = (room.table[r, i] - here * level if i >= 0 else 0.0) - least
            if excess <= gap:
                room.way_index[r, k], room.way_level[r, k], room.way_excess[r, k] = i, level, excess
                k += 1
        room.ways[r] = k
    return bound


@kernel
def _least_excess(case, room, target, price, gap):
    """Least excess, at most the gap, of choices that reach all targets: a dynamic program, group by group."""
    regions, groups = len(case.group), len(case.inside)
    sums, excess = room.sums, room.excess
    size, now = 1, 2  # all groups so far
    sums[now, 0], excess[now, 0] = 0.0, 0.0
    for g in range(groups + 1):
        own = g < groups
        need, toll = (room.target[g], room.toll[g]) if own else (0.0, 0.0)
        if groups == 0:
            need, toll = target, price
        most, least, shift = 0.0, 0.0, 0.0
        for r in range(regions):
            if case.group[r] == (g if own else -1):
                most += room.way_level[r, room.ways[r] - 1]
                least += room.way_level[r, 0]
        n, at = 1, 0
        sums[at, 0], excess[at, 0] = 0.0, 0.0
        for r in range(regions):
            if case.group[r] != (g if own else -1):
                continue
            ways = room.ways[r]
            most -= room.way_level[r, ways - 1]
            least -= room.way_level[r, 0]
            if ways == 1:
                shift += room.way_level[r, 0]
                continue
            n = _extend(
                room,
                at,
                n,
                room.way_level[r],
                room.way_excess[r],
                ways,
                r,
                gap,
                need - shift,
                toll,
                price + toll if groups > 0 else price,
                most,
                least,
            )
            at = 1 - at
        k = 0
        for i in range(n):  # those that reach the group's target
            x = sums[at, i] + shift
            if own and x < need * (1 - 1e-12):
                continue
            more = excess[at, i] + (toll * max(0.0, x - need) if own else 0.0)
            if more <= gap:
                room.kept[g, k] = i
                sums[1 - at, k], excess[1 - at, k] = x, more
                k += 1
        if k == 0:
            return np.inf
        size = _extend(
            room,
            now,
            size,
            sums[1 - at],
            excess[1 - at],
            k,
            regions + g,
            gap,
            target if g == groups else 0.0,
            price if g == groups else 0.0,
            price,
            0.0,
            0.0,
        )
        now = 5 - now
        if size == 0:
            return np.inf
    best, final = np.inf, -1
    for i in range(size):
        if sums[now, i] >= target * (1 - 1e-12):
            here = excess[now, i] + price * max(0.0, sums[now, i] - target)
            if here < best and here <= gap:
                best, final = here, i
    if final >= 0:
        _trace(case, room, final)
    return best


@kernel
def _extend(room, at, n, level, excess, ways, stage, gap, need, toll, price, most, least):
    """States after one more choice, ascending: from list `at` to its neighbour. Returns how many.

    Drops those that exceed the gap, that the `most` to come cannot bring to `need`, and that others beat. Where there are
    too many, neighbours count as the larger at the lesser's cost.
    """
    old, old_excess = room.sums[at], room.excess[at]
    spacing = SMALL * (old[n - 1] + level[ways - 1])
    low = need - SMALL * (old[n - 1] + level[ways - 1] + abs(need)) - most
    size, now = 0, 0
    for a in range(ways):  # merges the states by this way into those by the ways before
        to = 1 - now
        k, i, j = 0, 0, 0
        while i < size or j < n:
            x = old[j] + level[a] if j < n else np.inf
            if i < size and room.merged[now, i] <= x:
                x, e = room.merged[now, i], room.merged_excess[now, i]
                source, way = room.merged_parent[now, i], room.merged_pick[now, i]
                i += 1
            else:
                e, source, way = old_excess[j] + excess[a], j, a
                j += 1
                if x < low or e + toll * max(0.0, x + least - need) > gap:
                    continue
            while k > 0 and (room.merged_excess[to, k - 1] + price * (room.merged[to, k - 1] - x) >= e):
                k -= 1  # beaten by a larger sum at no greater cost
            if k > 0 and x - room.merged[to, k - 1] <= spacing:
                room.merged_excess[to, k - 1] -= price * (x - room.merged[to, k - 1])
                room.merged[to, k - 1] = x
                continue
            room.merged[to, k], room.merged_excess[to, k] = x, e
            room.merged_parent[to, k], room.merged_pick[to, k] = source, way
            k += 1
        if k > MOST_STATES:
            for i in range((k + 1) // 2):
                u, v = 2 * i, min(2 * i + 1, k - 1)
                # of the lesser: none is beaten, so that is the smaller sum; it keeps its cost
                e = room.merged_excess[to, u] - price * (room.merged[to, v] - room.merged[to, u])
                room.merged[to, i], room.merged_excess[to, i] = room.merged[to, v], e
                room.merged_parent[to, i], room.merged_pick[to, i] = room.merged_parent[to, u], room.merged_pick[to, u]
            k = (k + 1) // 2
        size, now = k, to
        room.work[0] -= k + n
    to = at ^ 1
    room.sums[to, :size] = room.merged[now, :size]
    room.excess[to, :size] = room.merged_excess[now, :size]
    room.parent[stage, :size] = room.merged_parent[now, :size]
    room.pick[stage, :size] = room.merged_pick[now, :size]
    return size


@kernel
def _trace(case, room, final):
    """Writes the choice that leads to a final state into `trial`."""
    regions, groups = len(case.group), len(case.inside)
    state = final
    for g in range(groups, -1, -1):
        here = room.kept[g, room.pick[regions + g, state]]
        state = room.parent[regions + g, state]
        for r in range(regions - 1, -1, -1):
            if case.group[r] != (g if g < groups else -1):
                continue
            if room.ways[r] == 1:
                room.trial[r] = room.way_index[r, 0]
            else:
                room.trial[r] = room.way_index[r, room.pick[r, here]]
                here = room.parent[r, here]
