"""The best whole choices of levels for one part, if its replicas are few: a dynamic program over the regions.

Called by `planner.bound.part_subproblem`. At the prices of the linear program over the hulls every choice of a region
has an excess over the cheapest one. A choice for all regions costs the program's bound, the excesses, and its surplus
over the totals. Only choices within the gap to the best known matter, which leaves few.
"""

# Kernels: numba infers their types, arrays come one by one, and the loops of one search stay in one function.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs, no-warn-return-any

import numpy as np

from planner.bound.levels import SMALL
from planner.bound.workspace import MOST_STATES, UNSET, leaf
from planner.jit import kernel

FIRST_GAP = 0.01
"""Share of a part's cost by which whole replicas may exceed the linear program, in the first attempt."""


@leaf
@kernel
def whole_program(case, room, p, peak, target, price, limit):
    """Return the least cost, below `limit`, of whole choices that reach all targets, no region above the peak.

    Infinite if there is none.

    At the prices of the linear program every choice costs its bound and an excess >= 0: only small ones matter.
    """
    for g in range(len(case.inside)):
        room.toll[g] = max(0.0, room.toll[g] - price)
    gap, known = np.inf, False
    while True:
        bound = _ways(case, room, p, peak, target, price, gap)
        if bound == np.inf:
            return np.inf
        if room.work[0] <= 0:
            room.trial[:] = UNSET
            return bound
        widest = limit - bound
        if widest <= 0.0:
            return np.inf
        if known:
            excess = _least_excess(case, room, target, price, gap)
            if excess < np.inf or gap >= widest:
                return bound + excess
        gap = 4 * gap if known else FIRST_GAP * max(abs(bound), SMALL)
        gap = min(gap if gap < 100 * abs(bound) else np.inf, widest)
        known = True


@leaf
@kernel
def _ways(case, room, p, peak, target, price, gap):
    """Set each region's choices up to the peak with an excess within the gap; return the bound at the prices."""
    bound = price * target
    for g in range(len(case.inside)):
        bound += room.toll[g] * room.target[g]
    for r in range(len(case.group)):
        here = price + (room.toll[case.group[r]] if case.group[r] >= 0 else 0.0)
        n, least = case.corners[p, r], np.inf if case.forced[r] else 0.0
        for i in range(n):
            if case.level[p, r, i] > peak:
                n = i
                break
            least = min(least, room.table[r, i] - here * case.level[p, r, i])
        if least == np.inf:  # it must serve, and its least level is above the peak
            return np.inf
        bound += least
        k = 0
        for i in range(0 if case.forced[r] else -1, n):
            level = case.level[p, r, i] if i >= 0 else 0.0
            excess = (room.table[r, i] - here * level if i >= 0 else 0.0) - least
            if excess <= gap:
                room.way_index[r, k], room.way_level[r, k], room.way_excess[r, k] = i, level, excess
                k += 1
        room.ways[r] = k
    return bound


@leaf
@kernel
def _least_excess(case, room, target, price, gap):
    """Return the least excess, at most the gap, of choices that reach all targets.

    A dynamic program, group by group.
    """
    regions, groups = len(case.group), len(case.inside)
    sums, excess = room.sums, room.excess
    size, now = np.int64(1), np.int64(2)  # all groups so far; typed at once, not as literals
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
        n, at = np.int64(1), np.int64(0)
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
        k = np.int64(0)
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
    best, final = np.inf, np.int64(-1)
    for i in range(size):
        if sums[now, i] >= target * (1 - 1e-12):
            here = excess[now, i] + price * max(0.0, sums[now, i] - target)
            if here < best and here <= gap:
                best, final = here, i
    if final >= 0:
        _trace(case, room, final)
    return best


@leaf
@kernel
def _extend(room, at, n, level, excess, ways, stage, gap, need, toll, price, most, least):
    """Extend the states by one more choice, ascending: from list `at` to its neighbour. Returns their number.

    Drops states that exceed the gap, that the remaining `most` cannot bring to `need`, or that others dominate. If
    there are too many, neighbours count as the larger sum at the lesser's cost.
    """
    old, old_excess = room.sums[at], room.excess[at]
    spacing = SMALL * (old[n - 1] + level[ways - 1])
    low = need - SMALL * (old[n - 1] + level[ways - 1] + abs(need)) - most
    size, now = 0, 0
    for a in range(ways):  # merges the states by this choice into those by the choices before
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
                k -= 1  # dominated by a larger sum at no greater cost
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
                # of the lesser: none is dominated, so that is the smaller sum; it keeps its cost
                e = max(0.0, room.merged_excess[to, u] - price * (room.merged[to, v] - room.merged[to, u]))
                room.merged[to, i], room.merged_excess[to, i] = room.merged[to, v], e
                room.merged_parent[to, i], room.merged_pick[to, i] = room.merged_parent[to, u], room.merged_pick[to, u]
            k = (k + 1) // 2
        size, now = k, to
        room.work[0] -= k + n
    to = at ^ 1
    for i in range(size):
        room.sums[to, i] = room.merged[now, i]
        room.excess[to, i] = room.merged_excess[now, i]
        room.parent[stage, i] = room.merged_parent[now, i]
        room.pick[stage, i] = room.merged_pick[now, i]
    return size


@leaf
@kernel
def _trace(case, room, final):
    """Write the choice that leads to a final state into `trial`."""
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
