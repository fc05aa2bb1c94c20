"""The controller of ReplicaSets."""

from collections.abc import Iterable

from tests.kubernetes.controllers.pods import (
    PODS,
    controlled_by,
    controller_of,
    deletion_order,
    is_active,
    is_controlled_by,
    is_ready,
    is_terminating,
    seconds_to_available,
    with_condition,
)
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import ApiFailure, Json
from tests.kubernetes.server.storage import Change, Key
from tests.kubernetes.server.writing import Options, now_text

MANAGER = "kube-controller-manager"
REPLICA_SETS = ("apps", "replicasets")
RETRY_SECONDS = 1.0


class ReplicaSetController:
    """Keeps as many pods as a ReplicaSet wants."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pods, self._sets = cluster.resource("v1", "Pod"), cluster.resource("apps/v1", "ReplicaSet")

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return sets that change, or whose pods do."""
        if change.place == REPLICA_SETS:
            yield change.key
        elif change.place == PODS and (owner := controller_of(change.last)) and owner["kind"] == "ReplicaSet":
            yield change.key[0], owner["name"]

    def reconcile(self, key: Key) -> float | None:
        """Create missing pods, delete those of least value that are too many, and write the status."""
        found = self._cluster.find(self._sets, *key)
        if found is None:
            return None
        failure = None
        if "deletionTimestamp" not in found["metadata"]:
            failure = self._scale(found)
        seconds = self._write_status(found, failure)
        return RETRY_SECONDS if failure else seconds

    def _owned(self, owner: Json) -> list[Json]:
        found = self._cluster.objects(self._pods, owner["metadata"]["namespace"])
        return [pod for pod in found if is_controlled_by(pod, owner)]

    def _scale(self, owner: Json) -> ApiFailure | None:
        """Return why pods could not be created, None if all could."""
        active = [pod for pod in self._owned(owner) if is_active(pod)]
        wanted = owner["spec"].get("replicas", 1)
        for pod in sorted(active, key=deletion_order)[: max(0, len(active) - wanted)]:
            self._cluster.delete(self._pods, pod["metadata"]["namespace"], pod["metadata"]["name"], {})
        try:
            for _ in range(wanted - len(active)):
                self._create(owner)
        except ApiFailure as failure:
            return failure
        return None

    def _create(self, owner: Json) -> None:
        template = owner["spec"]["template"]
        metadata = template.get("metadata") or {}
        kept = {name: metadata[name] for name in ("labels", "annotations", "finalizers") if name in metadata}
        named = {"generateName": f"{owner['metadata']['name']}-", "ownerReferences": controlled_by(owner)}
        pod = {"metadata": {**kept, **named}, "spec": template["spec"]}
        self._cluster.create(self._pods, owner["metadata"]["namespace"], pod, Options(manager=MANAGER))

    def _write_status(self, owner: Json, failure: ApiFailure | None) -> float | None:
        pods = self._owned(owner)
        active = [pod for pod in pods if is_active(pod)]
        waits = [seconds_to_available(pod, owner["spec"].get("minReadySeconds", 0)) for pod in active]
        status: Json = {
            "replicas": len(active),
            "fullyLabeledReplicas": len(active),
            "readyReplicas": sum(map(is_ready, active)),
            "availableReplicas": waits.count(0.0),
            "terminatingReplicas": sum(map(is_terminating, pods)),
            "observedGeneration": owner["metadata"]["generation"],
        }
        conditions = self._conditions(owner, failure)
        status |= {"conditions": conditions} if conditions else {}
        self._cluster.change(self._sets, {**owner, "status": status}, MANAGER, subresource="status")
        return min((seconds for seconds in waits if seconds), default=None)

    def _conditions(self, owner: Json, failure: ApiFailure | None) -> list[Json]:
        known = [each for each in owner.get("status", {}).get("conditions") or () if each["type"] != "ReplicaFailure"]
        if failure is None:
            return known
        new = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure.message}
        return with_condition(list(owner.get("status", {}).get("conditions") or ()), new, now_text())
