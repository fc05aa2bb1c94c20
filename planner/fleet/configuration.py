"""The cheapest configuration of one model at given prices.

Compiled kernels that `planner.fleet.pricing` maps over a fleet.

A *configuration* is one model's whole part of a plan: whole replicas of each part by region and hardware, and the flow
of its demand. The search is a local one over the set of regions that serve. For a set, the demand goes to the cheapest
member within tolerance. Each part is filled up to its load, filled further until it survives the loss of any region,
and relieved of unneeded replicas. Nothing here proves anything: `planner.bound.bound` does.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from planner.core.arrays import Floats, Ints
from planner.fleet.demand_assignment import Space, assign, cost_within, cover, finish_assignment, rents, space
from planner.fleet.replica_allocation import SMALL, Model, able, count_replicas, extend
from planner.jit import entry_kernel, kernel

THOROUGH = 20
"""Number of evaluations from which other levels of load are tried as well."""


class Best(NamedTuple):
    """The cheapest configuration so far: its $/h (in an array of one), replicas, flows and loads."""

    cost: Floats
    counts: Ints
    flow: Floats
    load: Floats


@kernel
def _keep(best: Best, cost: float, room: Space) -> None:
    if cost < best.cost[0] * (1 - 1e-12):
        best.cost[0] = cost
        best.counts[:] = room.counts
        best.flow[:] = room.flow
        best.load[:] = room.load


@kernel
def _try(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    level: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
) -> float:
    """Return the cost of serving from `members`, each taking `level` QPS before the dearer ones get any."""
    soft[:] = level
    value = cost_within(model, members, rent, soft, supply, scale, room)
    _keep(best, value, room)
    return value


@kernel
def _survivable(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    total: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
    effort: int,
) -> float:
    """Find the best level of load, with as many members as it needs, if a region may be lost. Returns the level.

    The lower the level, the less is lost with one region and the more regions hold replicas. Levels tried: the kth part
    of the demand, and whole replicas of each option. Leaves in `members` those that the best level sends load to.
    """
    regions = len(rent)
    everywhere = rent < np.inf
    level, cheapest = total, np.inf
    quick = effort < THOROUGH
    for k in range(1, regions + 1):
        if quick and k > 6 and k not in (8, 10, 12, 15, 20):
            continue
        value = _try(model, rent, supply, scale, total / k * (1 + 1e-9), everywhere, soft, room, best)
        if value < cheapest:
            cheapest, level = value, total / k * (1 + 1e-9)
            members[:] = room.load > 0.0
    if not quick:
        for o in range(len(model.rate)):
            usual = np.floor(level / model.rate[o])
            for n in range(1, 9):
                count = float(n) if n <= 6 else usual + n - 7
                if count < 1.0 or count * model.rate[o] < total / regions or (n > 6 and count <= 6):
                    continue
                if count * model.rate[o] > total + model.rate[o]:
                    continue
                trial = count * model.rate[o] * (1 + 1e-9)
                value = _try(model, rent, supply, scale, trial, everywhere, soft, room, best)
                if value < cheapest:
                    cheapest, level = value, trial
                    members[:] = room.load > 0.0
    return level


@entry_kernel
def configure(model: Model, supply: Floats, scale: float, effort: int, count: Ints, flow: Floats) -> float:
    """Return the $/h of the cheapest configuration found, at the model's prices.

    Writes count (O, R) and flow (S, R) QPS. `supply` (R, H) limits the units; `scale` is the share of each demand that
    is served; `effort` the number of evaluations (0: only the current replicas are adapted, if there are any).
    """
    regions = supply.shape[0]
    rent = rents(model, supply)
    room = space(model, supply)
    total = model.demand.sum()
    best = Best(np.array([total * model.missed]), count, flow, np.zeros(regions))
    count[:] = 0
    flow[:] = 0.0
    members = np.zeros(regions, dtype=np.bool_)
    soft = np.full(regions, np.inf)
    level = np.inf
    used = 1
    if scale >= 1.0 and model.running.any():
        _keep(best, adapt(model, supply, rent, room), room)
        if effort == 0:
            return best.cost[0]
    if model.survives:
        level = _survivable(model, rent, supply, scale, total, members, soft, room, best, effort)
    else:
        cover(model, rent, supply, members)
        if members.any():
            used = _grow(model, rent, supply, scale, members, soft, room, best)
    if members.any():
        _exchange(model, rent, supply, scale, level, members, soft, room, best, used, effort)
        soft[:] = level
        if effort >= THOROUGH:
            _levels(model, rent, supply, scale, total, level, members, soft, room, best)
        _squeeze(model, rent, supply, scale, members, soft, room, best, effort)
    return best.cost[0]


@kernel
def adapt(model: Model, supply: Floats, rent: Floats, room: Space) -> float:
    """Adapt the current replicas to today's demand with the fewest additions and without unneeded ones; return its $/h.

    Infinite if it does not fit into `supply`. Fills `room` as `evaluate` does.
    """
    regions = len(rent)
    room.counts[:] = model.running
    room.left[:] = supply
    for p in range(len(model.least)):
        for r in range(regions):
            if count_replicas(model, p, r, room.counts) < model.least[p]:
                for o in range(model.starts[p], model.starts[p + 1]):
                    room.counts[o, r] = 0
    for o in range(len(model.rate)):
        for r in range(regions):
            room.left[r, model.kind[o]] -= room.counts[o, r] * model.units[o]
    soft = np.empty(regions)
    for r in range(regions):
        for h in range(supply.shape[1]):
            if room.left[r, h] < -1e-9 * max(1.0, supply[r, h]):
                return np.inf
        soft[r] = np.inf
        for p in range(len(model.least)):
            soft[r] = min(soft[r], able(model, p, r, room.counts))
        room.hard[r] = np.inf
    members = rent < np.inf
    for r in range(regions):
        members[r] = members[r] or soft[r] > 0.0
    way = np.where(rent < np.inf, rent, 0.0)
    for _ in range(3):
        assign(model, members, way, soft, room.hard, room.load, room.flow)
        fits = True
        for r in range(regions):
            if room.load[r] <= 0.0:
                continue
            can = np.inf
            for p in range(len(model.least)):
                can = min(can, extend(model, p, r, room.load[r], room.left, room.counts))
            if can < room.load[r] * (1 - SMALL):
                room.hard[r] = can
                fits = False
        if fits:
            return finish_assignment(
                model, model.demand.sum(), room.counts, room.load, room.flow, room.left, room.ables
            )
    return np.inf


@kernel
def _serves(model: Model, r: int) -> bool:
    """Check whether any users reach the region."""
    found = False
    for s in range(len(model.demand)):
        found = found or (model.demand[s] > 0.0 and model.reach[s, r])
    return found


@kernel
def _grow(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
) -> int:
    """Add members in the order of their rent, for as long as one of three helps."""
    here = _try(model, rent, supply, scale, np.inf, members, soft, room, best)
    used, fails = 1, 0
    for r in np.argsort(rent, kind="mergesort"):
        if members[r] or rent[r] == np.inf or not _serves(model, r):
            continue
        members[r] = True
        value = _try(model, rent, supply, scale, np.inf, members, soft, room, best)
        used += 1
        if value < here * (1 - 1e-9):
            here, fails = value, 0
            continue
        members[r] = False
        fails += 1
        if fails >= 3:
            break
    return used


@kernel
def _drop_spared(model: Model, kept: int, order: Ints, members: npt.NDArray[np.bool_]) -> bool:
    """Drop members, dearest first, whose users all reach another one. False if fewer than two can go."""
    dropped = 0
    for i in range(len(order) - 1, -1, -1):
        r = order[i]
        if not members[r] or r == kept:
            continue
        needed = False
        for s in range(len(model.demand)):
            if model.demand[s] > 0.0 and model.reach[s, r]:
                other = False
                for x in range(len(members)):
                    other = other or (x != r and members[x] and model.reach[s, x])
                if not other:
                    needed = True
                    break
        if not needed:
            members[r] = False
            dropped += 1
    return dropped >= 2


@kernel
def _exchange(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    level: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
    used: int,
    effort: int,
) -> int:
    """Drop one member, or replace it by another, while that helps."""
    order = np.argsort(rent, kind="mergesort")
    trial = members.copy()
    here = best.cost[0]
    improved = True
    while improved and used < effort:
        improved = False
        for x in order:
            if members[x] or rent[x] == np.inf or used >= effort:
                continue
            trial[:] = members
            trial[x] = True
            if not _drop_spared(model, x, order, trial):
                continue
            value = _try(model, rent, supply, scale, level, trial, soft, room, best)
            used += 1
            if value < here * (1 - 1e-9):
                here, improved = value, True
                members[:] = trial
        for r in range(len(members)):
            if not members[r]:
                continue
            for i in range(-1, len(order)):
                if used >= effort:
                    return used
                trial[:] = members
                trial[r] = False
                if i < 0 and not trial.any():
                    continue
                if i >= 0:
                    x = order[i]
                    if members[x] or rent[x] == np.inf:
                        continue
                    trial[x] = True
                value = _try(model, rent, supply, scale, level, trial, soft, room, best)
                used += 1
                if value < here * (1 - 1e-9):
                    here, improved = value, True
                    members[:] = trial
                    break
    return used


@kernel
def _levels(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    total: float,
    level: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
) -> None:
    """Try other levels of load for the same members: whole replicas of one option. Leaves the best in `soft`."""
    base = level if level < np.inf else total / members.sum()
    levelled = np.empty_like(soft)
    here = best.cost[0]
    for o in range(len(model.rate)):
        for up in range(2):
            trial = max(1.0, np.floor(base / model.rate[o] * (1 + 1e-9)) + up) * model.rate[o]
            value = _try(model, rent, supply, scale, trial, members, levelled, room, best)
            if value < here * (1 - 1e-12):
                here = value
                soft[:] = levelled


@kernel
def _squeeze(
    model: Model,
    rent: Floats,
    supply: Floats,
    scale: float,
    members: npt.NDArray[np.bool_],
    soft: Floats,
    room: Space,
    best: Best,
    effort: int,
) -> None:
    """Lower the load of one member to the capacity of one replica less of some part, while that helps."""
    trial = soft.copy()
    used = 0
    improved = True
    while improved and used < effort:
        improved = False
        for r in range(len(members)):
            for p in range(len(model.least)):
                load = best.load[r]
                if load <= 0.0 or used >= effort:
                    continue
                cheapest, rate = np.inf, 1.0
                for o in range(model.starts[p], model.starts[p + 1]):
                    if best.counts[o, r] and model.price[o, r] / model.rate[o] < cheapest:
                        cheapest, rate = model.price[o, r] / model.rate[o], model.rate[o]
                trial[:] = soft
                trial[r] = np.floor(load / rate * (1 - 1e-9)) * rate
                value = cost_within(model, members, rent, trial, supply, scale, room)
                used += 1
                if value < best.cost[0] * (1 - 1e-9):
                    soft[:] = trial
                    _keep(best, value, room)
                    improved = True
