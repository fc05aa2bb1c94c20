"""One model's replicas and traffic by generation, the load of that traffic, and its wire forms."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ipnext.model.planning.transition import FleetState, GenerationReplicas, GenerationShare, RouteChange, Share

ReplicaKey = tuple[str, str, str, int]
"""Part, region, hardware, generation."""
RouteKey = tuple[str, str, int]
"""Region of the users, region that serves, generation."""
SupplyKey = tuple[str, str]
"""Region, hardware."""
CapacityKey = tuple[str, str, int]
"""Part, region, generation: replicas that serve a generation's traffic together, on whatever hardware."""
DipKey = tuple[str, str, str]
"""Model, part, region."""


@dataclass(frozen=True)
class ModelState:
    """One model's replicas and traffic, without zeros."""

    counts: Mapping[ReplicaKey, int] = field(default_factory=dict)
    shares: Mapping[RouteKey, float] = field(default_factory=dict)

    @property
    def generations(self) -> frozenset[int]:
        """Generations with traffic."""
        return frozenset(generation for _, _, generation in self.shares)


def group_by_model(state: FleetState) -> dict[str, ModelState]:
    """Return a fleet's state by model, without zeros."""
    counts: dict[str, dict[ReplicaKey, int]] = defaultdict(dict)
    shares: dict[str, dict[RouteKey, float]] = defaultdict(dict)
    for item in state.replicas:
        if item.count:
            counts[item.model][item.part, item.region, item.hardware, item.generation] = item.count
    for share in state.traffic:
        if share.fraction:
            shares[share.model][share.origin, share.to, share.generation] = share.fraction
    return {model: ModelState(counts.get(model, {}), shares.get(model, {})) for model in sorted({*counts, *shares})}


def to_fleet_state(states: Mapping[str, ModelState]) -> FleetState:
    """Return the state of a fleet from the states of its models."""
    replicas = [replica_row(m, key, count) for m, s in states.items() for key, count in s.counts.items()]
    traffic = [
        GenerationShare.from_trusted(m, *key, share) for m, s in states.items() for key, share in s.shares.items()
    ]
    return FleetState(replicas=tuple(replicas), traffic=tuple(traffic))


def replica_row(model: str, key: ReplicaKey, count: int) -> GenerationReplicas:
    """Return the wire form of an absolute count."""
    part, region, hardware, generation = key
    return GenerationReplicas.from_trusted(model, part, generation, region, hardware, count)


def list_route_changes(
    model: str, before: Mapping[RouteKey, float], after: Mapping[RouteKey, float]
) -> Iterator[RouteChange]:
    """Yield the whole new shares of every region of users whose shares change."""
    for origin in sorted({key[0] for key in before.keys() | after.keys() if before.get(key) != after.get(key)}):
        new = sorted((key, fraction) for key, fraction in after.items() if key[0] == origin and fraction > 0)
        shares = tuple(Share.from_trusted(to, generation, fraction) for (_, to, generation), fraction in new)
        yield RouteChange(model=model, origin=origin, shares=shares)


def compute_loads(
    shares: Mapping[RouteKey, float],
    demand: Mapping[str, float],
    parts: Collection[str],
    calls: Mapping[int, Collection[str]],
) -> dict[CapacityKey, float]:
    """Return the QPS of each part in each region of each generation; `demand` is QPS by region of the users."""
    load: dict[CapacityKey, float] = defaultdict(float)
    for (origin, to, generation), fraction in shares.items():
        for part in calls.get(generation, parts):
            load[part, to, generation] += fraction * demand.get(origin, 0.0)
    return load
