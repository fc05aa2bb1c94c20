"""Recovery of a region that was lost to its desired state: routes first, then removals, then replicas."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from activities.state.desired import Facts, served_generations, shrinking_first
from activities.state.routed_models import merge_served, read_routed
from activities.state.wave_state import answered as still_answered
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import Deployment, RegionState, ReplicaPhase, RouteShare, RouteTable
from ipnext.store.repository import Repository
from ipnext.store.session import Store


@dataclass(frozen=True)
class Wanted:
    """Desired state of a region: replica sets in key order, and (model, generation that its users were sent to last)."""

    deployments: Sequence[Deployment]
    settled: Sequence[tuple[str, int | None]]


@dataclass(frozen=True)
class Told:
    """State that was applied to a region, and the desired state that it was computed from."""

    wanted: Wanted
    tables: Sequence[RouteTable]

    def written(self, repository: Repository, region: str) -> bool:
        """Store the tables, unless the desired state has changed, or the store has a later table, by now."""
        stored = ((repository.route(table.model, region), table) for table in self.tables)
        if self.wanted != wanted_in(repository, region) or any(
            old and old.revision >= new.revision for old, new in stored
        ):
            return False
        for table in self.tables:
            repository.put_route(table)
        return True


class Returning:
    """Restores regions; needs the store and the infrastructure. Raises Unavailable if the region does not answer."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def bring_up(self, region: str) -> Told:
        """Make the region follow the store, whatever its state is. Its gateway is updated before its replicas end.

        Returns the applied state, nothing of which is stored yet: a change may have stored another one meanwhile.
        """
        state = self._infrastructure.observe(region)
        with self._store.read() as repository:
            settled = wanted_in(repository, region).settled
        tables = self._tables(region, state, dict(settled))
        for table in tables:
            self._infrastructure.route(table)
        with self._store.read() as repository:
            wanted = {d.key: d for d in wanted_in(repository, region).deployments}
            routed = repository.routed_in(region)
        for model in sorted(state.routes.keys() - set(routed)):
            self._infrastructure.unroute(model, region)
        running = Counter(replica.key for replica in state.replicas)
        for key in sorted(running.keys() - wanted.keys(), key=str):
            self._infrastructure.delete(key)
        for deployment in shrinking_first(wanted.values(), running):
            self._infrastructure.apply(deployment)
        return Told(Wanted(tuple(wanted.values()), settled), tuple(tables))

    def _tables(self, region: str, state: RegionState, settled: Mapping[str, int | None]) -> list[RouteTable]:
        """Return the region's tables, each with a revision after its gateway's, and with the generations that it still holds.

        Users whose shares were dropped because no other region held the model are answered again if this one does. None
        are sent to generations that are not held any more, there or elsewhere: the rest of their shares gets all of
        them. Its router keeps generations that gateways of other regions still send to by their stored tables: one may
        not be reachable.
        """
        with self._store.read() as repository:
            found = read_routed(repository, sorted(settled))
        tables = []
        for facts in found:
            serving, table, held = settled[facts.model], facts.tables[region], tuple(facts.deployments.values())
            served = served_generations(facts, region, held)
            others = [other for other in facts.tables.values() if other.region != region]
            sent = {s.generation for other in others for s in other.shares if s.to == region and s.fraction > 0}
            kept = [found for found in table.served if found.generation in sent]
            known = {(other.region, found.generation) for other in others for found in other.served}
            known |= {(region, found.generation) for found in served}
            shares = still_answered(table.shares, known)
            if not shares and (region, serving) in known and answered(facts, state, serving):
                shares = (RouteShare(to=region, generation=serving or 0, fraction=1.0),)
            revision = max(table.revision, state.routes.get(facts.model, 0)) + 1
            change = {"shares": shares, "served": merge_served(served, kept), "revision": revision}
            tables.append(table.model_copy(update=change))
        return tables


def wanted_in(repository: Repository, region: str) -> Wanted:
    """Return the desired state of a region now."""
    return Wanted(
        tuple(sorted(repository.deployments_in(region), key=lambda deployment: str(deployment.key))),
        tuple(sorted(repository.settled_generations(repository.routed_in(region)).items())),
    )


def answered(facts: Facts, state: RegionState, generation: int | None) -> bool:
    """True if every part of a generation has a ready replica in the region."""
    found = facts.generations.get(generation or 0)
    ready = {
        replica.key.part
        for replica in state.replicas
        if replica.key.model == facts.model
        and replica.phase is not ReplicaPhase.DRAINING
        and generation in replica.ready
    }
    return found is not None and ready.issuperset(found.parts)
