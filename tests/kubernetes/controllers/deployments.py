"""The controller of Deployments: a ReplicaSet for each template, and rolling updates between them."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson

from tests.kubernetes.controllers.pods import (
    controlled_by,
    controller_of,
    is_controlled_by,
    read_time,
    with_condition,
)
from tests.kubernetes.controllers.replica_sets import MANAGER, REPLICA_SETS
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.storage import Change, Key
from tests.kubernetes.server.writing import Options, now_text

DEPLOYMENTS = ("apps", "deployments")
HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"


@dataclass
class Rollout:
    """One Deployment with its ReplicaSets, of which one has its present template."""

    deployment: Json
    new: Json | None
    old: list[Json]
    sizes: dict[str, int] = field(default_factory=dict)
    """Name of a set -> the replicas it is to have."""

    def __post_init__(self) -> None:
        spec = self.deployment["spec"]
        self.replicas: int = spec.get("replicas", 1)
        rolling = spec["strategy"].get("rollingUpdate") or {}
        self.surge = resolved(rolling.get("maxSurge", "25%"), self.replicas, up=True)
        self.unavailable = resolved(rolling.get("maxUnavailable", "25%"), self.replicas, up=False)
        if self.surge == self.unavailable == 0:
            self.unavailable = 1

    @property
    def sets(self) -> list[Json]:
        """All its ReplicaSets."""
        return [*self.old, *([self.new] if self.new else [])]

    @property
    def is_rolling_update(self) -> bool:
        """Whether old and new pods run at once."""
        return bool(self.deployment["spec"]["strategy"]["type"] == "RollingUpdate")

    @property
    def least_available(self) -> int:
        """So many pods stay available during an update."""
        return self.replicas - self.unavailable if self.is_rolling_update else 0

    def size(self, replica_set: Json) -> int:
        """Return how many replicas a set has or is to have."""
        name = replica_set["metadata"]["name"]
        return self.sizes.get(name, int(replica_set["spec"].get("replicas", 1)))

    def resize(self, replica_set: Json, replicas: int) -> None:
        """Decide how many replicas a set is to have."""
        self.sizes[replica_set["metadata"]["name"]] = replicas

    def total(self) -> int:
        """Return how many replicas all sets are to have."""
        return sum(map(self.size, self.sets))

    def plan(self) -> None:
        """Decide on the next sizes."""
        if self.new is None:
            return
        if self.is_rolling_update:
            self._grow(self.new)
            self._shrink(self.new)
        else:
            self._recreate(self.new)

    def _grow(self, new: Json) -> None:
        size = self.size(new)
        if size < self.replicas:
            room = self.replicas + self.surge - self.total()
            size += max(0, min(room, self.replicas - size))
        self.resize(new, min(size, self.replicas))

    def _shrink(self, new: Json) -> None:
        """Take old pods: first those that are not available, then others while enough are."""
        most = self.total() - self.least_available - max(0, self.size(new) - available(new))
        for one in self.old if most > 0 else ():
            ill = min(most, max(0, self.size(one) - available(one)))
            self.resize(one, self.size(one) - ill)
            most -= ill
        spare = sum(map(available, self.sets)) - self.least_available
        for one in self.old:
            taken = max(0, min(self.size(one), spare, most))
            self.resize(one, self.size(one) - taken)
            spare, most = spare - taken, most - taken

    def _recreate(self, new: Json) -> None:
        for one in self.old:
            self.resize(one, 0)
        if not any(_status(one, "replicas") or _status(one, "terminatingReplicas") for one in self.old):
            self.resize(new, self.replicas)


def available(replica_set: Json) -> int:
    """Return how many of its pods are available."""
    return _status(replica_set, "availableReplicas")


def _status(replica_set: Json, name: str) -> int:
    found: int = replica_set.get("status", {}).get(name, 0)
    return found


def resolved(value: int | str, total: int, *, up: bool) -> int:
    """Return a count that may be a percentage of a total."""
    if isinstance(value, int):
        return value
    share = int(value.removesuffix("%")) * total / 100
    return math.ceil(share) if up else math.floor(share)


class DeploymentController:
    """Brings ReplicaSets step by step to the present template."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._deployments = cluster.resource("apps/v1", "Deployment")
        self._sets = cluster.resource("apps/v1", "ReplicaSet")

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return deployments that change, or whose sets do."""
        if change.place == DEPLOYMENTS:
            yield change.key
        elif change.place == REPLICA_SETS and (owner := controller_of(change.last)):
            yield change.key[0], owner["name"]

    def reconcile(self, key: Key) -> float | None:
        """Take the next step of a rollout, and write the status."""
        found = self._cluster.find(self._deployments, *key)
        if found is None or "deletionTimestamp" in found["metadata"]:
            return None
        rollout = self._read(found)
        if rollout.new is None and not found["spec"].get("paused"):
            self._create_set(rollout)
            rollout = self._read(found)
        if found["spec"].get("paused"):
            self._scale_paused(rollout)
        else:
            rollout.plan()
        self._resize(rollout)
        self._forget_old(rollout)
        return self._write_status(self._read(found))

    def _read(self, deployment: Json) -> Rollout:
        listed = self._cluster.objects(self._sets, deployment["metadata"]["namespace"])
        owned = [one for one in listed if is_controlled_by(one, deployment)]
        template = deployment["spec"]["template"]
        new = next((one for one in owned if _without_hash(one["spec"]["template"]) == _without_hash(template)), None)
        old = sorted((one for one in owned if one is not new), key=_revision)
        return Rollout(deployment, new, old)

    def _create_set(self, rollout: Rollout) -> None:
        deployment = rollout.deployment
        spec, metadata = deployment["spec"], deployment["metadata"]
        mark = {HASH: template_hash(spec["template"])}
        revision = max(map(_revision, rollout.old), default=0) + 1
        selector = {**spec["selector"], "matchLabels": {**(spec["selector"].get("matchLabels") or {}), **mark}}
        template = _with_labels(spec["template"], mark)
        obj = {
            "metadata": {
                "name": f"{metadata['name']}-{mark[HASH]}",
                "labels": template["metadata"]["labels"],
                "annotations": {REVISION: str(revision)},
                "ownerReferences": controlled_by(deployment),
            },
            "spec": {
                "replicas": 0,
                "selector": selector,
                "template": template,
                "minReadySeconds": spec.get("minReadySeconds", 0),
            },
        }
        self._cluster.create(self._sets, metadata["namespace"], obj, Options(manager=MANAGER))

    def _scale_paused(self, rollout: Rollout) -> None:
        """Follow a change of the number of replicas without a rollout."""
        running = [one for one in rollout.sets if rollout.size(one)]
        if len(running) == 1:
            rollout.resize(running[0], rollout.replicas)

    def _resize(self, rollout: Rollout) -> None:
        newest = max(map(_revision, rollout.old), default=0)
        for one in rollout.sets:
            annotations = dict(one["metadata"].get("annotations") or {})
            if one is rollout.new and _revision(one) <= newest:
                annotations[REVISION] = str(newest + 1)
            changed = {
                **one,
                "metadata": one["metadata"] | {"annotations": annotations},
                "spec": one["spec"] | {"replicas": rollout.size(one)},
            }
            self._cluster.change(self._sets, changed, MANAGER)

    def _forget_old(self, rollout: Rollout) -> None:
        """Delete old sets without pods, beyond the length of the history."""
        idle = [one for one in rollout.old if not rollout.size(one) and not _status(one, "replicas")]
        excess = len(idle) - rollout.deployment["spec"].get("revisionHistoryLimit", 10)
        for one in idle[: max(0, excess)]:
            self._cluster.delete(self._sets, one["metadata"]["namespace"], one["metadata"]["name"], {})

    def _write_status(self, rollout: Rollout) -> float | None:
        deployment, sets = rollout.deployment, rollout.sets
        ready = sum(_status(one, "readyReplicas") for one in sets)
        able = sum(map(available, sets))
        total = sum(_status(one, "replicas") for one in sets)
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": total,
            "updatedReplicas": _status(rollout.new, "replicas") if rollout.new else 0,
            "readyReplicas": ready,
            "availableReplicas": able,
            "unavailableReplicas": max(0, rollout.total() - able),
            "terminatingReplicas": sum(_status(one, "terminatingReplicas") for one in sets),
        }
        conditions, seconds = self._conditions(rollout, status)
        new = {**deployment, "status": status | {"conditions": conditions}}
        new = self._with_revision(new, rollout)
        self._cluster.change(self._deployments, new, MANAGER, subresource="status")
        return seconds

    def _with_revision(self, deployment: Json, rollout: Rollout) -> Json:
        """Write the revision of the present template."""
        annotations = deployment["metadata"].get("annotations") or {}
        revision = str(_revision(rollout.new)) if rollout.new else None
        if revision is None or annotations.get(REVISION) == revision:
            return deployment
        metadata = deployment["metadata"] | {"annotations": annotations | {REVISION: revision}}
        changed = self._cluster.change(self._deployments, {**deployment, "metadata": metadata}, MANAGER)
        return {**changed, "status": deployment["status"]}

    def _conditions(self, rollout: Rollout, status: Json) -> tuple[list[Json], float | None]:
        deployment = rollout.deployment
        before = deployment.get("status") or {}
        known = [each for each in before.get("conditions") or () if each["type"] != "ReplicaFailure"]
        progress, seconds = _progress(rollout, status, before)
        enough = status["availableReplicas"] >= rollout.least_available
        reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
        message = f"{status['availableReplicas']} of at least {rollout.least_available} replicas are available"
        new = [{"type": "Available", "status": str(enough), "reason": reason, "message": message}, progress]
        failed = [_failure(one) for one in rollout.sets]
        now = now_text()
        for each in [*new, *(one for one in failed if one)]:
            known = with_condition(known, each, now)
        return known, seconds


def _failure(replica_set: Json) -> Json | None:
    found = (replica_set.get("status") or {}).get("conditions") or ()
    failed = next((each for each in found if each["type"] == "ReplicaFailure"), None)
    return failed and {name: each for name, each in failed.items() if name != "lastTransitionTime"}


def _progress(rollout: Rollout, status: Json, before: Json) -> tuple[Json, float | None]:
    """Return the condition Progressing, and after how many seconds the deadline passes."""
    old = next((each for each in before.get("conditions") or () if each["type"] == "Progressing"), None)
    name = rollout.new["metadata"]["name"] if rollout.new else ""
    counts = ("updatedReplicas", "availableReplicas")
    complete = (
        status["updatedReplicas"] == status["replicas"] == rollout.replicas
        and status["availableReplicas"] >= rollout.replicas
    )
    moved = any(status[count] != before.get(count, 0) for count in counts) or status["replicas"] < before.get(
        "replicas", 0
    )
    if complete:
        return _progressing("True", "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed'), None
    changed = status["observedGeneration"] != before.get("observedGeneration")
    if old is None or moved or changed:
        found = _progressing("True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing')
        return found | {"lastUpdateTime": now_text()}, _deadline(rollout)
    if old["reason"] == "ProgressDeadlineExceeded":
        return _kept(old), None
    left = _deadline(rollout) - (datetime.now(UTC) - read_time(old.get("lastUpdateTime"))).total_seconds()
    if old["reason"] == "NewReplicaSetAvailable" or left > 0:
        return _kept(old), left if old["reason"] != "NewReplicaSetAvailable" else None
    return _progressing("False", "ProgressDeadlineExceeded", f'ReplicaSet "{name}" has timed out progressing'), None


def _progressing(status: str, reason: str, message: str) -> Json:
    return {"type": "Progressing", "status": status, "reason": reason, "message": message}


def _kept(condition: Json) -> Json:
    return {name: each for name, each in condition.items() if name != "lastTransitionTime"}


def _deadline(rollout: Rollout) -> float:
    return float(rollout.deployment["spec"].get("progressDeadlineSeconds", 600))


def _revision(replica_set: Json) -> int:
    return int((replica_set["metadata"].get("annotations") or {}).get(REVISION, "0"))


def template_hash(template: Json) -> str:
    """Return a short name of a template."""
    text = orjson.dumps(template, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:10]


def _without_hash(template: Json) -> Json:
    metadata = template.get("metadata") or {}
    labels = {name: each for name, each in (metadata.get("labels") or {}).items() if name != HASH}
    return {**template, "metadata": {**metadata, "labels": labels}}


def _with_labels(template: Json, labels: Json) -> Json:
    metadata = template.get("metadata") or {}
    return {**template, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), **labels}}}
