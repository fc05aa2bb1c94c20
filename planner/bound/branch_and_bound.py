"""One model's bound: the ascent over all its plans, then branch and bound if the remaining gap is too wide.

Called by `planner.bound.bound`. A branch fixes for some regions whether they serve, and a range for the load of the
region that serves most. A plan belongs to exactly one of the open branches, so the least of their bounds holds for all
(Land and Doig, Econometrica 28, 1960). A branch starts from the figures that bounded its parent.
"""

# Kernels: numba infers their types, arrays come one by one, and the loops of one search stay in one function.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs, no-warn-return-any

from typing import NamedTuple

import numpy as np

from planner.bound.bundle import ascend, bound_at, climb, worth_of
from planner.bound.part_subproblem import HULLS, LOOSE, WHOLES
from planner.bound.subproblem import Flags, case_of, classes_of, coverable, holding
from planner.bound.workspace import room_for
from planner.core.arrays import Floats, Ints
from planner.jit import kernel

FREE, CLOSED, SERVING = 0, 1, 2
"""State of a region in a branch."""
CREST, NOTHING = -2, -1
"""Splits: by the load of the fullest region, or none; else by a region."""
CRESTS = (0.5, 0.38, 0.3, 0.22, 0.15, 0.0)
"""Shares of the demand at which that load is split at first."""
CREST_SHARE = 0.2
"""It is split further while the split may gain this share of the gap."""
NODE_EFFORT = 16
"""Steps of the ascent in one branch."""
NODE_WORK = 8000


class Tree(NamedTuple):
    """N branches. An open branch may still be split; a closed one has a bound of infinity."""

    state: Ints
    """(N, R)"""
    crest: Floats
    """(N, 2) QPS, least and most, of the region that serves most."""
    bound: Floats
    """(N,) $/h"""
    point: Floats
    """(N, size)"""
    step: Floats
    """(N,) of the ascent."""
    split: Ints
    """(N,) the next split."""


class Plain(NamedTuple):
    """Fields of a case that the branches change, without any branch."""

    reach: Flags
    levels: Ints
    corners: Ints
    group: Ints


@kernel
def model_bound(shop, ceiling, effort, nodes):
    """Return $/h that no plan of one model can undercut.

    Ends early at `ceiling`; splits into at most about `nodes` branches.
    """
    holds = holding(shop)
    demand, reach, way, lost = classes_of(shop, holds)
    lost *= shop.missed
    if len(demand) == 0:
        return lost
    cover = coverable(shop, holds, demand.sum())
    if cover <= 0.0:
        return lost + demand.sum() * shop.missed
    case = case_of(shop, holds, demand, reach, way, cover)
    top = 0.0
    for c in range(len(demand)):
        top = max(top, worth_of(case, c, np.zeros(len(holds))))
    limit = min(max(2 * top, 0.25 * shop.missed), 0.5 * shop.missed)
    room = room_for(case)
    best, point, split, step = ascend(case, room, limit, ceiling - lost, effort, np.int64(HULLS))
    if 2 * top > 0.5 * shop.missed:  # if unmet demand may be cheaper, the rules on totals count for little
        loose, _, _, _ = ascend(case, room_for(case), shop.missed, ceiling - lost, effort, np.int64(LOOSE))
        best = max(best, loose)
    if nodes > 0 and lost + best < ceiling:
        best = max(best, _branch(case, room, point, split, step, limit, ceiling - lost, best, nodes))
    nothing = (
        demand.sum() * shop.missed
    )  # all else holds for plans that serve something: a fullest region holds replicas
    return lost + min(max(best, 0.0), nothing)


@kernel
def _branch(case, room, point, split, step, limit, ceiling, known, nodes):
    """Return the bound by at most `nodes` branches, the one of the least bound split first.

    `known` holds without any.
    """
    tree, plain = _tree(case, point, nodes), _plain(case)
    used = np.int64(0)  # a literal would be a type of its own: numba would compile all that takes it twice
    upper = 1.0
    for lower in CRESTS:
        if used < nodes and (case.survives or used == 0):
            last = used == nodes - 1 or not case.survives
            tree.crest[used] = 0.0 if last else lower * case.total, upper * case.total
            tree.point[used], tree.step[used] = point, step
            _bound_node(case, room, tree, plain, used, split, limit, ceiling, known)
            used, upper = used + 1, lower
    ended = ceiling
    while used + 1 <= nodes:
        i = np.argmin(tree.bound[:used])
        if tree.bound[i] >= ended:
            break
        r = tree.split[i]
        if r == NOTHING:
            ended = tree.bound[i]
            break
        least = tree.bound[i]
        j = used
        tree.state[j], tree.crest[j] = tree.state[i], tree.crest[i]
        tree.point[j], tree.step[j] = tree.point[i], tree.step[i]
        if r == CREST:
            middle = (tree.crest[i, 0] + tree.crest[i, 1]) / 2
            tree.crest[i, 1], tree.crest[j, 0] = middle, middle
        else:
            tree.state[i, r], tree.state[j, r] = CLOSED, SERVING
        used += 1
        _bound_node(case, room, tree, plain, i, split, limit, ceiling, least)
        _bound_node(case, room, tree, plain, j, split, limit, ceiling, least)
    return min(ended, tree.bound[:used].min())


@kernel
def _tree(case, point, nodes):
    regions = case.reach.shape[1]
    return Tree(
        np.zeros((nodes, regions), np.int64),
        np.zeros((nodes, 2)),
        np.full(nodes, np.inf),
        np.zeros((nodes, len(point))),
        np.zeros(nodes),
        np.full(nodes, NOTHING),
    )


@kernel
def _plain(case):
    return Plain(case.reach.copy(), case.levels.copy(), case.corners.copy(), case.group.copy())


@kernel
def _bound_node(case, room, tree, plain, i, split, limit, ceiling, known):
    """Bound one branch, at least by the known bound of all its plans, and choose its next split."""
    _enter(case, tree, plain, i)
    program = np.int64(WHOLES if case.peaks.max() > 0 else HULLS)
    point = tree.point[i]
    mean = point[: len(case.demand)].mean()
    room.work[0] = NODE_WORK
    step = min(tree.step[i], 0.25 * mean) if mean > 0.0 else tree.step[i]
    _, tree.step[i] = climb(case, room, point, split, limit, ceiling, np.int64(NODE_EFFORT), step, np.int64(HULLS))
    room.work[0] = NODE_WORK
    tree.bound[i] = max(known, bound_at(case, room, point, split, program))
    tree.split[i] = _next_split(case, room, tree, i, ceiling)


@kernel
def _enter(case, tree, plain, i):
    """Set the case to a branch."""
    state = tree.state[i]
    case.reach[:] = plain.reach
    case.levels[:] = plain.levels
    case.corners[:] = plain.corners
    case.group[:] = plain.group
    case.crest[:] = tree.crest[i]
    for r in range(len(state)):
        case.forced[r] = state[r] == SERVING
        if state[r] == CLOSED:
            case.reach[:, r] = False
            case.group[r] = -1
            if not case.survives:
                case.levels[:, r] = 0
                case.corners[:, r] = 0


@kernel
def _next_split(case, room, tree, i, ceiling):
    """Return the least decided split: the load of the fullest region, or whether some region serves."""
    low, high = tree.crest[i]
    if case.survives and (high - low) * room.price.sum() > CREST_SHARE * (ceiling - tree.bound[i]):
        return CREST
    best, at = -1.0, NOTHING
    for r in range(case.reach.shape[1]):
        if tree.state[i, r] == FREE and case.reach[:, r].any():
            here = min(room.mean[r], 1 - room.mean[r])
            if here > best:
                best, at = here, r
    return at
