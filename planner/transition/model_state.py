"""One model's replicas and traffic by generation, and the load of its traffic. Called by the planner of transitions."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ipnext.model.planning.transition import FleetState, GenerationReplicas, GenerationShare, RouteChange, Share

Copy = tuple[str, str, str, int]
"""Part, region, hardware, generation."""
Flow = tuple[str, str, int]
"""Region of the users, region that serves, generation."""
Row = tuple[str, str]
"""Region, hardware."""
Hold = tuple[str, str, int]
"""Part, region, generation: replicas that serve a generation's traffic together, on whatever hardware."""


@dataclass(frozen=True)
class Standing:
    """One model's replicas and traffic, without zeros."""

    counts: Mapping[Copy, int] = field(default_factory=dict)
    shares: Mapping[Flow, float] = field(default_factory=dict)

    @property
    def generations(self) -> frozenset[int]:
        """Generations with traffic."""
        return frozenset(generation for _, _, generation in self.shares)


def standings(state: FleetState) -> dict[str, Standing]:
    """Return a fleet's state by model, without zeros."""
    counts: dict[str, dict[Copy, int]] = defaultdict(dict)
    shares: dict[str, dict[Flow, float]] = defaultdict(dict)
    for item in state.replicas:
        if item.count:
            counts[item.model][item.part, item.region, item.hardware, item.generation] = item.count
    for share in state.traffic:
        if share.fraction:
            shares[share.model][share.origin, share.to, share.generation] = share.fraction
    return {model: Standing(counts.get(model, {}), shares.get(model, {})) for model in sorted({*counts, *shares})}


def fleet_state(standing: Mapping[str, Standing]) -> FleetState:
    """Return the state of a fleet from the states of its models."""
    replicas = [replica_row(m, copy, count) for m, s in standing.items() for copy, count in s.counts.items()]
    traffic = [
        GenerationShare.from_trusted(m, *flow, share) for m, s in standing.items() for flow, share in s.shares.items()
    ]
    return FleetState(replicas=tuple(replicas), traffic=tuple(traffic))


def replica_row(model: str, copy: Copy, count: int) -> GenerationReplicas:
    """Return the wire form of an absolute count."""
    part, region, hardware, generation = copy
    return GenerationReplicas.from_trusted(model, part, generation, region, hardware, count)


def routes(model: str, before: Mapping[Flow, float], after: Mapping[Flow, float]) -> Iterator[RouteChange]:
    """Yield the whole new shares of every region of users whose shares change."""
    for origin in sorted({flow[0] for flow in before.keys() | after.keys() if before.get(flow) != after.get(flow)}):
        new = sorted((flow, fraction) for flow, fraction in after.items() if flow[0] == origin and fraction > 0)
        shares = tuple(Share.from_trusted(to, generation, fraction) for (_, to, generation), fraction in new)
        yield RouteChange(model=model, origin=origin, shares=shares)


def loads(
    shares: Mapping[Flow, float],
    demand: Mapping[str, float],
    parts: Collection[str],
    calls: Mapping[int, Collection[str]],
) -> dict[Hold, float]:
    """Return the QPS of each part in each region of each generation; `demand` is QPS by region of the users."""
    load: dict[Hold, float] = defaultdict(float)
    for (origin, to, generation), fraction in shares.items():
        for part in calls.get(generation, parts):
            load[part, to, generation] += fraction * demand.get(origin, 0.0)
    return load
