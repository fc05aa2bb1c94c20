"""Ends the shadow of a change: out of the route tables first, then its replicas, then its record.

It waits for no region: one that does not answer gets what the store wants from the reconciler.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace

from activities.runtime.fence import still_ours
from activities.state.desired import DesiredFacts, read_facts
from activities.state.observed import observe
from activities.state.shadow_sets import without_shadow
from ipnext.errors import StaleWrite, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable
from ipnext.store.repository import Repository
from ipnext.store.store import Store


class ShadowRemoval:
    """Ends shadows, on the store and the infrastructure."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def remove(self, model: str, change_id: str) -> None:
        """End the shadow that a change keeps; nothing to do if it keeps none.

        Raises Unavailable while another change moves the model: its steps apply the shadow until it is gone.
        """
        with self._store.read() as repository:
            shadow = repository.shadow(model)
            if shadow is None or shadow.change_id != change_id:
                return
            repository.check_only_mover(model, change_id)
            facts = replace(read_facts(repository, model, shadow.generation), shadow=None)
        self._end_mirroring(facts)
        self._end_sets(facts, shadow.sets)
        with self._store.begin(model) as repository:
            now = repository.shadow(model)
            if now is None or now.change_id != change_id:
                return
            repository.check_only_mover(model, change_id)
            _forget(repository, model)

    def leave(self, facts: DesiredFacts, regions: Collection[str]) -> None:
        """End the processes of a model's shadow in drained or lost regions; the others keep theirs."""
        with self._store.read() as repository:
            stored = repository.deployments(facts.model)
        left = [found for found in stored if found.shadow and found.key.region in regions]
        if not left:
            return
        self._end_sets(facts, left)
        with self._store.begin(facts.model) as repository:
            still_ours(repository)
            for deployment in repository.deployments(facts.model):
                if deployment.shadow and deployment.key.region in regions:
                    _put_bare(repository, deployment)

    def _end_mirroring(self, facts: DesiredFacts) -> None:
        """Let the routers forget it, those that answer. Its replicas end afterwards: no mirrored request fails."""
        named = {region: table for region, table in facts.tables.items() if table.shadow is not None}
        states, _ = observe(self._infrastructure, named.keys() - facts.lost, [facts.model])
        for region, state in states.items():
            revision = max(named[region].revision, state.routes.get(facts.model, 0)) + 1
            bare = named[region].model_copy(update={"shadow": None, "revision": revision})
            with suppress(Unavailable, StaleWrite):  # what the store wants is applied later, or a change has applied it
                self._infrastructure.route(bare)
                self._store_table(named[region], bare)

    def _store_table(self, read: RouteTable, bare: RouteTable) -> None:
        with self._store.begin(read.model) as repository:
            if repository.route(read.model, read.region) == read:
                repository.put_route(bare)

    def _end_sets(self, facts: DesiredFacts, sets: Iterable[Deployment]) -> None:
        silent = set(facts.lost)
        for found in sets:
            if found.key.region in silent:
                continue
            left = facts.deployments.get(found.key)
            try:
                if left is not None:
                    self._infrastructure.apply(left)
                else:
                    self._infrastructure.delete(found.key)
            except Unavailable:
                silent.add(found.key.region)


def _forget(repository: Repository, model: str) -> None:
    """Write what the store wants without the shadow."""
    for table in repository.routes(model):
        if table.shadow is not None:
            repository.put_route(table.model_copy(update={"shadow": None, "revision": table.revision + 1}))
    for deployment in [found for found in repository.deployments(model) if found.shadow]:
        _put_bare(repository, deployment)
    repository.delete_shadow(model)


def _put_bare(repository: Repository, deployment: Deployment) -> None:
    left: Iterable[Deployment] = without_shadow([deployment])
    for bare in left:
        repository.put_deployment(bare)
    if not left:
        repository.delete_deployment(deployment.key)
