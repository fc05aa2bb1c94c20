"""Calls to a MemoryInfrastructure and the state after each; tests read capacity floors from it."""

from collections.abc import Mapping
from dataclasses import dataclass

from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteTable


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One call and the state of every region just after it.

    `call` is the name of the port's method, `subject` the object that it named, `refused` the error code that it
    raised.
    """

    number: int
    call: str
    subject: str
    refused: str | None
    deployments: Mapping[DeploymentKey, Deployment]
    routes: Mapping[tuple[str, str], RouteTable]
    """(model, region) -> the route table in force."""
    ready: Mapping[tuple[DeploymentKey, int], int]
    """(replica set, generation) -> replicas that serve it."""

    def ready_qps(self, model: str, part: str, region: str, generation: int) -> float:
        """Return the requests per second that a part's ready replicas can answer for a generation in a region."""
        return sum(
            count * self.deployments[key].qps
            for (key, held), count in self.ready.items()
            if (key.model, key.part, key.region, held) == (model, part, region, generation)
        )

    def sent_qps(self, model: str, to: str, generation: int, demand: Mapping[str, float]) -> float:
        """Return the requests per second that all gateways send to a generation in region `to`.

        They follow from the demand of each region.
        """
        return sum(
            share.fraction * demand.get(table.region, 0.0)
            for table in self.routes.values()
            if table.model == model
            for share in table.shares
            if (share.to, share.generation) == (to, generation)
        )

    def generations_with_traffic(self, model: str) -> frozenset[tuple[str, int]]:
        """Return the (region, generation) pairs that receive any of the model's traffic."""
        return frozenset(
            (share.to, share.generation)
            for table in self.routes.values()
            if table.model == model
            for share in table.shares
            if share.fraction > 0
        )
