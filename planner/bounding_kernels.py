"""Compiled kernels of `planner.bounding`: one model's Lagrangian bound and the ascent that tightens it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from planner.arrays import Floats, Ints

Flags = npt.NDArray[np.bool_]

SMALL = 1e-9
MOST_POINTS = 64
MOST_CORNERS = 40
UNROUNDED = 1e-4
SIDE = 4.0
MOST_STEPS = 2000
MOST_SUMS = 512
EXACT_SUMS = 128
GRID = 1000
CUTS = 14

WHOLE, CORNERS, DIVISIBLE = 0, 1, 2


class Case(NamedTuple):
    """One model. C classes of users, P parts, R regions."""

    demand: Floats
    reach: Flags
    way: Floats
    missed: float
    survives: bool
    total: float
    mode: Ints
    scale: Floats
    need: Floats
    cover: float
    sums: Floats
    sums_count: Ints
    place: npt.NDArray[np.int16]
    together: npt.NDArray[np.int16]
    points: Ints
    level: Floats
    cost: Floats
    peak: Floats
    target: Floats
    peaks: Ints
    rent: Floats
    covers: bool
    group: Ints
    inside: Floats
    rounded: Floats


class Room(NamedTuple):
    """Scratch."""

    order: Ints
    broad: Floats
    gain: Floats
    breaks: Ints
    useful: Ints
    slope: Floats
    begin: Floats
    end: Floats
    region: Ints
    rank: Ints
    spare: Ints
    filled: Floats
    last: Ints
    at: Floats
    cost: Floats
    peak: Ints
    price: Floats
    runs: Ints
    target: Floats
    held: Floats
    table: Floats
    picks: npt.NDArray[np.int16]
    joins: npt.NDArray[np.int16]
    before: npt.NDArray[np.int16]
    front: Floats
    inner: Floats
    next: Floats
    hulls: Floats
    chosen: Ints


@njit(cache=True, nogil=True)
def room_for(classes: int, parts: int, regions: int) -> Room:
    n = regions * MOST_POINTS
    return Room(
        np.zeros((regions, classes), np.int64),
        np.zeros((regions, classes + 1)),
        np.zeros((regions, classes + 1)),
        np.zeros(regions, np.int64),
        np.zeros((parts, regions), np.int64),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(n, np.int64),
        np.zeros(regions),
        np.zeros(regions, np.int64),
        np.zeros(MOST_POINTS + 1),
        np.zeros(MOST_POINTS + 1),
        np.zeros(parts, np.int64),
        np.zeros(parts),
        np.zeros(regions + 1, np.int64),
        np.zeros(regions),
        np.zeros(regions),
        np.zeros((regions, MOST_POINTS)),
        np.zeros((regions, EXACT_SUMS), np.int16),
        np.zeros((regions + 1, EXACT_SUMS), np.int16),
        np.zeros((regions, EXACT_SUMS), np.int16),
        np.zeros(EXACT_SUMS),
        np.zeros(EXACT_SUMS),
        np.zeros(EXACT_SUMS),
        np.zeros(4 * MOST_CORNERS),
        np.zeros(regions, np.int64),
    )


@njit(cache=True, nogil=True)
def gains(case, value, room):
    """For each region: classes by value, and cumulated QPS and $/h."""
    classes, regions = case.reach.shape
    for r in range(regions):
        k = 0
        for c in range(classes):
            if not case.reach[c, r]:
                continue
            worth = value[c] - case.way[c, r]
            i = k
            while i > 0 and value[room.order[r, i - 1]] - case.way[room.order[r, i - 1], r] < worth:
                room.order[r, i] = room.order[r, i - 1]
                i -= 1
            room.order[r, i] = c
            k += 1
        room.breaks[r] = k
        for i in range(k):
            c = room.order[r, i]
            room.broad[r, i + 1] = room.broad[r, i] + case.demand[c]
            room.gain[r, i + 1] = room.gain[r, i] + case.demand[c] * (value[c] - case.way[c, r])


@njit(cache=True, nogil=True)
def useful(case, room, value, r, share, extra):
    """How many classes, in order, a part gains from in a region."""
    k = 0
    while k < room.breaks[r]:
        c = room.order[r, k]
        if share * (value[c] - case.way[c, r]) + extra <= 0.0:
            break
        k += 1
    return k


@njit(cache=True, nogil=True)
def gain_at(room, r, x, k, share, extra):
    """$/h that a part gains from x QPS in a region."""
    i = 0
    while i < k and room.broad[r, i + 1] <= x:
        i += 1
    if i == k:
        return share * room.gain[r, k] + extra * room.broad[r, k]
    part = (x - room.broad[r, i]) / (room.broad[r, i + 1] - room.broad[r, i])
    return share * (room.gain[r, i] + part * (room.gain[r, i + 1] - room.gain[r, i])) + extra * x


@njit(cache=True, nogil=True)
def points(case, room, p, r, k, share, extra):
    """Levels and priced costs at which the priced cost of part p in region r can bend. Returns how many."""
    fixed = case.points[p, r]
    scale = case.scale[p]
    n = 0
    level, cost = case.level, case.cost
    if case.mode[p] == CORNERS:
        for i in range(fixed):
            room.at[i] = level[p, r, i]
            room.cost[i] = cost[p, r, i] - gain_at(room, r, level[p, r, i], k, share, extra)
        return fixed
    first, top = level[p, r, 0], level[p, r, fixed - 1]
    j = 0  # next break of the gain
    half = 0
    i = 0
    while i < fixed or j < k:
        dynamic = np.inf
        if j < k:
            x = room.broad[r, j + 1] / scale
            if case.mode[p] == WHOLE:
                x = np.floor(x) if half == 0 else np.ceil(x)
            dynamic = x
        if i < fixed and level[p, r, i] <= dynamic:
            x = level[p, r, i]
            here = cost[p, r, i]
            i += 1
        else:
            x = dynamic
            if case.mode[p] == WHOLE and half == 0:
                half = 1
            else:
                half = 0
                j += 1
            if x < first or x > top or i == 0 or i == fixed:
                continue
            width = level[p, r, i] - level[p, r, i - 1]
            here = cost[p, r, i - 1]
            if width > 0.0:
                here += (cost[p, r, i] - cost[p, r, i - 1]) * (x - level[p, r, i - 1]) / width
        if n > 0 and x <= room.at[n - 1]:
            continue
        room.at[n] = x
        room.cost[n] = here - gain_at(room, r, x * scale, k, share, extra)
        n += 1
    return n


@njit(cache=True, nogil=True)
def hull(room, r, n, first):
    """Appends the segments of the lower convex hull of the origin and the points. Returns where they end."""
    m = first
    begin, begin_cost = 0.0, 0.0
    for i in range(n):
        x, y = room.at[i], room.cost[i]
        slope = (y - begin_cost) / (x - begin)
        while m > first and slope <= room.slope[m - 1]:
            m -= 1
            begin = room.begin[m]
            begin_cost = begin_cost - room.slope[m] * (room.end[m] - begin) if m > first else 0.0
            slope = (y - begin_cost) / (x - begin)
        room.begin[m], room.end[m], room.slope[m], room.region[m] = begin, x, slope, r
        m += 1
        begin, begin_cost = x, y
    return m


@njit(cache=True, nogil=True)
def ranked(room, n, runs):
    """Sorts the segments by slope: merges the regions' ascending runs. Fills rank."""
    source, target = room.rank, room.spare
    for i in range(n):
        source[i] = i
    bounds = room.runs
    while runs > 1:
        out = 0
        k = 0
        while k < runs:
            a, b = bounds[k], bounds[k + 1]
            if k + 1 == runs:
                target[a:b] = source[a:b]
                bounds[out + 1] = b
                out += 1
                break
            c = bounds[k + 2]
            i, j = a, b
            for w in range(a, c):
                if i < b and (j >= c or room.slope[source[i]] <= room.slope[source[j]]):
                    target[w] = source[i]
                    i += 1
                else:
                    target[w] = source[j]
                    j += 1
            bounds[out + 1] = c
            out += 1
            k += 2
        runs = out
        source, target = target, source
    return source


@njit(cache=True, nogil=True)
def fill(case, room, rank, n, cap, target, groups):
    """Cheapest way to reach every target with no region above the cap: $/h (infinite if none), and its price.

    First each group is filled to its own target, and whatever pays for itself is taken; then all regions to the total.
    """
    filled, last = room.filled, room.last
    filled[:] = 0.0
    last[:] = -1
    total, cost, price = 0.0, 0.0, 0.0
    open_groups = 0
    for g in range(groups):
        room.held[g] = 0.0
        open_groups += room.target[g] > 0.0
    for k in range(n):
        i = rank[k]
        slope = room.slope[i]
        if slope >= 0.0 and open_groups == 0:
            break
        r = room.region[i]
        begin = room.begin[i]
        width = min(room.end[i], cap) - begin
        if width <= 0.0:
            continue
        g = case.group[r] if groups > 0 else -1
        if g >= 0:
            lacks = room.target[g] - room.held[g]
            if slope >= 0.0:
                if lacks <= 0.0:
                    continue
                width = min(width, lacks)
            room.held[g] += width
            if lacks > 0.0 and lacks <= width:
                open_groups -= 1
        elif slope >= 0.0:
            continue
        filled[r] = begin + width
        last[r] = i
        total += width
        cost += width * slope
    if open_groups > 0:
        return np.inf, 0.0
    if total < target:
        for k in range(n):
            i = rank[k]
            r = room.region[i]
            begin = max(room.begin[i], filled[r])
            width = min(room.end[i], cap) - begin
            if width <= 0.0:
                continue
            price = room.slope[i]
            width = min(width, target - total)
            filled[r] = begin + width
            last[r] = i
            total += width
            cost += width * price
            if total >= target:
                break
        if total < target * (1 - 1e-12):
            return np.inf, 0.0
    return cost, price


@njit(cache=True, nogil=True)
def target_of(case, p, qps, peak):
    """Least level, all regions together, at which a part can serve `qps` beside a region of level `peak`."""
    if qps <= 0.0:
        return peak
    zone = case.cover * UNROUNDED
    if case.mode[p] == WHOLE:
        whole = np.ceil(qps / case.scale[p] * (1 - SMALL))
        if qps - (whole - 1) * case.scale[p] > zone:
            return whole + peak
        return max(0.0, qps - zone) / case.scale[p] + peak
    if case.mode[p] == CORNERS:
        sums = case.sums[p, : case.sums_count[p]]
        i = np.searchsorted(sums, (qps + peak) * (1 - SMALL))
        if i < len(sums) and (i == 0 or qps + peak - sums[i - 1] > zone):
            return sums[i] * (1 - SMALL)
    return max(0.0, qps - zone) + peak


@njit(cache=True, nogil=True)
def at_peak(case, room, p, rank, n, m, less):
    """Value with the fullest region at step m."""
    groups = len(case.inside)
    if case.mode[p] == WHOLE:
        return fill(case, room, rank, n, float(m), target_of(case, p, case.cover - less, float(m)), groups)
    if case.mode[p] == DIVISIBLE:
        step = case.total / GRID
        return fill(case, room, rank, n, (m + 1) * step, target_of(case, p, case.cover - less, m * step), groups)
    target = case.target[p, m + 1] if less == 0.0 else target_of(case, p, case.cover - less, case.peak[p, m])
    return fill(case, room, rank, n, case.peak[p, m], target, groups)


@njit(cache=True, nogil=True)
def knapsack(case, room, p, peak, target):
    """Least cost of whole mixes of options that reach every target, no region above the peak. Fills chosen."""
    regions = case.reach.shape[1]
    sums = case.sums[p, : case.sums_count[p]]
    together = case.together[p]
    cap = min(np.searchsorted(sums, target), len(sums) - 1)
    groups = len(case.inside)
    front, inner, fresh = room.front, room.inner, room.next
    front[: cap + 1] = np.inf
    front[0] = 0.0
    for g in range(groups + 1):
        inner[: cap + 1] = np.inf
        inner[0] = 0.0
        for r in range(regions):
            if case.points[p, r] == 0 or (case.group[r] if case.group[r] >= 0 else groups) != g:
                continue
            for k in range(cap + 1):
                fresh[k] = inner[k]
                room.picks[r, k] = -1
            for i in range(case.points[p, r]):
                if case.level[p, r, i] > peak:
                    break
                place, cost = case.place[p, r, i], room.table[r, i]
                for k in range(cap + 1):
                    here = inner[k] + cost
                    if here == np.inf:
                        continue
                    to = min(together[place, k], cap)
                    if here < fresh[to]:
                        fresh[to] = here
                        room.picks[r, to] = i
                        room.before[r, to] = k
            inner[: cap + 1] = fresh[: cap + 1]
        least = 0
        if g < groups:
            least = min(np.searchsorted(sums, room.target[g]), len(sums) - 1)
            if least > cap:
                least = cap
        fresh[: cap + 1] = np.inf
        for a in range(least, cap + 1):
            if inner[a] == np.inf:
                continue
            for b in range(cap + 1):
                cost = inner[a] + front[b]
                if cost == np.inf:
                    continue
                k = min(together[a, b], cap)
                if cost < fresh[k]:
                    fresh[k] = cost
                    room.joins[g, k] = a * EXACT_SUMS + b
        front[: cap + 1] = fresh[: cap + 1]
    if front[cap] == np.inf:
        return np.inf
    k = cap
    for g in range(groups, -1, -1):
        a, b = room.joins[g, k] // EXACT_SUMS, room.joins[g, k] % EXACT_SUMS
        for r in range(regions - 1, -1, -1):
            if case.points[p, r] == 0 or (case.group[r] if case.group[r] >= 0 else groups) != g:
                continue
            room.chosen[r] = room.picks[r, a]
            if room.picks[r, a] >= 0:
                a = room.before[r, a]
        k = b
    return front[cap]


@njit(cache=True, nogil=True)
def part_value(case, room, value, p, split, extra, less, covers, exact):
    """Least priced cost of one part; leaves the best fill in the room and its price in room.price[p]."""
    regions = case.reach.shape[1]
    n, runs = 0, 0
    for r in range(regions):
        if case.points[p, r] == 0:
            continue
        k = useful(case, room, value, r, split[p, r], extra[p, r])
        room.useful[p, r] = k
        k = points(case, room, p, r, k, split[p, r], extra[p, r])
        if exact and case.mode[p] == CORNERS:
            room.table[r, :k] = room.cost[:k]
        room.runs[runs] = n
        n = hull(room, r, k, n)
        runs += 1
    room.runs[runs] = n
    rank = ranked(room, n, runs)
    if not covers:
        result, price = fill(case, room, rank, n, np.inf, 0.0, 0)
        room.price[p] = 0.0
        return result
    for g in range(len(case.inside)):
        room.target[g] = case.rounded[p, g] if less == 0.0 else target_of(case, p, case.inside[g] - less, 0.0)
    at = 0
    if not case.survives:
        target = target_of(case, p, case.cover - less, 0.0)
        best, price = fill(case, room, rank, n, np.inf, target, len(case.inside))
    elif case.mode[p] == CORNERS:
        best = np.inf
        for m in range(case.peaks[p]):
            result, price = at_peak(case, room, p, rank, n, m, less)
            if result < best:
                best, at = result, m
    else:
        low = 1 if case.mode[p] == WHOLE else 0
        high = int(case.need[p]) if case.mode[p] == WHOLE else GRID - 1
        at = min(max(room.peak[p], low), high)
        best, price = at_peak(case, room, p, rank, n, at, less)
        step, down = 4, False
        while step > 0:  # the value is convex in the step: a pattern search ends at its least
            moved = False
            for _ in range(2):
                ahead = max(at - step, low) if down else min(at + step, high)
                result = np.inf
                if ahead != at:
                    result, price = at_peak(case, room, p, rank, n, ahead, less)
                if result < best or (best == np.inf and not down and ahead != at):
                    best, at = result, ahead
                    moved = True
                    break
                down = not down
            step = step * 2 if moved else step // 2
    if best == np.inf:  # no room for that much: without the rule the value is lower, never wrong
        result, price = fill(case, room, rank, n, np.inf, 0.0, 0)
        room.price[p] = 0.0
        return result
    if exact and case.mode[p] == CORNERS and case.sums_count[p] <= EXACT_SUMS:
        return exact_value(case, room, p, rank, n, less)
    if case.survives:
        room.peak[p] = at
        best, price = at_peak(case, room, p, rank, n, at, less)
    room.price[p] = price / case.scale[p]
    return best


@njit(cache=True, nogil=True)
def exact_value(case, room, p, rank, n, less):
    """Least priced cost of whole mixes of options; leaves in the room, region by region, the mix as a full segment."""
    regions = case.reach.shape[1]
    best = np.inf
    best_choice = np.full(regions, -1)
    peaks = case.peaks[p] if case.survives else 1
    for m in range(peaks):
        room.hulls[m] = at_peak(case, room, p, rank, n, m, less)[0] if case.survives else -np.inf
    for _ in range(peaks):
        m = 0
        for k in range(peaks):
            if room.hulls[k] < room.hulls[m]:
                m = k
        if room.hulls[m] >= best or room.hulls[m] == np.inf:
            break
        room.hulls[m] = np.inf
        peak = case.peak[p, m] if case.survives else np.inf
        target = target_of(case, p, case.cover - less, peak if case.survives else 0.0)
        here = knapsack(case, room, p, peak, target)
        if here < best:
            best = here
            best_choice[:] = room.chosen
    room.last[:] = -1
    for r in range(regions):
        i = best_choice[r]
        if i >= 0:
            room.begin[r], room.end[r], room.filled[r] = 0.0, case.level[p, r, i], case.level[p, r, i]
            room.last[r] = r
    return best


@njit(cache=True, nogil=True)
def backward(case, room, p, split, gradient, loads):
    """Takes from the gradient what the regions serve in the best fill of a part."""
    for r in range(case.reach.shape[1]):
        loads[p, r] = 0.0
        i = room.last[r]
        if i < 0 or room.breaks[r] == 0 or case.points[p, r] == 0:
            continue
        begin, end = room.begin[i], room.end[i]
        share = (room.filled[r] - begin) / (end - begin)
        low, high = begin * case.scale[p], end * case.scale[p]
        for k in range(room.useful[p, r]):
            start = room.broad[r, k]
            c = room.order[r, k]
            q = case.demand[c]
            served = (1 - share) * min(max(low - start, 0.0), q) + share * min(max(high - start, 0.0), q)
            gradient[c] -= split[p, r] * served
            loads[p, r] += served


@njit(cache=True, nogil=True)
def evaluate(case, room, point, split, gradient, loads, exact):
    """The bound at a point: values of the classes, then what each part gains beside its share. Fills gradient."""
    parts, regions = case.rent.shape
    classes = len(case.demand)
    value = point[:classes]
    extra = point[classes:].reshape(parts, regions)
    gains(case, value, room)
    bound = 0.0
    for c in range(classes):
        bound += case.demand[c] * value[c]
        gradient[c] = case.demand[c]
    for p in range(parts):
        bound += part_value(case, room, value, p, split, extra, 0.0, case.covers, exact)
        backward(case, room, p, split, gradient, loads)
    for r in range(regions):
        mean = 0.0
        for p in range(parts):
            mean += loads[p, r] / parts
        for p in range(parts):
            gradient[classes + p * regions + r] = mean - loads[p, r] if room.breaks[r] > 0 else 0.0
    return bound


@njit(cache=True, nogil=True)
def secured(case, room, point, split, zone, exact):
    """The bound at a point over every amount that may be left unmet."""
    parts, regions = case.rent.shape
    classes = len(case.demand)
    value = point[:classes]
    extra = point[classes:].reshape(parts, regions)
    gains(case, value, room)
    fixed, full, none = 0.0, 0.0, 0.0
    for c in range(classes):
        fixed += case.demand[c] * value[c]
    for p in range(parts):
        none += part_value(case, room, value, p, split, extra, 0.0, False, False)
        full += part_value(case, room, value, p, split, extra, 0.0, case.covers, exact)
    fine = case.missed - value.max()
    least, less = full, zone
    while case.covers and fine * less < full - none and less < case.cover:
        for factor in range(4, 0, -1):
            far = min(2.0**factor * less, case.cover)
            here = fine * less
            for p in range(parts):
                here += part_value(case, room, value, p, split, extra, far, True, exact)
            if here >= full:
                break
        least = min(least, here)
        less = far
    return fixed + least + (fine * (case.total - case.cover) if case.covers else 0.0)


@njit(cache=True, nogil=True)
def resplit(case, room, price, split):
    """Shares of a region's gain by what each part costs there beyond what survival pays."""
    parts, regions = case.rent.shape
    for r in range(regions):
        total = 0.0
        for p in range(parts):
            split[p, r] = max(case.rent[p, r] - price[p], 1e-6 * case.rent[p, r]) if case.rent[p, r] < np.inf else 0.0
            total += split[p, r]
        for p in range(parts):
            split[p, r] = split[p, r] / total if total > 0.0 else 1.0 / parts


@njit(cache=True, nogil=True)
def worths(case, price, limit, value):
    """Values at which no region gains: the least cost of a QPS over the regions in reach."""
    classes, regions = case.reach.shape
    parts = len(case.mode)
    for c in range(classes):
        value[c] = limit
        for r in range(regions):
            if case.reach[c, r]:
                here = case.way[c, r]
                for p in range(parts):
                    here += max(0.0, case.rent[p, r] - price[p])
                value[c] = min(value[c], here)


@njit(cache=True, nogil=True)
def weights(gram, error, count, t, weight):
    """Minimises t/2 |sum w g|^2 + sum w e over the simplex, by pairwise steps from the given weights."""
    for _ in range(60):
        best, worst = 0, -1
        low, high = np.inf, -np.inf
        for i in range(count):
            slope = error[i]
            for j in range(count):
                slope += t * gram[i, j] * weight[j]
            if slope < low:
                low, best = slope, i
            if weight[i] > 0.0 and slope > high:
                high, worst = slope, i
        if high - low <= 1e-9 * max(1e-12, abs(high)) or best == worst:
            break
        curve = t * (gram[best, best] + gram[worst, worst] - 2 * gram[best, worst])
        step = weight[worst]
        if curve > 0.0:
            step = min(step, (high - low) / curve)
        weight[best] += step
        weight[worst] -= step


@njit(cache=True, nogil=True)
def ascend(case, room, limit, stop, effort, zone):
    """The best bound found by a proximal bundle over the values of the classes of users."""
    classes = len(case.demand)
    parts, regions = case.rent.shape
    size = classes + parts * regions
    split = np.zeros((parts, regions))
    loads = np.zeros((parts, regions))
    point = np.zeros(size)
    gradient = np.zeros(size)
    center = point.copy()
    base = np.zeros(parts)
    prices = np.zeros(parts)
    best_split = split.copy()
    slope = gradient.copy()
    best = -np.inf
    for k in range(6 if case.survives and case.covers else 2):
        for p in range(parts):
            prices[p] = base[p] * max(k - 1, 0) / 4
        resplit(case, room, prices, split)
        if k > 0:
            worths(case, prices, limit, point)
        found = evaluate(case, room, point, split, gradient, loads, False)
        if k == 0:
            for p in range(parts):
                base[p] = room.price[p] if case.survives else 0.0
        if found > best:
            best = found
            center[:] = point
            best_split[:] = split
            slope[:] = gradient
    split[:] = best_split
    best, t = climb(case, room, center, split, slope, best, limit, stop, effort, 0.0, False)
    result = secured(case, room, center, split, zone, False)
    if case.covers and result < stop:
        small = False
        for p in range(parts):
            small = small or (case.mode[p] == CORNERS and case.sums_count[p] <= EXACT_SUMS)
        if small:
            best = evaluate(case, room, center, split, slope, loads, True)
            best, t = climb(case, room, center, split, slope, best, limit, stop, effort // 3, t, True)
            result = max(result, secured(case, room, center, split, zone, True))
    return result


@njit(cache=True, nogil=True)
def climb(case, room, center, split, slope, best, limit, stop, effort, t, exact):
    """Moves the center to better bounds, from one whose bound and gradient are given. Returns the bound and the step."""
    classes = len(case.demand)
    parts, regions = case.rent.shape
    size = len(center)
    gradient = np.zeros(size)
    point = center.copy()
    loads = np.zeros((parts, regions))
    metric = np.empty(size)
    for i in range(size):
        metric[i] = 1 / case.demand[i] if i < classes else (SIDE / case.total if parts > 1 else 0.0)
    cuts = np.zeros((CUTS, size))
    error = np.zeros(CUTS)
    gram = np.zeros((CUTS, CUTS))
    weight = np.zeros(CUTS)
    cuts[0] = slope
    count = 1
    weight[0] = 1.0
    gram[0, 0] = (slope * slope * metric).sum()
    mean = center[:classes].mean()
    if t == 0.0:
        t = 0.25 * mean if mean > 0 else 0.1 * best / case.total
    direction = np.zeros(size)
    for it in range(effort):
        if best >= stop:
            break
        weights(gram, error, count, t, weight)
        drop = 0.0
        direction[:] = 0.0
        for i in range(count):
            drop += weight[i] * error[i]
            if weight[i] > 0.0:
                for j in range(size):
                    direction[j] += weight[i] * cuts[i, j]
        norm = 0.0
        for j in range(size):
            norm += direction[j] ** 2 * metric[j]
            direction[j] *= t * metric[j]
        expected = t * norm + drop
        if expected < 1e-5 * best:
            if t * norm < 1e-3 * best and t < 100 * mean:
                t *= 4
                if drop < 1e-6 * best and norm * t < 1e-5 * best:
                    break
                continue
            break
        for j in range(size):
            point[j] = center[j] + direction[j]
            if j < classes:
                point[j] = min(max(point[j], 0.0), limit)
        found = evaluate(case, room, point, split, gradient, loads, exact)
        # linearisation error of the new cut, seen from the center
        off = found - best
        for j in range(size):
            off += gradient[j] * (center[j] - point[j])
        off = max(off, 0.0)
        if found > best + 0.05 * expected:
            for i in range(count):
                shift = best - found
                for j in range(size):
                    shift += cuts[i, j] * (point[j] - center[j])
                error[i] = max(error[i] + shift, 0.0)
            if found > best + 0.5 * expected:
                t *= 2.0
            best = found
            center[:] = point
            off = 0.0
        elif off > expected * 2:
            t *= 0.7
        if count == CUTS:
            at = 0
            for i in range(1, count):
                if weight[i] < weight[at] or (weight[i] == weight[at] and error[i] > error[at]):
                    at = i
            spare = weight[at]
            weight[at] = 0.0
            for i in range(count):
                if i != at:
                    weight[i] += spare / (count - 1)
        else:
            at = count
            count += 1
        cuts[at] = gradient
        error[at] = off
        weight[at] = 0.0
        for i in range(count):
            g = 0.0
            for j in range(size):
                g += cuts[i, j] * gradient[j] * metric[j]
            gram[i, at] = g
            gram[at, i] = g
    return best, t


@njit(cache=True, nogil=True)
def step_cost(price, move, running, n):
    return n * price + move * max(0.0, n - running)


@njit(cache=True, nogil=True)
def whole_points(level, cost, price, move, running, least, need, most):
    """One option: levels are replicas. Returns how many points."""
    if most < least:
        return 0
    first, last = min(float(least), need), min(need, most)
    level[0], cost[0] = first, step_cost(price, move, running, float(least))
    n = 1
    if first < running < last:
        level[n], cost[n] = running, step_cost(price, move, running, float(running))
        n += 1
    if last > first:
        level[n], cost[n] = last, step_cost(price, move, running, last)
        n += 1
    return n


@njit(cache=True, nogil=True)
def corner_points(level, cost, rate, price, move, running, room, least, total):
    """All mixes of a few options: levels are QPS, none dominated. Returns how many, or -1 if too many."""
    options = len(rate)
    most = np.zeros(options, np.int64)
    for o in range(options):
        most[o] = min(max(int(np.ceil(total / rate[o] * (1 - SMALL))), least), room[o])
    count = np.zeros(options, np.int64)
    n = 0
    while True:
        o = 0
        while o < options:
            count[o] += 1
            if count[o] <= most[o]:
                break
            count[o] = 0
            o += 1
        if o == options:
            break
        able, dear, number = 0.0, 0.0, 0
        for o in range(options):
            able += count[o] * rate[o]
            number += count[o]
            dear += step_cost(price[o], move, running[o], float(count[o]))
        if number < least:
            continue
        able = total if able >= total * (1 - SMALL) else able
        i = 0
        while i < n and level[i] < able:
            i += 1
        dominated = False
        for j in range(i, n):
            dominated = dominated or cost[j] <= dear
        if dominated:
            continue
        keep = 0
        for j in range(i):
            if cost[j] < dear:
                level[keep], cost[keep] = level[j], cost[j]
                keep += 1
        # those beyond stay
        tail = i
        while tail < n and level[tail] <= able:
            tail += 1
        moved = n - tail
        if keep + 1 + moved > MOST_CORNERS:
            return -1
        if keep + 1 > tail:
            for j in range(moved - 1, -1, -1):
                level[keep + 1 + j], cost[keep + 1 + j] = level[tail + j], cost[tail + j]
        else:
            for j in range(moved):
                level[keep + 1 + j], cost[keep + 1 + j] = level[tail + j], cost[tail + j]
        level[keep], cost[keep] = able, dear
        n = keep + 1 + moved
    return n


@njit(cache=True, nogil=True)
def divisible_points(level, cost, rate, price, move, running, room, least, total):
    """Replicas are divisible beyond the first: levels are QPS. Returns how many points."""
    options = len(rate)
    slope = np.empty(2 * options)
    width = np.empty(2 * options)
    n, number = 0, 0
    first, cheapest = np.inf, np.inf
    for o in range(options):
        if room[o] < 1:
            continue
        number += room[o]
        first = min(first, rate[o] * least)
        cheapest = min(cheapest, price[o] if least <= running[o] or least > 1 else price[o] + move)
        for kind in range(2):
            a = (price[o] + move * kind) / rate[o]
            w = (min(running[o], room[o]) if kind == 0 else max(0, room[o] - running[o])) * rate[o]
            if w <= 0.0:
                continue
            i = n
            while i > 0 and slope[i - 1] > a:
                slope[i], width[i] = slope[i - 1], width[i - 1]
                i -= 1
            slope[i], width[i] = a, w
            n += 1
    if number < least or n == 0:
        return 0
    cheapest *= least
    first = min(first, total)
    # at least `cheapest` and the sum of the slopes: both are below the cost of every mix
    points, x, y = 0, 0.0, 0.0
    for i in range(n):
        end = min(x + width[i], total)
        y_end = y + slope[i] * (end - x)
        if x <= first < end or (first == end == total):
            level[0], cost[0] = first, max(cheapest, y + slope[i] * (first - x))
            points = 1
        if points > 0:
            if y < cheapest < y_end:
                cross = x + (cheapest - y) / slope[i]
                if cross > level[points - 1]:
                    level[points], cost[points] = cross, cheapest
                    points += 1
            if end > level[points - 1]:
                level[points], cost[points] = end, max(y_end, cheapest)
                points += 1
        x, y = end, y_end
        if x >= total:
            break
    if points == 0:
        level[0], cost[0] = x, max(y, cheapest)
        points = 1
    return points


@njit(cache=True, nogil=True)
def cost_at(case, p, r, x):
    """$/h of part p for x QPS in region r."""
    n = case.points[p, r]
    if n == 0:
        return np.inf
    x = x / case.scale[p]
    if case.mode[p] == WHOLE:
        x = np.ceil(x * (1 - SMALL))
    level, cost = case.level[p, r], case.cost[p, r]
    i = 0
    while i < n and level[i] < x * (1 - SMALL):
        i += 1
    if i == n:
        return cost[n - 1]
    if i == 0 or case.mode[p] == CORNERS:
        return cost[i]
    return cost[i - 1] + (cost[i] - cost[i - 1]) * (x - level[i - 1]) / (level[i] - level[i - 1])


@njit(cache=True, nogil=True)
def attainable(rate, total, sums):
    """All sums of rates, and of the total, up to twice the total, ascending. Returns how many, or -1 if too many."""
    sums[0] = 0.0
    n = 1
    top = 2 * total * (1 + SMALL)
    for o in range(len(rate) + 1):
        step = rate[o] if o < len(rate) else total
        i = 0
        fresh = n
        while i < n:  # n grows: sums of several of this option
            x = sums[i] + step
            i += 1
            if x > top:
                continue
            if n == len(sums):
                return -1
            sums[n] = x
            n += 1
    part = np.sort(sums[:n])
    keep = 0
    for i in range(n):
        if keep == 0 or part[i] > sums[keep - 1] * (1 + SMALL):
            sums[keep] = part[i]
            keep += 1
    return keep


@njit(cache=True, nogil=True)
def set_peaks(case, p):
    """Corner mode: the levels the fullest region may have, and the least attainable total for each."""
    regions = case.reach.shape[1]
    k = 0
    peaks = case.peak.shape[1]
    for r in range(regions):
        for i in range(case.points[p, r]):
            x = case.level[p, r, i]
            j = 0
            while j < k and case.peak[p, j] < x:
                j += 1
            if j < k and case.peak[p, j] == x:
                continue
            if k == peaks:
                return False
            for w in range(k, j, -1):
                case.peak[p, w] = case.peak[p, w - 1]
            case.peak[p, j] = x
            k += 1
    case.peaks[p] = k
    for j in range(k):
        case.target[p, j + 1] = target_of(case, p, case.cover, case.peak[p, j])
    return True


@njit(cache=True, nogil=True)
def set_places(case, p):
    """Where levels, and sums of two sums, stand among the attainable sums."""
    sums = case.sums[p, : case.sums_count[p]]
    n = len(sums)
    for r in range(case.reach.shape[1]):
        for i in range(case.points[p, r]):
            case.place[p, r, i] = min(np.searchsorted(sums, case.level[p, r, i] * (1 - SMALL)), n - 1)
    for a in range(n):
        k = 0
        for b in range(n):
            x = (sums[a] + sums[b]) * (1 - SMALL)
            while k < n - 1 and sums[k] < x:
                k += 1
            case.together[p, a, b] = k


@njit(cache=True, nogil=True)
def disjoint(sets, worth):
    """The disjoint sets that are worth most together; of equals those of fewer regions, then the earlier found."""
    n = len(sets)
    size = np.zeros(n)
    for i in range(n):
        size[i] = sets[i].sum()
    order = np.argsort(size - 1e3 * worth / worth.max(), kind="mergesort")
    clash = np.zeros((n, n), np.bool_)
    for i in range(n):
        for j in range(n):
            clash[i, j] = (sets[order[i]] & sets[order[j]]).any()
    stack = np.zeros(n + 1, np.int64)
    best = np.zeros(n, np.bool_)
    top, top_size = -1.0, 0.0
    depth, at, value, total, steps = 0, 0, 0.0, 0.0, 0
    while steps < MOST_STEPS:
        steps += 1
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
            if value > top * (1 + SMALL) or (value > top * (1 - SMALL) and total < top_size):
                top, top_size = value, total
                best[:] = False
                for d in range(depth):
                    best[order[stack[d]]] = True
            continue
        if depth == 0:
            break
        depth -= 1
        value -= worth[order[stack[depth]]]
        total -= size[order[stack[depth]]]
        at = stack[depth] + 1
    return best


@njit(cache=True, nogil=True)
def grouped(demand, reach, starts, rate, price, most):
    """Disjoint sets of regions that all of some users' demand must be served in: (R,) set or -1, and their QPS.

    Chosen among the regions in reach of one class, or of two, so that whole replicas for each set cost most.
    """
    classes, regions = reach.shape
    parts = len(starts) - 1
    every = np.zeros(regions, np.bool_)
    for c in range(classes):
        every |= reach[c]
    sets = np.zeros((classes * (classes + 1) // 2, regions), np.bool_)
    load = np.zeros(len(sets))
    worth = np.zeros(len(sets))
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
            load[n] = 0.0
            for e in range(classes):
                inside = True
                for r in range(regions):
                    inside = inside and (here[r] or not reach[e, r])
                if inside:
                    load[n] += demand[e]
            worth[n] = 0.0
            for p in range(parts):
                cheapest = np.inf
                for o in range(starts[p], starts[p + 1]):
                    for r in range(regions):
                        if here[r] and most[o, r] > 0:
                            number = np.ceil(load[n] / rate[o] * (1 - SMALL))
                            cheapest = min(cheapest, number * price[o, r])
                worth[n] += cheapest
            n += 1
    best = disjoint(sets[:n], worth[:n])
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


@njit(cache=True, nogil=True)
def model_bound(
    qps, rtt, tolerance, latency, missed, survives, starts, least, most, price, rate, current, move, ceiling, effort
):
    """The bound of one model. `price` (O, R) $/h a replica; `starts` (P + 1,) options of its parts."""
    parts, regions = len(starts) - 1, len(rtt)
    holds = np.zeros((parts, regions), np.bool_)
    servable = np.ones(regions, np.bool_)
    for p in range(parts):
        for r in range(regions):
            holds[p, r] = most[starts[p] : starts[p + 1], r].sum() >= max(1, least[p])
            servable[r] = servable[r] and holds[p, r]
    demand = np.zeros(regions)
    reach = np.zeros((regions, regions), np.bool_)
    way = np.zeros((regions, regions))
    classes, lost = 0, 0.0
    for s in range(regions):
        if qps[s] <= 0.0:
            continue
        some = False
        for r in range(regions):
            reach[classes, r] = servable[r] and rtt[s, r] <= tolerance
            way[classes, r] = latency * rtt[s, r]
            some = some or reach[classes, r]
        if not some:
            lost += qps[s] * missed
            continue
        at = classes
        if latency == 0.0:
            for c in range(classes):
                if (reach[c] == reach[classes]).all():
                    at = c
                    break
        if at == classes:
            demand[classes] = 0.0
            classes += 1
        demand[at] += qps[s]
    if classes == 0:
        return lost
    total = demand.sum()
    cover = total
    able = np.zeros(regions)
    for p in range(parts):
        for r in range(regions):
            able[r] = 0.0
            if holds[p, r] and (survives or servable[r]):
                for o in range(starts[p], starts[p + 1]):
                    able[r] += most[o, r] * rate[o]
        cover = min(cover, able.sum() - (able.max() if survives else 0.0))
    if cover <= 0.0:
        return missed * qps.sum()
    useful_at = np.zeros(regions, np.bool_)
    for r in range(regions):
        useful_at[r] = survives or reach[:classes, r].any()
        for p in range(parts):
            holds[p, r] = holds[p, r] and useful_at[r]
    group, inside = grouped(demand[:classes], reach[:classes], starts, rate, price, most)
    case = Case(
        demand[:classes],
        reach[:classes],
        way[:classes],
        missed,
        survives,
        total,
        np.zeros(parts, np.int64),
        np.ones(parts),
        np.zeros(parts),
        cover,
        np.zeros((parts, MOST_SUMS)),
        np.zeros(parts, np.int64),
        np.zeros((parts, regions, MOST_CORNERS), np.int16),
        np.zeros((parts, EXACT_SUMS, EXACT_SUMS), np.int16),
        np.zeros((parts, regions), np.int64),
        np.zeros((parts, regions, MOST_CORNERS)),
        np.zeros((parts, regions, MOST_CORNERS)),
        np.zeros((parts, 4 * MOST_CORNERS)),
        np.zeros((parts, 4 * MOST_CORNERS + 1)),
        np.zeros(parts, np.int64),
        np.zeros((parts, regions)),
        True,
        group,
        inside,
        np.zeros((parts, len(inside))),
    )
    room = room_for(classes, parts, regions)
    zone = cover * UNROUNDED
    for p in range(parts):
        a, b = starts[p], starts[p + 1]
        minimum = max(1, least[p])
        mixes = 1.0
        for o in range(a, b):
            mixes *= np.ceil(total / rate[o]) + 1
        mode = WHOLE if b - a == 1 else (CORNERS if mixes <= 100 else DIVISIBLE)
        if mode == CORNERS:
            case.mode[p] = CORNERS
            fine = True
            for r in range(regions):
                if holds[p, r] and fine:
                    n = corner_points(
                        case.level[p, r],
                        case.cost[p, r],
                        rate[a:b],
                        price[a:b, r],
                        move,
                        current[a:b, r],
                        most[a:b, r],
                        minimum,
                        total,
                    )
                    fine = n >= 0
                    case.points[p, r] = n
            if fine:
                number = attainable(rate[a:b], total, case.sums[p])
                case.sums_count[p] = number
                fine = number >= 0 and set_peaks(case, p)
                if fine and number <= EXACT_SUMS:
                    set_places(case, p)
            if not fine:
                mode = DIVISIBLE
        if mode == WHOLE:
            case.scale[p] = rate[a]
            need = np.ceil(total / rate[a] * (1 - SMALL))
            case.need[p] = need
            for r in range(regions):
                case.points[p, r] = 0
                if holds[p, r]:
                    case.points[p, r] = whole_points(
                        case.level[p, r], case.cost[p, r], price[a, r], move, current[a, r], minimum, need,
                        float(most[a, r]),
                    )
        if mode == DIVISIBLE:
            for r in range(regions):
                case.points[p, r] = 0
                if holds[p, r]:
                    case.points[p, r] = divisible_points(
                        case.level[p, r],
                        case.cost[p, r],
                        rate[a:b],
                        price[a:b, r],
                        move,
                        current[a:b, r],
                        most[a:b, r],
                        minimum,
                        total,
                    )
        case.mode[p] = mode
        for g in range(len(inside)):
            case.rounded[p, g] = target_of(case, p, inside[g], 0.0)
        room.peak[p] = max(1, int((case.need[p] if mode == WHOLE else GRID) / 3))
    for r in range(regions):
        load = 0.0
        for c in range(classes):
            if reach[c, r]:
                load += demand[c]
        load = load if load > 0.0 else total
        for p in range(parts):
            case.rent[p, r] = cost_at(case, p, r, load) / load
    value = np.zeros(classes)
    worths(case, np.zeros(parts), np.inf, value)
    top = value.max()
    stop = ceiling - lost
    best = 0.0
    limit = min(max(2 * top, 0.25 * missed), 0.5 * missed)
    best = max(best, ascend(case, room, limit, stop, effort, zone))
    if 2 * top > 0.5 * missed:
        free = Case(
            case.demand, case.reach, case.way, case.missed, case.survives, case.total, case.mode, case.scale, case.need,
            case.cover, case.sums, case.sums_count, case.place, case.together,
            case.points, case.level, case.cost, case.peak, case.target, case.peaks, case.rent, False,
            case.group, case.inside, case.rounded,
        )
        best = max(best, ascend(free, room, missed, stop, effort, zone))
    return lost + best


@njit(cache=True, nogil=True, parallel=True)
def bounds(
    qps, rtt, tolerance, latency, missed, survives, part_start, part_min, option_start, most, price, rate, current,
    move, ceiling, effort,
):
    models = len(qps)
    result = np.zeros(models)
    for m in prange(models):
        a, b = part_start[m], part_start[m + 1]
        first, last = option_start[a], option_start[b]
        result[m] = model_bound(
            qps[m], rtt, tolerance[m], latency, missed[m], survives[m], option_start[a : b + 1] - first,
            part_min[a:b], most[first:last], price[first:last], rate[first:last], current[first:last],
            move, ceiling[m], effort,
        )
    return result
