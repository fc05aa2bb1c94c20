"""One model placed at least cost on what is left: the kernel of the greedy peer, compiled.

Called by `benchmarks.planner.peers.greedy` for one model after the other. A candidate is a set of regions that serve;
for each one the users' demand is routed, every part gets whole replicas, and the cheapest candidate wins. Shapes: R
regions, H hardware kinds, P parts and O options of this model. Shares no code with the planner.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

EPSILON = 1e-9
INFINITE = np.inf
MOST_TO_SWAP = 6
"""Sets of more regions are improved by adding and dropping only."""


class Model(NamedTuple):
    """What is to be placed, and on what."""

    demand: Floats
    """(R,) QPS by users' region."""
    near: Flags
    """(R, R) whether users of the first region may be served in the second."""
    survives: bool
    budget: float
    """$/h that may be spent."""
    missed: float
    """$/h for one QPS left unmet."""
    parts: Ints
    """(P + 1,) options of part p are parts[p] to parts[p + 1]."""
    least: Ints
    """(P,) `min_replicas`."""
    kind: Ints
    """(O,) hardware kind."""
    units: Floats
    """(O,) units a replica."""
    qps: Floats
    """(O,) QPS a replica."""
    left: Floats
    """(R, H) units left."""
    price: Floats
    """(R, H) $/h a unit."""


class Search(NamedTuple):
    """What every candidate of one model is measured with."""

    most: Floats
    """(R,) QPS that all parts together can be held for in a region."""
    qps_cost: Floats
    """(R,) $/h of one QPS, replicas being divisible."""
    order: Ints
    """(R,) regions, cheapest first."""
    counts: Floats
    """(O, R) replicas of the candidate measured last."""
    flow: Floats
    """(R, R) QPS from users to regions, likewise."""


@njit(cache=True)
def whole(figure: float) -> float:
    """Return the largest whole number not above the figure, forgiving its last digits."""
    return np.floor(figure + EPSILON)


@njit(cache=True)
def fill(model: Model, part: int, region: int, load: float, left: Floats, counts: Floats) -> float:
    """Cheapest whole replicas of one part for `load` QPS in a region, taken from `left` (H,); $/h, infinite if none.

    Tries each option alone and each pair (all but the rest on one, the rest on the other); then as much of the cheapest
    as fits and so on. `counts` (O,) gets the replicas of the part's options.
    """
    best, one, two, some, more = INFINITE, -1, -1, 0.0, 0.0
    for a in range(model.parts[part], model.parts[part + 1]):
        cost, able = model.price[region, model.kind[a]] * model.units[a], whole(left[model.kind[a]] / model.units[a])
        need = max(np.ceil(load / model.qps[a] - EPSILON), model.least[part])
        if need <= able and need * cost < best:
            best, one, two, some = need * cost, a, -1, need
        first = min(whole(load / model.qps[a]), able)
        for b in range(model.parts[part], model.parts[part + 1]):
            if b == a or first == 0:
                continue
            rest = np.ceil((load - first * model.qps[a]) / model.qps[b] - EPSILON)
            fits = rest <= whole(left[model.kind[b]] / model.units[b]) and first + rest >= model.least[part]
            total = first * cost + rest * model.price[region, model.kind[b]] * model.units[b]
            if rest > 0 and fits and total < best:
                best, one, two, some, more = total, a, b, first, rest
    if one < 0:
        return fill_mixed(model, part, region, load, left, counts)
    counts[one] = some
    left[model.kind[one]] -= some * model.units[one]
    if two >= 0:
        counts[two] = more
        left[model.kind[two]] -= more * model.units[two]
    return best


@njit(cache=True)
def fill_mixed(model: Model, part: int, region: int, load: float, left: Floats, counts: Floats) -> float:
    """As `fill`, over any number of options, the cheapest a QPS first."""
    first, last = model.parts[part], model.parts[part + 1]
    costs = np.array([model.price[region, model.kind[o]] * model.units[o] for o in range(first, last)])
    need, total, held = load, 0.0, 0.0
    for k in np.argsort(costs / model.qps[first:last], kind="mergesort"):
        o = first + k
        wanted = max(np.ceil(need / model.qps[o] - EPSILON), model.least[part] - held)
        count = min(wanted, whole(left[model.kind[o]] / model.units[o]))
        if count > 0:
            counts[o] = count
            left[model.kind[o]] -= count * model.units[o]
            total += count * costs[k]
            need -= count * model.qps[o]
            held += count
        if need <= EPSILON * load and held >= model.least[part]:
            return total
    return INFINITE


@njit(cache=True)
def fill_region(model: Model, region: int, load: float, counts: Floats) -> float:
    """All parts of the model in a region for `load` QPS; $/h, infinite if they do not fit. `counts` (O,)."""
    counts[:] = 0.0
    left, cost = model.left[region].copy(), 0.0
    for part in range(len(model.least)):
        cost += fill(model, part, region, load, left, counts)
        if cost == INFINITE:
            break
    return cost


@njit(cache=True)
def most_load(model: Model) -> Floats:
    """(R,) QPS, at most the whole demand, that all parts together can be held for in each region."""
    total = model.demand.sum()
    most, counts = np.zeros(len(model.demand)), np.zeros(len(model.kind))
    for region in range(len(most)):
        if fill_region(model, region, total, counts) < INFINITE:
            most[region] = total
            continue
        high = total
        for _ in range(14):
            tried = (most[region] + high) / 2
            if fill_region(model, region, tried, counts) < INFINITE:
                most[region] = tried
            else:
                high = tried
    return most


@njit(cache=True)
def qps_cost_of(model: Model) -> Floats:
    """(R,) $/h of one QPS, replicas being divisible; infinite if a part has no hardware left."""
    total = np.zeros(len(model.demand))
    for region in range(len(total)):
        for part in range(len(model.least)):
            cheapest = INFINITE
            for o in range(model.parts[part], model.parts[part + 1]):
                if model.left[region, model.kind[o]] >= model.units[o]:
                    cheapest = min(cheapest, model.price[region, model.kind[o]] * model.units[o] / model.qps[o])
            total[region] += cheapest
    return total


@njit(cache=True)
def route(model: Model, search: Search, share: float, serves: Flags, soft: Floats) -> Floats:
    """Send the users with the fewest regions first, to the cheapest first, up to `soft` and then up to what fits.

    Writes `search.flow`; returns (R,) the load of each region.
    """
    regions = len(model.demand)
    load, choices = np.zeros(regions), np.zeros(regions)
    search.flow[:] = 0.0
    for s in range(regions):
        for r in range(regions):
            choices[s] += model.near[s, r] and serves[r]
    users = np.argsort(choices, kind="mergesort")
    for limit in (soft, search.most):
        for s in users:
            rest = model.demand[s] * share - search.flow[s].sum()
            for r in search.order:
                if rest <= EPSILON * model.demand[s]:
                    break
                if serves[r] and model.near[s, r]:
                    sent = max(0.0, min(rest, limit[r] - load[r]))
                    search.flow[s, r] += sent
                    load[r] += sent
                    rest -= sent
    return load


@njit(cache=True)
def raised(load: Floats, serves: Flags, most: Floats, served: float) -> Floats:
    """(R,) loads raised to the lowest level, up to `most`, at which all but the largest do `served` QPS.

    All -1 if none.
    """
    low, high = 0.0, served
    able = np.zeros(len(load))
    for step in range(40):
        level = high if step == 0 else (low + high) / 2
        able = np.where(serves, np.maximum(load, np.minimum(level, most)), 0.0)
        enough = able.sum() - able.max() >= served * (1 - EPSILON)
        if step == 0 and not enough:
            return np.full(len(load), -1.0)
        low, high = (low, level) if enough else (level, high)
        if high - low <= 1e-7 * served:
            break
    return np.where(serves, np.maximum(load, np.minimum(high, most)), 0.0)


@njit(cache=True)
def trim(model: Model, part: int, counts: Floats, load: Floats, served: float) -> float:
    """Drop the dearest replicas of a part that neither load, survival nor `min_replicas` needs.

    Returns the $/h saved.
    """
    saved = 0.0
    first, last = model.parts[part], model.parts[part + 1]
    while True:
        able, held = np.zeros(len(load)), np.zeros(len(load))
        for o in range(first, last):
            able += counts[o] * model.qps[o]
            held += counts[o]
        best, option, region = 0.0, -1, -1
        for o in range(first, last):
            for r in range(len(load)):
                cost = model.price[r, model.kind[o]] * model.units[o]
                if counts[o, r] == 0 or cost <= best or (held[r] > 1 and held[r] - 1 < model.least[part]):
                    continue
                kept = able[r] - model.qps[o]
                others = able.sum() - able[r]
                if kept < load[r] * (1 - EPSILON):
                    continue
                able[r] = kept
                if not model.survives or others + kept - able.max() >= served * (1 - EPSILON):
                    best, option, region = cost, o, r
                able[r] = kept + model.qps[o]
        if option < 0:
            return saved
        counts[option, region] -= 1
        saved += best


@njit(cache=True)
def value(model: Model, search: Search, share: float, serves: Flags) -> float:
    """$/h of serving `share` of the demand from a set of regions, with what is left unmet.

    Infinite if a rule breaks. Writes `search.counts` and `search.flow`.
    """
    search.counts[:] = 0.0
    asked = model.demand.sum() * share
    even = asked / max(serves.sum() - 1, 1) if model.survives else asked
    load = route(model, search, share, serves, np.minimum(search.most, even))
    served = load.sum()
    able = raised(load, serves, search.most, served) if model.survives and served > 0 else load
    if served > 0 and able[0] < 0:
        return INFINITE
    cost, column = 0.0, np.zeros(len(model.kind))
    for region in range(len(load)):
        if able[region] > 0:
            cost += fill_region(model, region, able[region], column)
            search.counts[:, region] = column
    if cost == INFINITE:
        return INFINITE
    for part in range(len(model.least)):
        cost -= trim(model, part, search.counts, load, served)
    if cost > model.budget * (1 + EPSILON):
        return INFINITE
    return cost + model.missed * (model.demand.sum() - served)


@njit(cache=True)
def cheapest_set(model: Model, search: Search, k: int) -> Flags:
    """Return (R,) the k cheapest regions with room.

    For users that reach none of them, add the region that reaches most for its cost.
    """
    regions = len(model.demand)
    serves = np.zeros(regions, dtype=np.bool_)
    for r in search.order[:k]:
        serves[r] = search.most[r] > 0
    while True:
        gain = np.zeros(regions)
        for s in range(regions):
            if model.demand[s] > 0 and not np.any(model.near[s] & serves):
                for r in range(regions):
                    if model.near[s, r] and search.most[r] > 0:
                        gain[r] += model.demand[s] / (search.qps_cost[r] + EPSILON)
        if gain.max() <= 0:
            return serves
        serves[np.argmax(gain)] = True


@njit(cache=True)
def improved(model: Model, search: Search, best: float, chosen: Flags) -> tuple[float, Flags]:
    """Return the set after adding, dropping or swapping one region at a time, as long as that is cheaper."""
    regions = len(chosen)
    while True:
        better, found, changed = best * (1 - EPSILON), chosen, False
        for a in range(regions):
            if search.most[a] == 0:
                continue
            for b in range(regions):
                swap = chosen[a] and not chosen[b] and search.most[b] > 0 and chosen.sum() <= MOST_TO_SWAP
                if b != a and not swap:
                    continue
                tried = chosen.copy()
                tried[a] = not chosen[a]
                tried[b] = not chosen[b]
                figure = value(model, search, 1.0, tried)
                if figure < better:
                    better, found, changed = figure, tried, True
        if not changed:
            return best, chosen
        best, chosen = better, found


@njit(cache=True)
def place(model: Model) -> tuple[Floats, Floats]:
    """Replicas (O, R) and flows (R, R) of the cheapest placement found.

    Where not all fits, of the largest share that does.
    """
    regions = len(model.demand)
    qps_cost = qps_cost_of(model)
    order = np.argsort(qps_cost, kind="mergesort")
    search = Search(
        most_load(model), qps_cost, order, np.zeros((len(model.kind), regions)), np.zeros((regions, regions))
    )
    best, chosen, share = model.missed * model.demand.sum(), np.zeros(regions, dtype=np.bool_), 1.0
    for k in range(1, regions + 1):
        serves = cheapest_set(model, search, k)
        figure = value(model, search, 1.0, serves)
        if figure < best:
            best, chosen = figure, serves
    best, chosen = improved(model, search, best, chosen)
    figure = value(model, search, 1.0, chosen)
    if search.flow.sum() < model.demand.sum() * (1 - EPSILON):
        for k in range(1, regions + 1):
            serves = cheapest_set(model, search, k)
            low, high = 0.0, 1.0
            for _ in range(12):
                tried = (low + high) / 2
                figure = value(model, search, tried, serves)
                low, high = (tried, high) if figure < INFINITE else (low, tried)
                if figure < best:
                    best, chosen, share = figure, serves, tried
        value(model, search, share, chosen)
    return search.counts, search.flow
