"""An infrastructure for measuring the control plane.

Replicas are ready at once, gateways follow at once, all in memory.
"""

import threading
from collections.abc import Collection, Sequence

from ipnext.errors import NotFound
from ipnext.model.access.predictions import AccessList, AccessRevision, KeyUseReport
from ipnext.model.deployment.applied_state import AppliedState
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.gate.live import RoundTimes, TimingRound


class InstantInfrastructure:
    """The port of `ipnext.infra.port`, without anything that runs."""

    def __init__(self, regions: Sequence[str]) -> None:
        self._regions = tuple(regions)
        self._deployments: dict[str, dict[str, dict[DeploymentKey, Deployment]]] = {region: {} for region in regions}
        self._tables: dict[str, dict[str, RouteTable]] = {region: {} for region in regions}
        self._access: dict[str, AccessList] = {}
        self._lock = threading.Lock()

    def regions(self) -> tuple[str, ...]:
        """See the port."""
        return self._regions

    def apply(self, deployment: Deployment) -> None:
        """See the port."""
        with self._lock:
            self._of(deployment.key)[deployment.key] = deployment

    def route(self, table: RouteTable) -> None:
        """See the port."""
        with self._lock:
            self._tables[table.region][table.model] = table

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        """See the port."""
        if region not in self._deployments:
            msg = f"no region {region!r}"
            raise NotFound(msg)
        with self._lock:
            tables = self._tables[region]
            chosen = list(self._deployments[region].keys() | tables.keys()) if models is None else models
            found = [d for name in chosen for d in self._deployments[region].get(name, {}).values()]
            routes = {name: tables[name].revision for name in chosen if name in tables}
        replicas = tuple(_replica(d, number) for d in found for number in range(d.replicas))
        return RegionState(region=region, gateway_url=f"http://{region}.nowhere", replicas=replicas, routes=routes)

    def read_applied(self, region: str) -> AppliedState:
        """See the port."""
        with self._lock:
            sets = [found for held in self._deployments[region].values() for found in held.values()]
            return AppliedState.of(sets, self._tables[region].values())

    def await_change(self, region: str, models: Collection[str], token: str, *, seconds: float) -> None:
        """See the port. Nothing is ever waited for."""

    def prefetch(self, region: str, uris: Sequence[str]) -> None:
        """See the port."""

    def time_replicas(self, region: str, asked: TimingRound) -> RoundTimes:
        """See the port. No replica answers requests."""
        msg = f"no process of {asked.model}/{asked.part} in region {region!r}"
        raise NotFound(msg)

    def delete(self, key: DeploymentKey) -> None:
        """See the port."""
        with self._lock:
            self._of(key).pop(key, None)

    def unroute(self, model: str, region: str) -> None:
        """See the port."""
        with self._lock:
            self._tables[region].pop(model, None)

    def put_access(self, region: str, access: AccessList) -> AccessRevision:
        """See the port."""
        with self._lock:
            self._access[region] = access
        return AccessRevision.of(access)

    def access_revision(self, region: str) -> AccessRevision:
        """See the port."""
        with self._lock:
            return AccessRevision.of(self._access.get(region))

    def key_uses(self, region: str) -> KeyUseReport:  # noqa: ARG002 - the port's signature
        """See the port. No requests arrive."""
        return KeyUseReport()

    def _of(self, key: DeploymentKey) -> dict[DeploymentKey, Deployment]:
        return self._deployments[key.region].setdefault(key.model, {})


def _replica(deployment: Deployment, number: int) -> Replica:
    return Replica(
        id=f"{deployment.key}-{number}",
        key=deployment.key,
        phase=ReplicaPhase.RUNNING,
        ready=tuple(deployment.generations),
    )
