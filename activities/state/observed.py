"""Observed state of the regions: ready replicas, and why one never becomes ready."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from activities.state.failure_cause import place_of
from activities.state.wave_state import Held, ModelWaveState
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.lifecycle.failure_cause import Place
from ipnext.model.lifecycle.status import Reason, reason_of

CRASHES = 3
"""Restarts after which a replica that is down again counts as broken."""


@dataclass(frozen=True)
class Failure:
    """Reason why waiting is pointless."""

    reason: Reason
    message: str
    place: Place = field(default_factory=Place)


def observe(
    infrastructure: Infrastructure, regions: Iterable[str], models: Collection[str] | None = None
) -> tuple[dict[str, RegionState], tuple[str, ...]]:
    """Return the state of every region that answers, for some models or for all, and the names of those that do not."""
    states: dict[str, RegionState] = {}
    silent: list[str] = []
    for region in sorted(set(regions)):
        try:
            states[region] = infrastructure.observe(region, models)
        except Unavailable:
            silent.append(region)
    return states, tuple(silent)


def missing_replicas(model: str, state: ModelWaveState, regions: Mapping[str, RegionState]) -> tuple[str, ...]:
    """Describe the replicas that are not ready yet; empty if every generation has its count in every slot."""
    found = _ready(model, regions)
    lacking = []
    for (slot, generation), wanted in sorted(state.counts.items()):
        part, region, hardware = slot
        ready = found[slot, generation]
        if ready < wanted:
            lacking.append(f"{part} in {region} on {hardware}: {ready} of {wanted} ready for generation {generation}")
    return tuple(lacking)


def _ready(model: str, regions: Mapping[str, RegionState]) -> Counter[Held]:
    """Count ready replicas of a model by slot and generation, without those that drain."""
    found: Counter[Held] = Counter()
    for region, state in regions.items():
        for replica in state.replicas:
            key = replica.key
            if key.model == model and replica.phase is not ReplicaPhase.DRAINING:
                for generation in set(replica.ready):
                    found[(key.part, region, key.hardware), generation] += 1
    return found


def first_failure(model: str, generation: int, regions: Iterable[RegionState]) -> Failure | None:
    """Return the first replica that cannot load the generation, or that keeps crashing."""
    for region in regions:
        for replica in region.replicas:
            if replica.key.model != model:
                continue
            failure = _load_failure(replica, generation) or _crash_loop(replica, generation)
            if failure is not None:
                return failure
    return None


def first_load_failure(model: str, generation: int, regions: Iterable[RegionState]) -> Failure | None:
    """Return the first replica of the model that cannot load the generation."""
    replicas = (replica for region in regions for replica in region.replicas if replica.key.model == model)
    return next((found for replica in replicas if (found := _load_failure(replica, generation))), None)


def _load_failure(replica: Replica, generation: int) -> Failure | None:
    for failure in replica.failures:
        if generation in failure.generations:
            reason = reason_of(failure.code, otherwise=Reason.LOAD_FAILED)
            message = f"{replica.id} in {replica.key.region}: {failure.message}"
            return Failure(reason, message, place_of(replica, adapter=failure.adapter))
    return None


def _crash_loop(replica: Replica, generation: int) -> Failure | None:
    if replica.phase is not ReplicaPhase.FAILED or replica.restarts < CRASHES or generation in replica.ready:
        return None
    told = f": {replica.message}" if replica.message else ""
    message = f"{replica.id} in {replica.key.region} ended {replica.restarts} times{told}"
    return Failure(Reason.CRASH_LOOP, message, place_of(replica))
