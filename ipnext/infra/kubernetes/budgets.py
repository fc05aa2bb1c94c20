"""PodDisruptionBudgets of a region's replica sets: node drains leave all replicas but one."""

from functools import partial

from ipnext.errors import Unavailable
from ipnext.infra.kubernetes.cluster import BUDGETS, Cluster, ClusterRefused
from ipnext.infra.kubernetes.documents import name_budget, render_budget
from ipnext.infra.kubernetes.latest_writes import LatestWrites
from ipnext.model.deployment.deployment import DeploymentKey


class DisruptionBudgets:
    """Writes a budget for each replica set, in the background."""

    def __init__(self, cluster: Cluster, writes: LatestWrites) -> None:
        self._cluster, self._writes = cluster, writes
        self._kept: dict[DeploymentKey, int] = {}

    def keep(self, key: DeploymentKey, replicas: int) -> None:
        """Apply the budget of a replica set; delete it if that has no replicas."""
        if self._kept.get(key) != replicas:
            self._kept[key] = replicas
            self._writes.put(name_budget(key), partial(self._write, key))

    async def _write(self, key: DeploymentKey) -> None:
        replicas = self._kept[key]
        try:
            if replicas:
                await self._cluster.apply(BUDGETS, render_budget(key, replicas))
            else:
                await self._cluster.delete(BUDGETS, name_budget(key))
        except ClusterRefused as error:
            raise Unavailable(error.message) from error
        if not replicas and not self._kept.get(key):
            self._kept.pop(key, None)
