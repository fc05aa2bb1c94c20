"""Bringing a region that was lost up to what the store wants of it: routes first, then replicas, then what is left over."""

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
    """What the store wants of a region: replica sets in the order of their keys, and (model, generation that its users were sent to last)."""

    deployments: Sequence[Deployment]
    settled: Sequence[tuple[str, int | None]]


@dataclass(frozen=True)
class Told:
    """What a region was told by a store that wanted so much of it."""

    wanted: Wanted
    tables: Sequence[RouteTable]

    def written(self, repository: Repository, region: str) -> bool:
        """Write the tables down, unless the store wants something else, or has a later table, by now."""
        stored = ((repository.route(table.model, region), table) for table in self.tables)
        if self.wanted != wanted_in(repository, region) or any(
            old and old.revision >= new.revision for old, new in stored
        ):
            return False
        for table in self.tables:
            repository.put_route(table)
        return True


class Returning:
    """Needs the store and the infrastructure. Raises Unavailable where the region does not answer."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def bring_up(self, region: str) -> Told:
        """Whatever the region remembers, it follows the store afterwards. Its gateway is told before its replicas end.

        Returns what it was told, nothing of which is written down yet: a change may have written something else meanwhile.
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
        """The region's tables, each later than what its gateway follows, with what it still holds.

        Users whose shares were dropped, for no other region held the model, are answered again where this one does. None are
        sent to what is held no more, there or elsewhere: what is left of their shares gets all of them. Its router keeps
        generations that gateways of other regions are still sending to by their stored tables: one may not be reachable.
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
    """What the store wants of a region now."""
    return Wanted(
        tuple(sorted(repository.deployments_in(region), key=lambda deployment: str(deployment.key))),
        tuple(sorted(repository.settled_generations(repository.routed_in(region)).items())),
    )


def answered(facts: Facts, state: RegionState, generation: int | None) -> bool:
    """Whether every part of a generation has a replica in the region that is ready for it."""
    found = facts.generations.get(generation or 0)
    ready = {
        replica.key.part
        for replica in state.replicas
        if replica.key.model == facts.model
        and replica.phase is not ReplicaPhase.DRAINING
        and generation in replica.ready
    }
    return found is not None and ready.issuperset(found.parts)
