"""How much of a model's demand a state carries: a rollback is never refused for demand that nothing was placed for yet."""

from collections import defaultdict

from ipnext.model.plan import ModelProblem
from ipnext.model.rollout import FleetState

ROUNDING = 1e-9
"""Taken off, so that what is carried exactly is not too much by a rounding of the last bit."""


def within_reach(model: ModelProblem, state: FleetState) -> ModelProblem:
    """The model with its demand (requests/s) scaled down, alike everywhere, to what the replicas of `state` carry.

    Unchanged where they carry all of it, and where they carry nothing at all.
    """
    carried = min([1.0, *_covers(model, state)])
    if not 0.0 < carried < 1.0:
        return model
    factor = carried * (1.0 - ROUNDING)
    demand = tuple(item.model_copy(update={"qps": item.qps * factor}) for item in model.demand)
    return model.model_copy(update={"demand": demand})


def _covers(model: ModelProblem, state: FleetState) -> list[float]:
    """Ready throughput over traffic, of each part of a generation in each region that gets any."""
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
