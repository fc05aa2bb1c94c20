"""Carried demand of a state.

A rollback is never refused for demand that nothing was placed for yet, or that is lost.
"""

from collections import defaultdict
from collections.abc import Collection

from activities.state.routes.failover_shares import Nearness, Survivor, without_regions
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.planning.plan import ModelProblem
from ipnext.model.planning.transition import FleetState, GenerationReplicas, GenerationShare

ROUNDING = 1e-9
"""Subtracted so that demand that is carried exactly does not exceed the limit by a rounding error."""


def within_reach(model: ModelProblem, state: FleetState) -> ModelProblem:
    """Return the model with its demand (requests/s) scaled down, alike everywhere, to the capacity of `state`.

    Unchanged if the replicas carry all of it, or if they carry nothing at all.
    """
    carried = min([1.0, *_covers(model, state)])
    if not 0.0 < carried < 1.0:
        return model
    factor = carried * (1.0 - ROUNDING)
    demand = tuple(item.model_copy(update={"qps": item.qps * factor}) for item in model.demand)
    return model.model_copy(update={"demand": demand})


def on_what_is_left(model: ModelProblem, state: FleetState, lost: Collection[str], nearness: Nearness) -> FleetState:
    """Return a state of one generation without its replicas in lost regions; the remaining ones take their traffic.

    If none remains it has no traffic, and if nothing is lost it is the state itself.
    """
    if not lost:
        return state
    kept = tuple(row for row in state.replicas if row.region not in lost)
    shares: dict[str, tuple[RouteShare, ...]] = defaultdict(tuple)
    for row in state.traffic:
        shares[row.origin] += (RouteShare(to=row.to, generation=row.generation, fraction=row.fraction),)
    demand = {item.region: item.qps for item in model.demand}
    found = without_regions(shares, lost, _survivors(model, state, kept), demand=demand, nearness=nearness)
    traffic = (
        GenerationShare.from_trusted(model.model, origin, share.to, share.generation, share.fraction)
        for origin, routed in found.items()
        for share in routed
        if share.fraction > 0
    )
    return FleetState(replicas=kept, traffic=tuple(traffic))


def _survivors(model: ModelProblem, state: FleetState, kept: Collection[GenerationReplicas]) -> list[Survivor]:
    """Return the capacity of each remaining region: that of its slowest part."""
    qps = {(part.part, option.hardware): option.qps for part in model.parts for option in part.options}
    parts = {(row.generation, row.part) for row in state.replicas}
    ready: dict[tuple[int, str, str], float] = defaultdict(float)
    for row in kept:
        ready[row.generation, row.region, row.part] += row.count * qps.get((row.part, row.hardware), 0.0)
    places = sorted({(row.region, row.generation) for row in kept})
    return [
        Survivor(region, number, min(ready[number, region, part] for held, part in parts if held == number))
        for region, number in places
    ]


def _covers(model: ModelProblem, state: FleetState) -> list[float]:
    """Return ready throughput over traffic, for each part of a generation in each region that receives traffic."""
    qps = {(part.part, option.hardware): option.qps for part in model.parts for option in part.options}
    demand = {item.region: item.qps for item in model.demand}
    ready: dict[tuple[int, str, str], float] = defaultdict(float)
    parts: dict[int, set[str]] = defaultdict(set)
    for row in state.replicas:
        ready[row.generation, row.region, row.part] += row.count * qps.get((row.part, row.hardware), 0.0)
        parts[row.generation].add(row.part)
    sent: dict[tuple[int, str], float] = defaultdict(float)
    for share in state.traffic:
        sent[share.generation, share.to] += share.fraction * demand.get(share.origin, 0.0)
    return [
        ready[generation, region, part] / traffic
        for (generation, region), traffic in sent.items()
        if traffic > 0
        for part in parts[generation]
    ]
