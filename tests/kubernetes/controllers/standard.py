"""The controllers that a cluster has."""

import functools

from tests.kubernetes.controllers.deployments import DeploymentController
from tests.kubernetes.controllers.disruption_budgets import DisruptionBudgetController
from tests.kubernetes.controllers.garbage import GarbageCollector, NamespaceEnd
from tests.kubernetes.controllers.leader_worker_sets import LeaderWorkerSetController
from tests.kubernetes.controllers.manager import Makers
from tests.kubernetes.controllers.nodes import EVICTION_SECONDS, GRACE_SECONDS, NodeLifecycle, PodGarbage, TaintEviction
from tests.kubernetes.controllers.replica_sets import ReplicaSetController
from tests.kubernetes.controllers.scheduler import Scheduler


def standard_controllers(
    *, node_grace_seconds: float = GRACE_SECONDS, eviction_seconds: float = EVICTION_SECONDS
) -> Makers:
    """Return what makes each controller; the times are those after which a node that is silent loses its pods."""
    return (
        GarbageCollector,
        NamespaceEnd,
        DeploymentController,
        ReplicaSetController,
        LeaderWorkerSetController,
        DisruptionBudgetController,
        functools.partial(NodeLifecycle, grace_seconds=node_grace_seconds, eviction_seconds=eviction_seconds),
        TaintEviction,
        PodGarbage,
        Scheduler,
    )
