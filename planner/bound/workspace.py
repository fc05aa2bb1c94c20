"""Workspace of one model's bounds: arrays that the kernels of `planner.bound.bound` write, allocated once per model."""

# Kernels: numba infers their types, arrays come one by one, and the loops of one search stay in one function.
# ruff: noqa: ANN001, ANN201
# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs, no-warn-return-any

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from planner.bound.levels import MOST_CORNERS
from planner.core.arrays import Floats, Ints
from planner.jit import kernel

MOST_STATES = 256
"""Sums of levels that the dynamic program distinguishes."""
UNSET = -2
"""No choice is known yet; -1 is the choice of no replicas."""


def leaf(compiled: Any) -> Any:
    """Mark a kernel that allocates no arrays.

    numba then counts no references to its arguments, which took most of the time.

    The same holds for the numpy functions that it calls, if it is the first in a process to have them compiled:
    functions that allocate an array inside, such as `max`, can't be compiled then.
    """
    compiled.targetoptions["_nrt"] = False
    return compiled


class Room(NamedTuple):
    """Workspace for the bounds of one model. N segments, B bends; the rest as in Case."""

    order: Ints
    """(R, C) classes that reach a region, the most valued first."""
    broad: Floats
    """(R, C + 1) their QPS, cumulative."""
    gain: Floats
    """(R, C + 1) their worth in $/h, cumulative."""
    breaks: Ints
    """(R,) their number, up to the most that a region may serve."""
    useful: Ints
    """(P, R) number of them that a part gains from."""
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
    """(2, N) segments by slope, and space to sort them."""
    runs: Ints
    filled: Floats
    """(R,) level of a region in the last fill."""
    last: Ints
    """(R,) segment in which it ends, or -1."""
    target: Floats
    """(G,) levels that the groups must reach."""
    held: Floats
    """(G,) their current levels."""
    toll: Floats
    """(G,) price of one level in a group."""
    peak: Ints
    """(P,) best step of the fullest region, to start the next search from."""
    price: Floats
    """(P,) $/h for one QPS more in total."""
    base: Floats
    """(R,) priced cost of the least level of a region that must serve."""
    serves: Floats
    """(P, R) fraction to which a part serves in a region, in the last fill."""
    mean: Floats
    """(R,) fraction to which the parts serve in a region, in the mix of fills that the last ascent ended with."""
    choice: Ints
    """(P, R) levels chosen in the last program over whole replicas."""
    trial: Ints
    """(R,) levels chosen for one peak."""
    ways: Ints
    """(R,) number of choices of a region."""
    way_index: Ints
    """(R, K + 1) the choices: index of a level, -1 for none."""
    way_level: Floats
    way_excess: Floats
    """(R, K + 1) $/h above the region's cheapest choice at the prices."""
    sums: Floats
    """(4, MOST_STATES) two lists of a group's states, two of all groups'."""
    excess: Floats
    parent: npt.NDArray[np.int16]
    """(R + G + 1, MOST_STATES) parent of each state."""
    pick: npt.NDArray[np.int16]
    """(R + G + 1, MOST_STATES) choice that led to it."""
    kept: npt.NDArray[np.int16]
    """(G + 1, MOST_STATES) states of a group that reach its target."""
    merged: Floats
    """(2, 2 MOST_STATES) states while they are merged."""
    merged_excess: Floats
    merged_parent: npt.NDArray[np.int16]
    merged_pick: npt.NDArray[np.int16]
    work: Ints
    """(1,) number of states that may still be merged."""


@kernel
def room_for(case):
    """Allocate the workspace for a model of this shape."""
    classes, regions = case.reach.shape
    parts, groups = len(case.mode), len(case.inside)
    bends = 2 * classes + MOST_CORNERS + 4
    n = regions * (bends + 1)  # one more for the least level of a region that must serve
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
        np.zeros((2, n), np.int64),
        np.zeros(regions + 1, np.int64),
        np.zeros(regions),
        np.zeros(regions, np.int64),
        np.zeros(groups),
        np.zeros(groups),
        np.zeros(groups),
        np.zeros(parts, np.int64),
        np.zeros(parts),
        np.zeros(regions),
        np.zeros((parts, regions)),
        np.zeros(regions),
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
