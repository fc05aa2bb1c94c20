"""Reading the regions: which replicas are ready, why one never will be, what the routers counted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from activities.waves import ModelState
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import RegionState, Replica, ReplicaPhase
from ipnext.model.lifecycle import RegionTraffic
from ipnext.model.status import Reason, reason_of

CRASHES = 3
"""Restarts after which a replica that is down again is taken for broken."""


@dataclass(frozen=True)
class Failure:
    """Why waiting is pointless."""

    reason: Reason
    message: str


def observe(infrastructure: Infrastructure, regions: Iterable[str]) -> tuple[dict[str, RegionState], tuple[str, ...]]:
    """The state of every region that answers, and the names of those that do not."""
    states: dict[str, RegionState] = {}
    silent: list[str] = []
    for region in sorted(set(regions)):
        try:
            states[region] = infrastructure.observe(region)
        except Unavailable:
            silent.append(region)
    return states, tuple(silent)


def missing_replicas(model: str, state: ModelState, regions: Mapping[str, RegionState]) -> tuple[str, ...]:
    """What is not ready yet, in words; empty where every generation has its count in every slot."""
    lacking = []
    for (slot, generation), wanted in sorted(state.counts.items()):
        part, region, hardware = slot
        found = regions[region].replicas if region in regions else ()
        ready = sum(
            generation in r.ready and r.phase is not ReplicaPhase.DRAINING
            for r in found
            if (r.key.model, r.key.part, r.key.hardware) == (model, part, hardware)
        )
        if ready < wanted:
            lacking.append(f"{part} in {region} on {hardware}: {ready} of {wanted} ready for generation {generation}")
    return tuple(lacking)


def first_failure(model: str, generation: int, regions: Iterable[RegionState]) -> Failure | None:
    """The first replica that cannot load the generation, or that keeps crashing."""
    for region in regions:
        for replica in region.replicas:
            if replica.key.model != model:
                continue
            failure = _load_failure(replica, generation) or _crash_loop(replica, generation)
            if failure is not None:
                return failure
    return None


def traffic_of(model: str, generation: int, regions: Iterable[RegionState]) -> tuple[RegionTraffic, ...]:
    """What each region's router has counted of the generation; regions that counted nothing count zero."""
    found = []
    for region in regions:
        counts = [t for t in region.traffic if (t.model, t.generation) == (model, generation)]
        found.append(
            RegionTraffic(
                region=region.region,
                requests=sum(t.requests for t in counts),
                errors=sum(t.errors for t in counts),
                non_finite=sum(t.non_finite for t in counts),
            )
        )
    return tuple(found)


def traffic_since(before: Sequence[RegionTraffic], now: Sequence[RegionTraffic]) -> RegionTraffic:
    """Counts over all regions since `before`. A router that started anew counts from zero again."""
    earlier = {item.region: item for item in before}
    total = RegionTraffic(region="all")
    for item in now:
        base = earlier.get(item.region)
        if base is None or item.requests < base.requests:
            base = RegionTraffic(region=item.region)
        total = RegionTraffic(
            region="all",
            requests=total.requests + item.requests - base.requests,
            errors=total.errors + max(0, item.errors - base.errors),
            non_finite=total.non_finite + max(0, item.non_finite - base.non_finite),
        )
    return total


def gate_failure(counted: RegionTraffic, *, max_error_rate: float) -> Failure | None:
    """Why the counted answers do not pass, if they don't. Errors and non-finite answers count alike."""
    bad = counted.errors + counted.non_finite
    if counted.requests == 0 or bad / counted.requests <= max_error_rate:
        return None
    message = (
        f"{counted.errors} errors and {counted.non_finite} non-finite answers of {counted.requests}: "
        f"{bad / counted.requests:.1%}, allowed {max_error_rate:.1%}"
    )
    return Failure(Reason.GATE_FAILED, message)


def _load_failure(replica: Replica, generation: int) -> Failure | None:
    for failure in replica.failures:
        if generation in failure.generations:
            reason = reason_of(failure.code, otherwise=Reason.LOAD_FAILED)
            return Failure(reason, f"{replica.id} in {replica.key.region}: {failure.message}")
    return None


def _crash_loop(replica: Replica, generation: int) -> Failure | None:
    if replica.phase is not ReplicaPhase.FAILED or replica.restarts < CRASHES or generation in replica.ready:
        return None
    told = f": {replica.message}" if replica.message else ""
    return Failure(Reason.CRASH_LOOP, f"{replica.id} in {replica.key.region} ended {replica.restarts} times{told}")
