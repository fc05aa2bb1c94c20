"""One model's bound and the ascent that tightens it.

Called by `planner.bound.branch_and_bound`. The links between a model's parts and its traffic are priced: `value` (C,)
is the worth of serving one QPS of a class. A part gains from a QPS in a region its `split` of that worth plus `extra`
(P, R); over the parts, the splits sum to 1 and the extras to 0. Any figures give a bound; a proximal bundle method
finds good ones (Kiwiel, Mathematical Programming 46, 1990).
"""

import numpy as np

from planner.bound.convex_hull import weigh
from planner.bound.part_subproblem import HULLS, LOOSE, WHOLES, part_value
from planner.bound.subproblem import UNROUNDED
from planner.bound.workspace import leaf
from planner.jit import kernel

CUTS = 14
"""Linear pieces that the bundle keeps."""
WORK = 100000
FACTORS = (16.0, 16.0, 4.0, 1.5)
"""Ratio of the far end of a range of unmet demand to its near end, from the first to the last attempt; hulls at the
first."""
SIDE = 4.0
"""Step of `extra` relative to that of `value`."""
CLOSE = 1e-4
"""The ascent ends if it can gain no more than this share of the bound."""


@kernel
def ascend(case, room, limit, ceiling, effort, program):
    """Return the best bound with values up to `limit`, its point and its split.

    Hulls come first, then whole replicas.
    """
    point, split = _start(case, room, limit, program)
    best, step, last = -np.inf, 0.0, program
    if program == HULLS and case.peaks.max() > 0:
        last = WHOLES
    while program <= last:
        room.work[0] = WORK
        bound, step = climb(case, room, point, split, limit, ceiling, effort, step, program)
        if program == last or bound >= ceiling or room.work[0] <= 0:
            room.work[0] = WORK
            best = max(best, bound_at(case, room, point, split, program))
        if best >= ceiling:
            break
        effort = max(1, effort // 3)
        program += 1
    return best, point, split, step


@leaf
@kernel
def worth_of(case, c, prices):
    """Return the least $/h for a QPS of a class over the regions in reach, beyond the revenue at the parts' prices."""
    worth = np.inf
    for r in range(case.reach.shape[1]):
        if case.reach[c, r]:
            here = case.way[c, r]
            for p in range(len(prices)):
                here += max(0.0, case.rent[p, r] - prices[p])
            worth = min(worth, here)
    return worth


@kernel
def _start(case, room, limit, program):
    """Start from the best of a few points: zero worth, or all worth that survival does not pay for.

    Returns its split.
    """
    classes, regions = case.reach.shape
    parts = len(case.mode)
    point, slope = np.zeros(classes + parts * regions), np.zeros(classes + parts * regions)
    split, prices, base = np.zeros((parts, regions)), np.zeros(parts), np.zeros(parts)
    best, best_point, best_split = -np.inf, point.copy(), split.copy()
    for k in range(4 if case.survives and program > LOOSE else 2):
        for p in range(parts):
            prices[p] = base[p] * max(k - 1, 0) / 2
        _divide(case, prices, split)
        if k > 0:
            for c in range(classes):
                point[c] = min(limit, worth_of(case, c, prices))
        bound = evaluate(case, room, point, split, slope, program)
        if k == 0:
            base[:] = room.price
        if bound > best:
            best = bound
            best_point[:] = point
            best_split[:] = split
    return best_point, best_split


@leaf
@kernel
def _divide(case, prices, split):
    """Split a QPS's worth in a region by the cost of each part there beyond its price."""
    parts, regions = case.rent.shape
    for r in range(regions):
        total = 0.0
        for p in range(parts):
            rent = case.rent[p, r]
            split[p, r] = max(rent - prices[p], 1e-6 * rent) if rent < np.inf else 0.0
            total += split[p, r]
        for p in range(parts):
            split[p, r] = split[p, r] / total if total > 0.0 else 1.0 / parts


@leaf
@kernel
def evaluate(case, room, point, split, slope, program):
    """Return the bound at a point if all demand in reach is served. Fills its slope."""
    parts, regions = case.rent.shape
    classes = len(case.demand)
    value = point[:classes]
    extra = point[classes:].reshape(parts, regions)
    load = slope[classes:].reshape(parts, regions)
    weigh(case, room, value)
    bound = 0.0
    load[:] = 0.0
    for c in range(classes):
        bound += case.demand[c] * value[c]
        slope[c] = case.demand[c]
    for p in range(parts):
        bound += part_value(case, room, value, p, split, extra, 0.0, program)
        _subtract(case, room, p, split, slope, load)
    for r in range(regions):
        mean = 0.0
        for p in range(parts):
            mean += load[p, r] / parts
        for p in range(parts):
            load[p, r] = mean - load[p, r]
    return bound


@leaf
@kernel
def _subtract(case, room, p, split, slope, load):
    """Subtract from the slope the demand that regions serve in the last fill of a part, and record their loads."""
    for r in range(len(case.group)):
        i = room.last[r]
        room.serves[p, r] = 0.0
        if i < 0 or case.levels[p, r] == 0:
            continue
        begin, end = room.begin[i], room.end[i]
        share = (room.filled[r] - begin) / (end - begin)
        low, high = begin * case.scale[p], end * case.scale[p]
        for k in range(room.useful[p, r]):
            c, before = room.order[r, k], room.broad[r, k]
            q = room.broad[r, k + 1] - before
            served = (1 - share) * min(max(low - before, 0.0), q) + share * min(max(high - before, 0.0), q)
            slope[c] -= split[p, r] * served
            load[p, r] += served
        if room.useful[p, r] > 0:
            room.serves[p, r] = share if begin == 0.0 else 1.0


@leaf
@kernel
def bound_at(case, room, point, split, program):
    """Return the bound at a point, whatever is left unmet.

    The unmet amount is cut into ranges; in each, the rules on totals are those of its far end and the cost that of its
    near end. Demand that no plan can serve is unmet in any case.
    """
    parts, regions = case.rent.shape
    classes = len(case.demand)
    value = point[:classes]
    extra = point[classes:].reshape(parts, regions)
    weigh(case, room, value)
    fixed = 0.0
    for c in range(classes):
        fixed += case.demand[c] * value[c]
    loose = _parts_value(case, room, value, split, extra, 0.0, np.int64(LOOSE))
    if program == LOOSE:
        return fixed + loose
    full = _parts_value(case, room, value, split, extra, 0.0, program)
    most = value[0]
    for v in value:  # not `value.max()`: see `leaf`
        most = max(most, v)
    fine = case.missed - most
    least, near = full, case.cover * UNROUNDED
    while fine * near < full - loose and near < case.cover:
        for k in range(4):
            far = min(FACTORS[k] * near, case.cover)
            means = min(program, HULLS) if k == 0 else program
            here = fine * near + _parts_value(case, room, value, split, extra, far, means)
            if here >= full:
                break
        least = min(least, here)
        near = far
    return fixed + least + fine * (case.total - case.cover)


@leaf
@kernel
def _parts_value(case, room, value, split, extra, less, program):
    total = 0.0
    for p in range(len(case.mode)):
        total += part_value(case, room, value, p, split, extra, less, program)
    return total


@leaf
@kernel
def _weights(gram, error, count, t, weight):
    """Minimise t/2 |sum w g|^2 + sum w error over the simplex, by pairwise steps from the weights given."""
    for _ in range(60):
        best, worst = 0, 0
        low, high = np.inf, -np.inf
        for i in range(count):
            slope = error[i]
            for j in range(count):
                slope += t * gram[i, j] * weight[j]
            if slope < low:
                low, best = slope, i
            if weight[i] > 0.0 and slope > high:
                high, worst = slope, i
        if best == worst or high - low <= 1e-9 * abs(high):
            break
        curve = t * (gram[best, best] + gram[worst, worst] - 2 * gram[best, worst])
        move = weight[worst]
        if curve > 0.0:
            move = min(move, (high - low) / curve)
        weight[best] += move
        weight[worst] -= move


@kernel
def climb(case, room, point, split, limit, ceiling, effort, step, program):
    """Move the point to better bounds. `step` is the first step, or 0. Returns the bound and the last step.

    The model of the bound is the minimum of the linear pieces found so far; each trial maximises it minus a quadratic
    distance from the point. A trial that gains enough becomes the point; any other adds a piece.
    """
    classes, size = len(case.demand), len(point)
    metric = np.full(size, SIDE / case.total if len(case.mode) > 1 else 0.0)
    metric[:classes] = 1 / case.demand
    parts, regions = case.rent.shape
    serves, room.mean[:] = np.zeros((CUTS, regions)), 0.0
    cuts, error, weight = np.zeros((CUTS, size)), np.zeros(CUTS), np.zeros(CUTS)
    gram = np.zeros((CUTS, CUTS))
    trial, fresh, direction = point.copy(), np.zeros(size), np.zeros(size)
    mean = point[:classes].mean()
    bound, expected, count = -np.inf, 0.0, 0
    for _ in range(effort + 1):
        found = evaluate(case, room, trial, split, fresh, program)
        off = 0.0
        if count == 0:
            bound = found
            if step == 0.0:
                step = 0.25 * mean if mean > 0.0 else 0.1 * max(bound, 0.0) / case.total
        elif found > bound + 0.05 * expected:
            for i in range(count):
                error[i] = max(0.0, error[i] + bound - found + _along(cuts[i], trial, point))
            if found > bound + 0.5 * expected:
                step *= 2.0
            bound = found
            point[:] = trial
        else:
            off = max(0.0, found - bound + _along(fresh, point, trial))
            if off > 2 * expected:
                step *= 0.7
        if bound >= ceiling or room.work[0] <= 0:
            break
        at = count
        if count == CUTS:
            at = 0
            for i in range(1, count):
                if weight[i] < weight[at] or (weight[i] == weight[at] and error[i] > error[at]):
                    at = i
            for i in range(count):
                weight[i] += weight[at] / (count - 1)
        else:
            count += 1
        error[at], weight[at] = off, 1.0 if count == 1 else 0.0
        for j in range(size):
            cuts[at, j] = fresh[j]
        for r in range(regions):
            serves[at, r] = room.serves[:, r].sum() / parts
        for i in range(count):
            product = 0.0
            for j in range(size):
                product += cuts[i, j] * fresh[j] * metric[j]
            gram[i, at] = product
            gram[at, i] = product
        while True:
            _weights(gram, error, count, step, weight)
            expected, norm = 0.0, 0.0
            for j in range(size):
                direction[j] = 0.0
            for i in range(count):
                expected += weight[i] * error[i]
                if weight[i] > 0.0:
                    for j in range(size):
                        direction[j] += weight[i] * cuts[i, j]
            for j in range(size):
                norm += direction[j] * direction[j] * metric[j]
            small = step * norm + expected < CLOSE * bound
            if not small or step > 100 * mean or max(expected, 40 * step * norm) < CLOSE * bound:
                break
            step *= 4
        if small:
            break
        expected += step * norm
        for j in range(size):
            trial[j] = point[j] + step * direction[j] * metric[j]
            if j < classes:
                trial[j] = min(max(trial[j], 0.0), limit)
    for i in range(count):
        for r in range(regions):
            room.mean[r] += weight[i] * serves[i, r]
    return bound, step


@leaf
@kernel
def _along(slope, end, start):
    """Return the change of a linear piece from one point to another."""
    change = 0.0
    for j in range(len(slope)):
        change += slope[j] * (end[j] - start[j])
    return change
