"""Conversion of the fleet-scale solver's arrays to the names of a plan: whole replicas, and exact shares.

Called by `planner.solve`.
"""

from collections.abc import Sequence

import numpy as np

from ipnext.model.planning.plan import Problem
from planner.core.arrays import FleetArrays
from planner.core.index import Key, RouteKey
from planner.core.solution import Holding
from planner.fleet.pricing import Single

DIGITS = 9
"""Of a share."""

WHOLE = 5e-8
"""If less than this share of a demand is missing, it is served whole."""


def holding_of(problem: Problem, arrays: FleetArrays, configurations: Sequence[Single]) -> Holding:
    """Return replicas and shares by name, without zeros.

    A demand of zero goes to the nearest region that holds the model.
    """
    options = [
        (model.model, part.part, option.hardware)
        for model in problem.models
        for part in model.parts
        for option in part.options
    ]
    counts: dict[Key, int] = {}
    shares: dict[RouteKey, float] = {}
    for m, single in enumerate(configurations):
        regions = arrays.regions
        for at, n in zip(single.count_at.tolist(), single.count_n.tolist(), strict=True):
            name, part, hardware = options[at // regions]
            counts[name, part, problem.regions[at % regions], hardware] = n
        shares |= _shares(problem, arrays, m, single)
    return Holding(counts, shares)


def _shares(problem: Problem, arrays: FleetArrays, m: int, single: Single) -> dict[RouteKey, float]:
    name, regions, names = problem.models[m].model, arrays.regions, problem.regions
    flows: dict[int, list[tuple[int, float]]] = {}
    for way, qps in zip(single.flow_at.tolist(), single.flow_qps.tolist(), strict=True):
        flows.setdefault(way // regions, []).append((way % regions, qps))
    shares: dict[RouteKey, float] = {}
    for s, ways in flows.items():
        for r, share in _round_shares(ways, float(arrays.qps[m, s])):
            if share > 0:
                shares[name, names[s], names[r]] = share
    idle = [demand.region for demand in problem.models[m].demand if demand.qps == 0]
    if idle:
        held = {problem.regions.index(to) for _, _, to in shares}
        for origin in idle:
            near = _nearest(arrays, m, problem.regions.index(origin), held)
            if near is not None:
                shares[name, origin, names[near]] = 1.0
    return shares


def _round_shares(ways: list[tuple[int, float]], demand: float) -> list[tuple[int, float]]:
    """Round shares to nine digits.

    Those of a demand that is served whole sum to 1, the largest absorbing the difference.
    """
    shares = [(r, round(qps / demand, DIGITS)) for r, qps in ways]
    total = sum(qps for _, qps in ways)
    if total < demand * (1 - WHOLE):
        return shares
    largest = max(range(len(shares)), key=lambda i: (shares[i][1], -shares[i][0]))
    rest = 1.0 - sum(share for i, (_, share) in enumerate(shares) if i != largest)
    shares[largest] = (shares[largest][0], round(rest, 12))
    return shares


def _nearest(arrays: FleetArrays, m: int, origin: int, held: set[int]) -> int | None:
    near = [int(r) for r in np.flatnonzero(arrays.rtt[origin] <= arrays.tolerance[m]) if int(r) in held]
    return min(near, key=lambda r: (arrays.rtt[origin, r], r), default=None)
