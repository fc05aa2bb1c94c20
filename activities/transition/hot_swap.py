"""Hot swaps for the activities: which waves swap, and routers that know both generations while processes swap.

Also lists the engines that cannot be hot swapped, as far as that is known before any engine is called.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from activities.state.desired import DesiredFacts
from activities.state.observed import missing_replicas
from activities.state.wave_state import ModelWaveState, state_at, swaps
from activities.transition.traffic_shift import Gateways
from ipnext.errors import Unavailable
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.planning.transition import Transition
from ipnext.model.registry.hot_swap import obstacle
from ipnext.model.registry.registry import Generation, SnapshotManifest

Manifests = Mapping[tuple[str, int], SnapshotManifest]
"""Part and number of a snapshot -> its manifest."""


class Announcement:
    """Announces to the routers the generations that processes are about to swap to. Made for one activity.

    While processes swap, a request whose generation has no engine left may be answered with the other generation; the
    router must know it beforehand. In a revert, the other one is the generation that the processes leave: routers
    forget nothing here.
    """

    def __init__(self, gateways: Gateways, facts: DesiredFacts, wanted: Iterable[Deployment]) -> None:
        self._gateways = gateways
        self._shares = {region: table.shares for region, table in facts.tables.items()}
        self._deployments = {**facts.deployments, **{deployment.key: deployment for deployment in wanted}}
        self.made = False
        """True once every region has applied it."""

    def make(self) -> None:
        """Announce to all regions; a later call retries if one was unreachable. The traffic shares stay as they are."""
        if not self.made:
            try:
                self._gateways.follow(self._shares, self._deployments.values(), keeping=self._shares)
            except Unavailable:
                return
            self.made = True


def leave_what_is_sent(tables: Iterable[RouteTable], told: Iterable[Deployment]) -> bool:
    """Check whether users are sent to a generation whose processes in that region are about to hold others.

    They swap then, against the order of any wave.

    That happens if a revert could not reach a region: the stored state is not the state of its processes.
    """
    swapped = [found for found in told if found.swap]
    regions = {found.key.region for found in swapped}
    held = {(found.key.region, generation) for found in swapped for generation in found.generations}
    sent = {(share.to, share.generation) for table in tables for share in table.shares if share.fraction > 0}
    return any(region in regions for region, _ in sent - held)


def while_swapped(transition: Transition, model: str, index: int) -> frozenset[tuple[str, int]]:
    """(Region, generation) that may receive traffic while wave `index` is reverted, though processes swap back.

    Empty if none do.
    """
    if not swaps(transition, model, index):
        return frozenset()
    counts = state_at(transition, model, index, "routed").counts
    return frozenset((region, generation) for ((_, region, _), generation), count in counts.items() if count)


def find_restarts(
    spec: ModelSpec, generations: Iterable[Generation], manifests: Manifests, transition: Transition
) -> Mapping[str, str]:
    """Map each part that `transition` swaps to the reason why its engines cannot be hot swapped between `generations`.

    Such engines are ended, and others start in their place. Obstacles that only a host finds (another `config.json`, an
    engine from before the manifest said swap, a step that fails) are not known here.
    """
    involved = tuple(generations)
    found = {part: _obstacle(spec, part, involved, manifests) for part in {swap.part for swap in transition.swaps}}
    return {part: why for part, why in sorted(found.items()) if why is not None}


def _obstacle(spec: ModelSpec, part: str, generations: tuple[Generation, ...], manifests: Manifests) -> str | None:
    if spec.handoff is not None:
        return "prefill and decode have to hand over between the same weights"
    if any(generation.adapters_of(part) for generation in generations):
        return "adapters stand in it"
    held = [manifests[part, g.snapshots[part]] for g in generations if part in g.snapshots]
    return next((why for other in held[1:] if (why := obstacle(held[0], other)) is not None), None)


def not_gone_back(model: str, state: ModelWaveState, states: Mapping[str, RegionState]) -> frozenset[str]:
    """Regions with processes that have not swapped back to the state, or are still about to leave it.

    Their routers must know the generations these may still hold, or come to. Those processes may be all that answers
    there. Regions that are not in `states` are unknown.
    """
    return frozenset(
        region
        for region, found in states.items()
        if missing_replicas(model, replace(state, counts=_within(state, region)), states)
        or any(_leaves(state, replica) for replica in found.replicas if replica.key.model == model)
    )


def _leaves(state: ModelWaveState, replica: Replica) -> bool:
    """Check whether a process is about to swap to a generation that the state does not hold there."""
    slot = (replica.key.part, replica.key.region, replica.key.hardware)
    return not state.generations_at(slot).issuperset(replica.coming)


def _within(state: ModelWaveState, region: str) -> dict[tuple[tuple[str, str, str], int], int]:
    return {held: count for held, count in state.counts.items() if held[0][1] == region}
