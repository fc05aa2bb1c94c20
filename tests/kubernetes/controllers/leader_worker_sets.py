"""The controller of LeaderWorkerSets: groups of a leader and its workers, which come and go together."""

from collections.abc import Iterable

from tests.kubernetes.controllers.deployments import resolved, template_hash
from tests.kubernetes.controllers.pods import (
    PODS,
    controlled_by,
    is_active,
    is_ready,
    is_terminating,
    phase,
    with_condition,
)
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.selectors import labels_of
from tests.kubernetes.server.storage import Change, Key
from tests.kubernetes.server.writing import Options, now_text

MANAGER = "leaderworkerset-controller"
SETS = ("leaderworkerset.x-k8s.io", "leaderworkersets")
PREFIX = "leaderworkerset.sigs.k8s.io/"
NAME, GROUP, WORKER = f"{PREFIX}name", f"{PREFIX}group-index", f"{PREFIX}worker-index"
REVISION = f"{PREFIX}template-revision-hash"
RECREATE = "RecreateGroupOnPodRestart"


class LeaderWorkerSetController:
    """Keeps as many groups as a set wants, and replaces those of an old template."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pods = cluster.resource("v1", "Pod")
        self._sets = cluster.resource("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return sets that change, or whose pods do."""
        if change.place == SETS:
            yield change.key
        elif change.place == PODS and (name := labels_of(change.last).get(NAME)):
            yield change.key[0], name

    def reconcile(self, key: Key) -> None:
        """Take the next steps of each group, and write the status."""
        owner = self._cluster.find(self._sets, *key)
        if owner is None or "deletionTimestamp" in owner["metadata"]:
            return
        groups = self._groups(owner)
        self._end_spare(owner, groups)
        for number in range(owner["spec"]["replicas"]):
            self._complete(owner, number, groups.get(number, {}))
        self._replace_old(owner, groups)
        self._write_status(owner)

    def _groups(self, owner: Json) -> dict[int, dict[int, Json]]:
        """Return the pods by the numbers of their group and in it; 0 is the leader."""
        found: dict[int, dict[int, Json]] = {}
        for pod in self._cluster.objects(self._pods, owner["metadata"]["namespace"]):
            labels = labels_of(pod)
            if labels.get(NAME) == owner["metadata"]["name"]:
                found.setdefault(int(labels[GROUP]), {})[int(labels[WORKER])] = pod
        return found

    def _end_spare(self, owner: Json, groups: dict[int, dict[int, Json]]) -> None:
        for number, group in groups.items():
            if number >= owner["spec"]["replicas"]:
                self._end(group)

    def _end(self, group: dict[int, Json]) -> None:
        """Delete all pods of a group."""
        for pod in group.values():
            if not is_terminating(pod):
                self._cluster.delete(self._pods, pod["metadata"]["namespace"], pod["metadata"]["name"], {})

    def _complete(self, owner: Json, number: int, group: dict[int, Json]) -> None:
        """Create what a group lacks: the leader, and its workers once it has an address."""
        template = owner["spec"]["leaderWorkerTemplate"]
        if template.get("restartPolicy") == RECREATE and any(map(_was_interrupted, group.values())):
            self._end(group)
        elif not group:
            self._create(owner, number, 0, None)
        elif 0 in group and is_active(group[0]) and self._may_follow(owner, group[0]):
            for worker in range(1, template["size"]):
                if worker not in group:
                    self._create(owner, number, worker, group[0])

    def _may_follow(self, owner: Json, leader: Json) -> bool:
        if owner["spec"].get("startupPolicy") == "LeaderReady" and not is_ready(leader):
            return False
        return bool(leader.get("status", {}).get("podIP"))

    def _create(self, owner: Json, number: int, worker: int, leader: Json | None) -> None:
        template = owner["spec"]["leaderWorkerTemplate"]
        chosen = template["workerTemplate"] if leader else template.get("leaderTemplate") or template["workerTemplate"]
        metadata, spec = chosen.get("metadata") or {}, chosen["spec"]
        name = f"{owner['metadata']['name']}-{number}" + (f"-{worker}" if leader else "")
        labels = {NAME: owner["metadata"]["name"], GROUP: str(number), WORKER: str(worker)}
        labels[REVISION] = labels_of(leader)[REVISION] if leader else revision_of(owner)
        env = _variables(leader, template["size"], worker)
        containers = [{**each, "env": [*env, *(each.get("env") or ())]} for each in spec["containers"]]
        pod = {
            "metadata": {
                "name": name,
                "labels": {**(metadata.get("labels") or {}), **labels},
                "annotations": {**(metadata.get("annotations") or {}), f"{PREFIX}size": str(template["size"])},
                "ownerReferences": controlled_by(leader or owner),
            },
            "spec": {**spec, "containers": containers},
        }
        self._cluster.create(self._pods, owner["metadata"]["namespace"], pod, Options(manager=MANAGER))

    def _replace_old(self, owner: Json, groups: dict[int, dict[int, Json]]) -> None:
        """End groups of an old template, the last ones first, as many as may be unavailable."""
        spec = owner["spec"]
        rolling = (spec.get("rolloutStrategy") or {}).get("rollingUpdateConfiguration") or {}
        wanted = {number: groups.get(number, {}) for number in range(spec["replicas"])}
        old = [number for number, group in wanted.items() if group and not _is_updated(group, owner)]
        size = spec["leaderWorkerTemplate"]["size"]
        missing = sum(not _is_group_ready(group, size) for group in wanted.values())
        free = max(1, resolved(rolling.get("maxUnavailable", 1), spec["replicas"], up=False)) - missing
        for number in sorted(old, reverse=True):
            if number >= rolling.get("partition", 0) and (free > 0 or not _is_group_ready(wanted[number], size)):
                free -= _is_group_ready(wanted[number], size)
                self._end(wanted[number])

    def _write_status(self, owner: Json) -> None:
        spec, groups = owner["spec"], self._groups(owner)
        size = spec["leaderWorkerTemplate"]["size"]
        ready = sum(_is_group_ready(group, size) for group in groups.values())
        updated = sum(_is_updated(group, owner) for group in groups.values())
        is_whole = ready == updated == len(groups) == spec["replicas"]
        conditions = list((owner.get("status") or {}).get("conditions") or ())
        for kind, value in (("Available", is_whole), ("Progressing", not is_whole)):
            reason = "AllGroupsReady" if is_whole else "GroupsProgressing"
            message = f"{ready} of {spec['replicas']} groups are ready"
            new = {"type": kind, "status": str(value), "reason": reason, "message": message}
            conditions = with_condition(conditions, new, now_text())
        status = {
            "replicas": len(groups),
            "readyReplicas": ready,
            "updatedReplicas": updated,
            "hpaPodSelector": f"{NAME}={owner['metadata']['name']},{WORKER}=0",
            "conditions": conditions,
        }
        self._cluster.change(self._sets, {**owner, "status": status}, MANAGER, subresource="status")


def revision_of(owner: Json) -> str:
    """Return a short name of the templates of a set."""
    return template_hash(owner["spec"]["leaderWorkerTemplate"])


def _variables(leader: Json | None, size: int, worker: int) -> list[Json]:
    """Return what the pods of a group know of it; there are no names in the double, so the leader has an address."""
    own = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    address = {"value": leader["status"]["podIP"]} if leader else own
    return [
        {"name": "LWS_LEADER_ADDRESS", **address},
        {"name": "LWS_GROUP_SIZE", "value": str(size)},
        {"name": "LWS_WORKER_INDEX", "value": str(worker)},
    ]


def _was_interrupted(pod: Json) -> bool:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return is_terminating(pod) or phase(pod) == "Failed" or any(each.get("restartCount", 0) for each in statuses)


def _is_group_ready(group: dict[int, Json], size: int) -> bool:
    return len(group) == size and all(is_ready(pod) and not is_terminating(pod) for pod in group.values())


def _is_updated(group: dict[int, Json], owner: Json) -> bool:
    return all(labels_of(pod).get(REVISION) == revision_of(owner) for pod in group.values())
