"""The route tables of a model in the gateways of all regions and in the store."""

from collections.abc import Generator
from typing import Any

from activities.transition import traffic_shift as shifting
from ipnext.errors import Unavailable
from ipnext.model.deployment.route_table import RouteShare
from tests.workflows.simulation.journal import Table
from tests.workflows.simulation.runs.activity_attempts import Attempt


class GatewayTables:
    """Tables of one model that one activity puts in force; it begins again if another one comes between."""

    def __init__(self, world: Any, model: str, lost: frozenset[str], attempt: Attempt) -> None:
        self.world, self.model, self.lost, self.attempt = world, model, lost, attempt
        self.record = world.journal.records[model]

    def find(self, region: str) -> Table:
        """The table as stored."""
        return self.record.tables.get(region) or Table(region, 0, (), frozenset())

    def knows(self, shares: tuple[RouteShare, ...]) -> bool:
        """Whether every router that users are sent to knows their generation."""
        return all(share.generation in self.find(share.to).served for share in shares if share.fraction > 0)

    def regains(self, region: str, shares: tuple[RouteShare, ...]) -> bool:
        """Whether a gateway is ahead of a stored table that answers fewer of its users than `shares` do."""
        stored, gateway = self.find(region), self.world.infra.regions[region]
        ahead = gateway.routes.get(self.model, (0, ()))[0] > stored.revision
        return ahead and shifting._answered(stored.shares, self.lost) < shifting._answered(shares, self.lost)

    def are_known(self, region: str, shares: tuple[RouteShare, ...]) -> bool:
        """Whether routers know the generations that a region is sent to; its own learns of them with the table."""
        return all(share.to == region or share.generation in self.find(share.to).served for share in shares)

    def put(
        self, region: str, shares: tuple[RouteShare, ...], served: frozenset[int], *, forgets: bool = False
    ) -> Generator[Any, Any, None]:
        """Update the gateway, then the store; a table by which a router forgets generations is stored first."""
        world, model = self.world, self.model
        self.attempt.check()
        self._check_unchanged()
        gateway, stored = world.infra.region(region), self.find(region)
        revision, before = gateway.routes.get(model, (0, ()))
        if revision == stored.revision and (stored.shares, stored.served) == (shares, served):
            return
        table = Table(region, max(revision, stored.revision) + 1, shares, served)
        if forgets:
            yield from self._save(table)
            self._check_unchanged()
            gateway = world.infra.region(region)
        world.invariants.pace.check_step(model, region, before, shares)
        if gateway.routes.get(model, (0, ()))[0] < table.revision:
            gateway.routes[model], gateway.served[model] = (table.revision, shares), served
        yield f"traffic of {region} is moved"
        self.attempt.check()
        if not forgets:
            yield from self._save(table)

    def _check_unchanged(self) -> None:
        if self.world.lost != self.lost:
            msg = "another change came first"
            raise Unavailable(msg)

    def _save(self, table: Table) -> Generator[Any, Any, None]:
        if self.find(table.region).revision >= table.revision:
            msg = "a later table was written"
            raise Unavailable(msg)
        self.record.tables[table.region] = table
        yield f"traffic of {table.region} is written down"
        self.attempt.check()

    def store_lost(self, region: str, shares: tuple[RouteShare, ...], served: frozenset[int]) -> None:
        """Store the table that a lost region gets once it is back."""
        stored = self.find(region)
        if (stored.shares, stored.served) != (shares, served):
            self.record.tables[region] = Table(region, stored.revision + 1, shares, served)
