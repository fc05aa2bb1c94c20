"""Failure cause, recorded while it is observable: the part, region and host behind a wave that fails."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from activities.state.wave_state import ModelWaveState
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.lifecycle.failure_cause import Cause, Place
from ipnext.store.repository import Repository

LOOKED_AT = 100
"""Events among which the first cause of a change is searched."""


class RegionAnswers(Protocol):
    """Answers of one generation in one region."""

    @property
    def region(self) -> str:
        """Name of the region."""

    @property
    def requests(self) -> int:
        """All answers."""

    @property
    def errors(self) -> int:
        """Answers with a 5xx status."""

    @property
    def non_finite(self) -> int:
        """Answers with NaN or infinity."""


def place_of(replica: Replica, *, adapter: str | None = None) -> Place:
    """Return the place of a failure for a replica, or for an adapter on its part."""
    key = replica.key
    return Place(part=adapter or key.part, region=key.region, hardware=key.hardware, host=replica.id, log=replica.log)


def first_lacking(model: str, state: ModelWaveState, regions: Mapping[str, RegionState]) -> Place:
    """Return the first slot that lacks a ready replica, and the replica there that is furthest from it.

    Reachable regions only.
    """
    for (slot, generation), wanted in sorted(state.counts.items()):
        part, region, hardware = slot
        if region not in regions:
            continue
        found = [r for r in regions[region].replicas if _slot(r) == (model, part, hardware)]
        lacking = [r for r in found if generation not in r.ready and r.phase is not ReplicaPhase.DRAINING]
        if len(found) - len(lacking) < wanted:
            host = min(lacking, key=lambda r: (r.phase is not ReplicaPhase.FAILED, -r.restarts, r.id), default=None)
            return place_of(host) if host else Place(part=part, region=region, hardware=hardware)
    return Place()


def worst_region(before: Sequence[RegionAnswers], now: Iterable[RegionAnswers]) -> str | None:
    """Return the region with the largest fraction of bad answers since `before`; None if none was bad."""
    earlier, found = _sum_by_region(before), _sum_by_region(now)
    shares: dict[str, float] = {}
    for region, counted in found.items():
        base = earlier.get(region, (0, 0))
        if counted[0] < base[0]:  # its router restarted
            base = (0, 0)
        requests, bad = counted[0] - base[0], counted[1] - base[1]
        if requests > 0 and bad > 0:
            shares[region] = bad / requests
    return max(sorted(shares), key=lambda region: shares[region], default=None)


def _sum_by_region(counts: Iterable[RegionAnswers]) -> dict[str, tuple[int, int]]:
    """Return the answers of each region, and the bad ones of them."""
    found: dict[str, tuple[int, int]] = {}
    for item in counts:
        requests, bad = found.get(item.region, (0, 0))
        found[item.region] = requests + item.requests, bad + item.errors + item.non_finite
    return found


def note_first(repository: Repository, model: str, cause: Cause, *, regions: Iterable[str] = ()) -> None:
    """Record a change's cause if none was recorded yet: for failures outside the activities that see hosts.

    A region that the message names in quotes is the place.
    """
    detail = (event.detail for event in repository.events(model, limit=LOOKED_AT))
    if any(found and found.get("cause", {}).get("change") == cause.change for found in detail):
        return
    named = next((region for region in sorted(regions) if repr(region) in cause.message), None)
    place = cause.place.model_copy(update={"region": cause.place.region or named})
    told = cause.model_copy(update={"place": place})
    repository.add_event(model, "Failed", f"{cause.reason}: {cause.message}", detail=told.detail)


def _slot(replica: Replica) -> tuple[str, str, str]:
    return replica.key.model, replica.key.part, replica.key.hardware
