"""A plan from a solver's numbers: whole replicas without waste, traffic that fits them, exact sums.

Called by `planner.solve`. The replicas are fixed first; the traffic is then chosen for them model by model, nearest
region first if the objective leaves the choice open.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from ipnext.model.planning.plan import ModelProblem
from planner.core.index import Index, Key, ReplicaColumn, Route, RouteKey

SMALLEST_UNMET = 5e-7
"""A smaller unmet fraction is a rounding error, not a decision."""

Counts = dict[Key, int]
Shares = dict[RouteKey, float]


@dataclass(frozen=True)
class Holding:
    """Whole replicas and the shares they serve, by key, without zeros."""

    counts: Mapping[Key, int]
    shares: Mapping[RouteKey, float]


def trim_replicas(index: Index, counts: Mapping[Key, int], traffic: Sequence[float]) -> Counts:
    """Drop every replica that neither the traffic, nor `survive`, nor `min_replicas` needs; dearest first.

    A solver that stops within its gap leaves such replicas behind. `traffic` is in the order of `index.routes`.
    """
    trimming = _Trimming(index, counts, traffic)
    for place in sorted(index.placements, key=lambda place: (-place.cost / place.qps, place.key)):
        while trimming.can_go(place):
            trimming.drop(place)
    return {key: count for key, count in trimming.counts.items() if count}


class _Trimming:
    def __init__(self, index: Index, counts: Mapping[Key, int], traffic: Sequence[float]) -> None:
        self.counts: Counts = dict(counts)
        self.sent: dict[tuple[str, str], float] = defaultdict(float)
        self.served: dict[str, float] = defaultdict(float)
        for route, fraction in zip(index.routes, traffic, strict=True):
            self.sent[route.model, route.to] += route.qps * fraction
            self.served[route.model] += route.qps * fraction
        self.least = {(m.model, p.part): p.min_replicas for m in index.problem.models for p in m.parts}
        self.survives = {m.model for m in index.problem.models if m.survive == "region"}
        self.able: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.held: dict[tuple[str, str, str], int] = defaultdict(int)
        for place in index.placements:
            self.able[place.key[:2]][place.region] += self.counts.get(place.key, 0) * place.qps
            self.held[place.key[:3]] += self.counts.get(place.key, 0)

    def can_go(self, place: ReplicaColumn) -> bool:
        """Check whether all rules hold with one replica less."""
        if not self.counts.get(place.key, 0):
            return False
        part = place.key[:2]
        left = self.able[part][place.region] - place.qps
        held = self.held[place.key[:3]] - 1
        if (held and held < self.least[part]) or left < self.sent[place.model, place.region]:
            return False
        return place.model not in self.survives or self._survives(part, place.region, left)

    def _survives(self, part: tuple[str, str], region: str, left: float) -> bool:
        able = {**self.able[part], region: left}
        return sum(able.values()) - max(able.values()) >= self.served[part[0]]

    def drop(self, place: ReplicaColumn) -> None:
        """Remove one replica."""
        self.counts[place.key] -= 1
        self.able[place.key[:2]][place.region] -= place.qps
        self.held[place.key[:3]] -= 1


def route_traffic(index: Index, counts: Mapping[Key, int]) -> Shares:
    """Return the best traffic for these replicas.

    Least unmet and latency cost, the nearest region if that leaves a choice.
    """
    able: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for place in index.placements:
        able[place.model][place.part][place.region] += counts.get(place.key, 0) * place.qps
    routes: dict[str, list[Route]] = defaultdict(list)
    for route in index.routes:
        routes[route.model].append(route)
    shares: Shares = {}
    for model in index.problem.models:
        parts = [able[model.model][part.part] for part in model.parts]
        capacity = {region: min(part[region] for part in parts) for region in index.problem.regions}
        most = min(_without_any_region(part) for part in parts) if model.survive == "region" else np.inf
        shares |= _model_shares(index, model, routes[model.model], capacity, most)
        shares |= _idle_shares(index, model, capacity)
    return shares


def _without_any_region(able: Mapping[str, float]) -> float:
    return sum(able.values()) - max(able.values(), default=0.0)


def _model_shares(
    index: Index, model: ModelProblem, routes: Sequence[Route], capacity: Mapping[str, float], most: float
) -> Shares:
    if not routes or not any(capacity.values()) or most <= 0:
        return {}
    origins = list(dict.fromkeys(route.origin for route in routes))
    total = index.reachable[model.model]
    weights = index.problem.objective
    missed = weights.unmet_cost * model.priority
    price, nearest = weights.latency_weight, max(route.rtt_ms for route in routes)
    if price == 0:  # all served demand costs the same: serve as much as fits, as near as possible
        # room for one more request may send one of every other origin to its farthest region
        price, missed = 1.0, len(origins) * nearest + 1.0
    cost = [route.qps * (price * route.rtt_ms - missed) / total for route in routes]
    served = np.array([[float(route.origin == origin) for route in routes] for origin in origins])
    load = np.array(
        [[route.qps / total if route.to == region else 0.0 for route in routes] for region in capacity]
        + [[route.qps / total for route in routes]]
    )
    limits = [*(able / total for able in capacity.values()), min(most / total, 1.0)]
    scale = max(1.0, *map(abs, cost))
    found = linprog(
        np.array(cost) / scale,
        A_ub=np.vstack([served, load]),
        b_ub=np.array([1.0] * len(origins) + limits),
        bounds=(0, 1),
        method="highs-ds",
    )
    if found.x is None:
        return {}
    return _clean(routes, [float(y) for y in found.x], capacity, most)


def _clean(routes: Sequence[Route], fractions: Sequence[float], capacity: Mapping[str, float], most: float) -> Shares:
    """Round fractions to nine digits that fit the capacity and sum to 1 if nothing is unmet."""
    shares = {route.key: round(y, 9) for route, y in zip(routes, fractions, strict=True) if y > 1e-7}
    qps = {route.key: route.qps for route in routes}
    for origin in dict.fromkeys(route.origin for route in routes):
        here = [key for key in shares if key[1] == origin]
        rest = 1.0 - sum(shares[key] for key in here)
        if here and abs(rest) <= SMALLEST_UNMET:
            largest = max(here, key=lambda key: (shares[key], key))
            shares[largest] = round(shares[largest] + rest, 12)
    for region, able in capacity.items():
        _shrink(shares, qps, [key for key in shares if key[2] == region], able)
    _shrink(shares, qps, list(shares), most)
    return {key: y for key, y in shares.items() if y > 0}


def _shrink(shares: Shares, qps: Mapping[RouteKey, float], keys: Sequence[RouteKey], most: float) -> None:
    load = sum(shares[key] * qps[key] for key in keys)
    if load > most * (1 + 1e-7):
        for key in keys:
            shares[key] *= most / load


def _idle_shares(index: Index, model: ModelProblem, capacity: Mapping[str, float]) -> Shares:
    """Send a demand of zero to the nearest region within tolerance that holds the model.

    If none does, leave it unserved.
    """
    shares: Shares = {}
    for demand in model.demand:
        if demand.qps == 0:
            within = (r for r in index.problem.regions if index.rtt[demand.region, r] <= model.latency_tolerance_ms)
            near = [r for r in within if capacity[r] > 0]
            if near:
                to = min(near, key=lambda r: (index.rtt[demand.region, r], r))
                shares[model.model, demand.region, to] = 1.0
    return shares
