"""The report of one region: its replicas, route tables and traffic."""

from collections.abc import Collection, Mapping

from pydantic import Field

from ipnext.model.deployment.replica import Replica
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.shadow import ShadowComparison
from ipnext.model.value import Name, Value


class RegionState(Value):
    """The report of one region."""

    region: Name
    gateway_url: str
    peer_url: str = ""
    """The address to which gateways of other regions send requests for this one."""
    replicas: tuple[Replica, ...] = ()
    routes: Mapping[str, int] = Field(default_factory=dict)
    """Model -> revision of the route table in use at its gateway."""
    traffic: tuple[GenerationTraffic, ...] = ()
    token: str = ""
    """Identifies the state of replicas and routes, for `Infrastructure.await_change`. Empty: the report covers all
    models, or the region does not support it."""
    access_behind_seconds: float | None = Field(default=None, ge=0)
    """Time since the region has had a newer access list than the one that its router goes by; None: it has none. Only
    in reports of all models."""
    shadows: tuple[ShadowComparison, ...] = ()
    """Comparisons of shadows in its router, one for each model that has one."""

    def only(self, models: Collection[str] | None) -> "RegionState":
        """Return the report limited to some models; None: all."""
        if models is None:
            return self
        return RegionState(
            region=self.region,
            gateway_url=self.gateway_url,
            peer_url=self.peer_url,
            replicas=tuple(replica for replica in self.replicas if replica.key.model in models),
            routes={model: revision for model, revision in self.routes.items() if model in models},
            traffic=tuple(count for count in self.traffic if count.model in models),
            shadows=tuple(found for found in self.shadows if found.model in models),
        )
