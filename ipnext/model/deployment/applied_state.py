"""Desired state that a region was sent last, as digests: a region that was away is compared by them."""

from collections.abc import Iterable, Mapping

from pydantic import Field

from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.value import Value, digest_of


class AppliedSet(Value):
    """A replica set that a region was sent, and the digest of its Deployment."""

    key: DeploymentKey
    digest: str


class AppliedState(Value):
    """All replica sets and route tables that a region was sent last, by the digests of their canonical JSON."""

    sets: tuple[AppliedSet, ...] = ()
    tables: Mapping[str, str] = Field(default_factory=dict)
    """Model -> digest of its RouteTable, whether the gateway has applied it or not."""

    @classmethod
    def of(cls, deployments: Iterable[Deployment], tables: Iterable[RouteTable]) -> "AppliedState":
        """Return the digests of these."""
        sets = tuple(AppliedSet(key=found.key, digest=digest_of(found)) for found in deployments)
        return cls(sets=sets, tables={table.model: digest_of(table) for table in tables})
