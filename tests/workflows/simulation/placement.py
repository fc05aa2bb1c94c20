"""Seeded placements in place of the planner's: where a model runs, on what is left.

Whole replicas that carry the traffic they get.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from random import Random

from ipnext.model.planning.plan import ModelProblem, ReplicaCount, TrafficShare

from .journal import Placement, Units, placed_units

ROUNDS = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Parts of the demand that are tried where the whole does not fit."""


def draw_placement(
    random: Random, wishes: ModelProblem, left: Units, regions: Sequence[str], *, plan_id: str
) -> Placement | None:
    """A placement within `left`; None where nothing of the demand can be placed."""
    chosen = random.sample(sorted(regions), random.randint(1, min(3, len(regions)))) if regions else []
    demand = {item.region: item.qps for item in wishes.demand}
    for hosts in (sorted(chosen), sorted(regions)):
        routes = _routes(random, demand, hosts)
        for part in ROUNDS:
            shares = {route: round(fraction * part, 6) for route, fraction in routes.items()}
            rows = _replicas(random, wishes, _load(demand, shares, hosts), left)
            if rows and shares:
                return Placement(wishes.model, plan_id, wishes, tuple(rows), _traffic(wishes.model, shares))
    return None


def draw_fleet_placements(
    random: Random, wishes: Mapping[str, ModelProblem], supply: Units, regions: Collection[str], *, plan_id: str
) -> dict[str, Placement]:
    """Every model placed anew, together within the supply."""
    left = dict(supply)
    found: dict[str, Placement] = {}
    for model in sorted(wishes, key=lambda _: random.random()):
        placement = draw_placement(random, wishes[model], left, sorted(regions), plan_id=plan_id)
        if placement is not None:
            found[model] = placement
            for row, units in placed_units(placement).items():
                left[row] = left.get(row, 0.0) - units
    return found


def _routes(random: Random, demand: Mapping[str, float], hosts: Sequence[str]) -> dict[tuple[str, str], float]:
    routes: dict[tuple[str, str], float] = {}
    for origin in sorted(demand):
        if len(hosts) > 1 and random.random() < 0.3:
            one, other = random.sample(list(hosts), 2)
            fraction = random.choice((0.2, 0.5, 0.7))
            routes[origin, one], routes[origin, other] = fraction, round(1 - fraction, 6)
        elif hosts:
            routes[origin, origin if origin in hosts and random.random() < 0.6 else random.choice(list(hosts))] = 1.0
    return routes


def _load(
    demand: Mapping[str, float], shares: Mapping[tuple[str, str], float], hosts: Sequence[str]
) -> dict[str, float]:
    load = dict.fromkeys(hosts, 0.0)
    for (origin, to), fraction in shares.items():
        load[to] += demand[origin] * fraction
    return {region: qps for region, qps in load.items() if qps > 0}


def _replicas(
    random: Random, wishes: ModelProblem, load: Mapping[str, float], left: Units
) -> list[ReplicaCount] | None:
    rest, rows = dict(left), list[ReplicaCount]()
    for region, qps in sorted(load.items()):
        for part in wishes.parts:
            for option in random.sample(part.options, len(part.options)):
                count = max(1, math.ceil(qps / option.qps - 1e-9))
                cell = (region, option.hardware)
                if count * option.units <= rest.get(cell, 0.0) + 1e-9:
                    rest[cell] -= count * option.units
                    rows.append(ReplicaCount.from_trusted(wishes.model, part.part, region, option.hardware, count))
                    break
            else:
                return None
    return rows


def _traffic(model: str, shares: Mapping[tuple[str, str], float]) -> tuple[TrafficShare, ...]:
    return tuple(
        TrafficShare.from_trusted(model, origin, to, share) for (origin, to), share in sorted(shares.items()) if share
    )
