"""Bringing a region that was lost up to what the store wants of it: routes first, then replicas, then what is left over."""

from collections import Counter
from collections.abc import Sequence

from activities.wanted import Facts, read_facts, served_generations, shrinking_first
from activities.waves import answered as still_answered
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import Deployment, RegionState, ReplicaPhase, RouteShare, RouteTable
from ipnext.store.repository import Repository
from ipnext.store.session import Store


class Returning:
    """Needs the store and the infrastructure. Raises Unavailable where the region does not answer."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def bring_up(self, region: str) -> Sequence[Deployment]:
        """Whatever the region remembers, it follows the store afterwards. Its gateway is told before its replicas end.

        Returns the replica sets that it was told, by their keys: a change may have written others meanwhile (`wanted_in`).
        """
        state = self._infrastructure.observe(region)
        for table in self._tables(region, state):
            self._infrastructure.route(table)
            with self._store.begin(table.model) as repository:
                repository.put_route(table)
        with self._store.read() as repository:
            wanted = {d.key: d for d in wanted_in(repository, region)}
            routed = {table.model for table in repository.routes() if table.region == region}
        for model in sorted(state.routes.keys() - routed):
            self._infrastructure.unroute(model, region)
        running = Counter(replica.key for replica in state.replicas)
        for key in sorted(running.keys() - wanted.keys(), key=str):
            self._infrastructure.delete(key)
        for deployment in shrinking_first(wanted.values(), running):
            self._infrastructure.apply(deployment)
        return tuple(wanted.values())

    def _tables(self, region: str, state: RegionState) -> list[RouteTable]:
        """The region's tables, each later than what its gateway follows, with what it still holds.

        Users whose shares were dropped, for no other region held the model, are answered again where this one does. None are
        sent to what is held no more, there or elsewhere: what is left of their shares gets all of them.
        """
        with self._store.read() as repository:
            models = sorted({table.model for table in repository.routes() if table.region == region})
            found = [(read_facts(repository, name, 0), repository.model(name).serving_generation) for name in models]
        tables = []
        for facts, serving in found:
            table, held = facts.tables[region], tuple(facts.deployments.values())
            served = served_generations(facts, region, held)
            others = (other for other in facts.tables.values() if other.region != region)
            known = {(other.region, found.generation) for other in others for found in other.served}
            known |= {(region, found.generation) for found in served}
            shares = still_answered(table.shares, known)
            if not shares and (region, serving) in known and answered(facts, state, serving):
                shares = (RouteShare(to=region, generation=serving or 0, fraction=1.0),)
            revision = max(table.revision, state.routes.get(facts.model, 0)) + 1
            tables.append(table.model_copy(update={"shares": shares, "served": served, "revision": revision}))
        return tables


def wanted_in(repository: Repository, region: str) -> Sequence[Deployment]:
    """The replica sets that the store wants in a region, in the order of their keys."""
    found = [deployment for deployment in repository.deployments() if deployment.key.region == region]
    return tuple(sorted(found, key=lambda deployment: str(deployment.key)))


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
