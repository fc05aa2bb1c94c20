"""The least priced cost of one part of a model, over all regions, with the rules that bind the part as a whole.

Called by `planner.bound.bundle`. The rules: each group of regions and all regions together reach their totals; a model
that survives the loss of a region reaches the total without its fullest one. For each level of the fullest region that
is a linear program over the convex hulls of the regions' costs, filled greedily; for few replicas it is then solved
over whole replicas, by a dynamic program over the choices that the linear program's prices leave open.
"""

import numpy as np

from planner.bound.convex_hull import bends, fill, hull, rank_segments
from planner.bound.dynamic_program import whole_program
from planner.bound.levels import SMALL
from planner.bound.subproblem import UNROUNDED, WHOLE
from planner.bound.workspace import UNSET, leaf
from planner.jit import kernel

GRID = 4000
"""Steps of the fullest region's level if replicas are divisible."""
LOOSE, HULLS, WHOLES = 0, 1, 2
"""Programs: without the rules on totals; over the regions' hulls; over whole replicas, if they are few."""


@leaf
@kernel
def _target(case, p, qps, peak):
    """Return the least total level at which a part can serve `qps` besides a region of level `peak`."""
    zone = case.cover * UNROUNDED
    if case.mode[p] == WHOLE and qps > 0.0:
        whole = np.ceil(qps / case.scale[p] * (1 - SMALL))
        if qps - (whole - 1) * case.scale[p] > zone:
            return whole + peak
    return max(0.0, qps - zone) / case.scale[p] + peak


@leaf
@kernel
def _at_peak(case, room, p, n, m, less, program):
    """Return the linear program's value with the fullest region at step m, and the price of its total.

    -1: at any level.
    """
    cap, target, groups = np.inf, 0.0, 0
    if program > LOOSE:
        cap, low = _peak(case, p, m)
        target = _target(case, p, case.cover - less, low)
        groups = len(case.inside)
    return fill(case, room, p, n, cap, target, groups)


@leaf
@kernel
def _peak(case, p, m):
    """Return the most and least level of the fullest region at step m."""
    if m < 0:
        return np.inf, 0.0
    if case.mode[p] == WHOLE:
        return m + 1.0, m + 1.0
    if m >= GRID:
        return case.peak[p, m - GRID], case.peak[p, m - GRID]
    step = case.total / GRID
    return (m + 1) * step, m * step


@leaf
@kernel
def _peak_slope(case, room, cap, price):
    """Return the growth of the last fill's value with the fullest region's level.

    A subgradient, by the prices of the fill.
    """
    slope = price
    for r in range(len(case.group)):
        i = room.last[r]
        if i >= 0 and room.filled[r] >= cap:
            g = case.group[r]
            here = max(price, room.toll[g]) if g >= 0 else price
            slope += min(0.0, room.slope[i] - here)
    return slope


@leaf
@kernel
def _lowest_peak(case, p, less):
    """Return the least level of the fullest region: at least the mean load, and possibly more by the branch."""
    mean = max(0.0, case.cover * (1 - UNROUNDED) - less) / len(case.group)
    return max(mean, case.crest[0]) / case.scale[p] * (1 - UNROUNDED)


@leaf
@kernel
def _all_steps(case, p, less):
    """Return the first and last step of the fullest region."""
    lowest = _lowest_peak(case, p, less)
    if case.mode[p] == WHOLE:
        last = int(case.top[p]) - 1
        return max(0, min(int(np.ceil(lowest)) - 1, last)), last
    return max(0, min(int(lowest / case.total * GRID) - 1, GRID - 1)), GRID - 1


@leaf
@kernel
def _corner_steps(case, p, less):
    """Return the steps at which it holds whole mixes."""
    first = np.searchsorted(case.peak[p, : case.peaks[p]], _lowest_peak(case, p, less))
    return GRID + first, GRID + case.peaks[p] - 1


@leaf
@kernel
def _higher_steps(case, p, less):
    """Return the steps at which it holds more than any distinguished mix."""
    lowest = max(case.corner[p], _lowest_peak(case, p, less))
    return min(int(lowest / case.total * GRID), GRID - 1), GRID - 1


@leaf
@kernel
def _best_peak(case, room, p, n, less, program, start, steps):
    """Return the best step of the fullest region, from the first to the last, and its value.

    Convex in it, so by bisection.
    """
    first, last = steps
    low, high = first - 1, last + 1
    low_value, high_value = np.inf, np.inf
    m, reach = min(max(start, first), last), 2
    while high - low > 1:
        value, price = _at_peak(case, room, p, n, m, less, program)
        if value == np.inf or _peak_slope(case, room, _peak(case, p, m)[0], price) < 0.0:
            low, low_value = m, value
            m = min(m + reach, last) if high > last else (low + high) // 2
        else:
            high, high_value = m, value
            m = max(m - reach, first) if low < first else (low + high) // 2
        m = min(max(m, low + 1), high - 1)
        reach *= 4
    return (low, low_value) if low_value <= high_value else (high, high_value)


@leaf
@kernel
def part_value(case, room, value, p, split, extra, less, program):
    """Return the least priced cost of one part if `less` of the servable QPS are unmet.

    The best fill stays in the room. `split` and `extra` (P, R) define the gain of a part from a QPS in a region: a
    share of its worth, plus a sum.
    """
    n, runs = np.int64(0), np.int64(0)  # typed at once: a literal would compile all functions that take it once more
    for r in range(len(case.group)):
        if case.levels[p, r] == 0:
            continue
        k = 0
        while k < room.breaks[r]:
            c = room.order[r, k]
            if split[p, r] * (value[c] - case.way[c, r]) + extra[p, r] <= 0.0:
                break
            k += 1
        room.useful[p, r] = k
        k = bends(case, room, p, r, k, split[p, r], extra[p, r])
        room.runs[runs] = n
        n = hull(case, room, r, k, n)
        runs += 1
    room.runs[runs] = n
    rank_segments(room, n, runs)
    for g in range(len(case.inside)):
        room.target[g] = _target(case, p, case.inside[g] - less, 0.0)
    at, best = np.int64(-1), np.inf
    if case.survives and program > LOOSE:
        steps = _all_steps(case, p, less)
        at, _ = _best_peak(case, room, p, n, less, program, room.peak[p], steps)
        at = min(max(at, steps[0]), steps[1])
        room.peak[p] = at
    if program == WHOLES and case.peaks[p] > 0 and (case.survives or case.corner[p] >= case.top[p]):
        best, beyond = _whole_value(case, room, p, n, at, less, program)
        if beyond < 0:
            return best
        at, best = beyond if case.survives else -1, np.inf
    while best == np.inf:  # without room for that much: without the rules on totals the value is lower
        best, price = _at_peak(case, room, p, n, at, less, program)
        room.price[p] = price / case.scale[p]
        program = LOOSE
    return best


@leaf
@kernel
def _whole_value(case, room, p, n, at, less, program):
    """Return the least priced cost of whole mixes; the choice stays in the room as one segment for each region.

    From the best peak among the corners down, then up, for as long as the linear program promises more. Also returns
    -1, or the step of a fullest region beyond the corners at which the linear program is lower than that.
    """
    best = _known_value(case, room, p, less)
    begin, end, middle = GRID, GRID + case.peaks[p], -1
    if case.survives:
        begin, last = _corner_steps(case, p, less)
        begin = min(begin, last)
        middle = GRID + np.searchsorted(case.peak[p, : case.peaks[p]], _peak(case, p, at)[0])
        middle, _ = _best_peak(case, room, p, n, less, program, middle, (begin, last))
        middle = min(max(middle, begin), last)
    m, way = middle, -1
    while True:
        value, price = _at_peak(case, room, p, n, m, less, program)
        if value < best:
            cap, low = _peak(case, p, m)
            here = whole_program(case, room, p, cap, _target(case, p, case.cover - less, low), price, best)
            if here < best:
                best = here
                for r in range(len(room.trial)):
                    room.choice[p, r] = room.trial[r]
            m += way
        else:
            m = begin - 1 if way < 0 else end
        if way < 0 and m < begin:
            m, way = middle + 1, 1
        if middle < 0 or m >= end:
            break
    if case.survives and case.corner[p] < case.top[p]:
        m, value = _best_peak(case, room, p, n, less, program, at, _higher_steps(case, p, less))
        if value < best:
            return value, m
    if best < np.inf:
        for r in range(len(case.group)):
            i = room.choice[p, r]
            room.last[r] = r if i >= 0 else -1
            if i >= 0:
                room.begin[r], room.end[r], room.filled[r] = 0.0, case.level[p, r, i], case.level[p, r, i]
        return best, -1
    return best, max(at, 0)


@leaf
@kernel
def _known_value(case, room, p, less):
    """Return the priced cost of the choice that was best last time; infinite if there is none or it misses a target."""
    cost, total, peak = 0.0, 0.0, 0.0
    room.held[:] = 0.0
    for r in range(len(case.group)):
        i = room.choice[p, r]
        if i == UNSET:
            return np.inf
        if case.forced[r] and (i < 0 or case.levels[p, r] == 0):
            return np.inf
        if i < 0 or case.levels[p, r] == 0:
            continue
        level = case.level[p, r, i]
        cost += room.table[r, i]
        total += level
        peak = max(peak, level)
        if case.group[r] >= 0:
            room.held[case.group[r]] += level
    if case.survives and peak < _lowest_peak(case, p, less):
        return np.inf
    for g in range(len(case.inside)):
        if room.held[g] < room.target[g] * (1 - 1e-12):
            return np.inf
    if total < _target(case, p, case.cover - less, peak if case.survives else 0.0) * (1 - 1e-12):
        return np.inf
    return cost
