"""Putting route tables in force: infrastructure first, then the store, and nothing where nothing changes."""

from collections.abc import Iterable, Mapping

from activities.regions import observe
from activities.wanted import Facts, served_generations
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import Deployment, RouteShare, RouteTable, ServedGeneration
from ipnext.store.session import Store

Shares = tuple[RouteShare, ...]


class Gateways:
    """The gateways of all regions, as one model's route tables see them. Made for one activity."""

    def __init__(self, store: Store, infrastructure: Infrastructure, facts: Facts) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._facts = facts
        self._tables: dict[str, RouteTable] = dict(facts.tables)
        self._followed: dict[str, int] = {}

    def follow(self, shares: Mapping[str, Shares], deployments: Iterable[Deployment]) -> None:
        """Let every region serve what it holds, then send the traffic by `shares`.

        In this order no gateway sends a generation to a region whose router does not know it yet. Regions that can't be
        reached don't keep the others from following; Unavailable names the first of them at the end.
        """
        states, silent = observe(self._infrastructure, shares)
        self._followed = {name: state.routes.get(self._facts.model, 0) for name, state in states.items()}
        held = tuple(deployments)
        served = {region: served_generations(self._facts, region, held) for region in states}
        for region in states:
            self._put(region, self._shares_now(region), _union(served[region], self._served_now(region)))
        for region in states:
            self._put(region, shares[region], served[region])
        if silent:
            msg = f"region {silent[0]!r} can't be reached, so its gateway does not follow yet"
            raise Unavailable(msg)

    def _shares_now(self, region: str) -> Shares:
        return self._tables[region].shares if region in self._tables else ()

    def _served_now(self, region: str) -> tuple[ServedGeneration, ...]:
        return self._tables[region].served if region in self._tables else ()

    def _put(self, region: str, shares: Shares, served: tuple[ServedGeneration, ...]) -> None:
        """The table with this content in force. A new revision is above the stored and the followed one."""
        stored, followed = self._tables.get(region), self._followed[region]
        known = stored.revision if stored else 0
        if followed == known and (self._shares_now(region), self._served_now(region)) == (shares, served):
            return
        revision = max(followed, known) + 1
        table = RouteTable(model=self._facts.model, region=region, revision=revision, shares=shares, served=served)
        self._infrastructure.route(table)
        with self._store.begin(self._facts.model) as repository:
            repository.put_route(table)
        self._tables[region], self._followed[region] = table, revision


def _union(new: tuple[ServedGeneration, ...], old: tuple[ServedGeneration, ...]) -> tuple[ServedGeneration, ...]:
    """All of `new`, and of `old` what it lacks, by generation."""
    numbers = {served.generation for served in new}
    kept = (served for served in old if served.generation not in numbers)
    return tuple(sorted((*new, *kept), key=lambda served: served.generation))
