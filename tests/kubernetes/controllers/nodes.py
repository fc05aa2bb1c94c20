"""Nodes that fall silent, and pods of nodes that are gone."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime

from tests.kubernetes.controllers.pods import PODS, is_terminating, read_time, with_condition
from tests.kubernetes.controllers.replica_sets import MANAGER
from tests.kubernetes.controllers.scheduler import NODES, is_met
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.storage import Change, Key
from tests.kubernetes.server.writing import now_text

LEASES = ("coordination.k8s.io", "leases")
LEASE_NAMESPACE = "kube-node-lease"
GRACE_SECONDS = 40.0
EVICTION_SECONDS = 300.0
UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}


class NodeLifecycle:
    """Marks a node whose lease was not renewed, and later deletes its pods."""

    def __init__(self, cluster: Cluster, *, grace_seconds: float, eviction_seconds: float) -> None:
        self._cluster = cluster
        self._grace, self._eviction = grace_seconds, eviction_seconds
        self._nodes, self._pods = cluster.resource("v1", "Node"), cluster.resource("v1", "Pod")
        self._leases = cluster.resource("coordination.k8s.io/v1", "Lease")

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return nodes that change or renew their lease."""
        if change.place == NODES:
            yield change.key
        elif change.place == LEASES and change.key[0] == LEASE_NAMESPACE:
            yield "", change.key[1]

    def reconcile(self, key: Key) -> float | None:
        """Judge a node by its lease."""
        node = self._cluster.find(self._nodes, *key)
        lease = self._cluster.find(self._leases, LEASE_NAMESPACE, key[1])
        if node is None or lease is None:
            return None
        silent = (datetime.now(UTC) - read_time(lease["spec"].get("renewTime"))).total_seconds()
        if silent < self._grace:
            self._mark(node, is_silent=False)
            return self._grace - silent
        self._mark(node, is_silent=True)
        since = silent - self._grace
        if since < self._eviction:
            return self._eviction - since
        self._evict(key[1])
        return None

    def _mark(self, node: Json, *, is_silent: bool) -> None:
        taints = [each for each in node["spec"].get("taints") or () if each["key"] != UNREACHABLE["key"]]
        spec = {name: each for name, each in node["spec"].items() if name != "taints"}
        taints += [UNREACHABLE] if is_silent else []
        changed = {**node, "spec": spec | ({"taints": taints} if taints else {})}
        changed = self._cluster.change(self._nodes, changed, MANAGER)
        if is_silent:
            self._write_unknown(changed)

    def _write_unknown(self, node: Json) -> None:
        now = now_text()
        unknown = {
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
        }
        conditions = list(node.get("status", {}).get("conditions") or ())
        conditions = with_condition(conditions, {"type": "Ready", **unknown}, now)
        status = node.get("status", {}) | {"conditions": conditions}
        self._cluster.change(self._nodes, {**node, "status": status}, MANAGER, subresource="status")
        for pod in self._pods_of(node["metadata"]["name"]):
            listed = pod["status"].get("conditions") or ()
            known = next((each for each in listed if each["type"] == "Ready" and each["status"] == "True"), None)
            if known:
                lost = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
                status = pod["status"] | {"conditions": with_condition(list(listed), lost, now)}
                self._cluster.change(self._pods, {**pod, "status": status}, MANAGER, subresource="status")

    def _pods_of(self, node: str) -> list[Json]:
        return [pod for pod in self._cluster.objects(self._pods) if pod["spec"].get("nodeName") == node]

    def _evict(self, node: str) -> None:
        for pod in self._pods_of(node):
            if not is_terminating(pod):
                self._cluster.delete(self._pods, pod["metadata"]["namespace"], pod["metadata"]["name"], {})


class TaintEviction:
    """Deletes the pods of a node that do not tolerate a taint with NoExecute, at once or after their time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes, self._pods = cluster.resource("v1", "Node"), cluster.resource("v1", "Pod")
        self._since: dict[tuple[str, str], float] = {}
        """When a taint of a pod's node was seen first, by uid of the pod and key."""

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return the pods of a node that changes, and pods that do."""
        if change.place == NODES and change.new is not None:
            bound = (one for one in self._cluster.objects(self._pods) if one["spec"].get("nodeName") == change.key[1])
            yield from ((one["metadata"]["namespace"], one["metadata"]["name"]) for one in bound)
        elif change.place == PODS and change.new is not None:
            yield change.key

    def reconcile(self, key: Key) -> float | None:
        """Delete the pod if a taint was not tolerated for long enough."""
        pod = self._cluster.find(self._pods, *key)
        node = pod and self._cluster.find(self._nodes, "", pod["spec"].get("nodeName", ""))
        if pod is None or node is None or is_terminating(pod):
            return None
        left = [self._seconds_left(pod, taint) for taint in node["spec"].get("taints") or () if _ends_pods(taint)]
        soonest = min((each for each in left if each is not None), default=None)
        if soonest is not None and soonest <= 0:
            self._cluster.delete(self._pods, *key, {})
            return None
        return soonest

    def _seconds_left(self, pod: Json, taint: Json) -> float | None:
        """Return after how many seconds the pod goes, None if the taint is tolerated for ever."""
        now = time.monotonic()
        begun = self._since.setdefault((pod["metadata"]["uid"], taint["key"]), now)
        met = [each for each in pod["spec"].get("tolerations") or () if is_met(each, taint)]
        if not met:
            return 0.0
        limits = [each["tolerationSeconds"] for each in met if each.get("tolerationSeconds") is not None]
        return min(limits) - (now - begun) if limits else None


def _ends_pods(taint: Json) -> bool:
    return bool(taint["effect"] == "NoExecute" and taint["key"] != UNREACHABLE["key"])


class PodGarbage:
    """Removes pods that are bound to a node that is gone."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes, self._pods = cluster.resource("v1", "Node"), cluster.resource("v1", "Pod")

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return the pods of a node that went, and pods that were bound."""
        if change.place == NODES and change.new is None:
            bound = (one for one in self._cluster.objects(self._pods) if one["spec"].get("nodeName") == change.key[1])
            yield from ((one["metadata"]["namespace"], one["metadata"]["name"]) for one in bound)
        elif change.place == PODS and change.new is not None:
            yield change.key

    def reconcile(self, key: Key) -> float | None:
        """Remove the pod if its node has been gone for long enough."""
        pod = self._cluster.find(self._pods, *key)
        name = pod and pod["spec"].get("nodeName")
        if pod is None or not name or self._cluster.find(self._nodes, "", name):
            return None
        self._cluster.delete(self._pods, *key, {"gracePeriodSeconds": 0})
        return None
