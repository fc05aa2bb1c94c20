"""The scheduler: binds pods to nodes that are ready, match, are tolerated and have room."""

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal

from lightkube.utils.quantity import parse_quantity

from tests.kubernetes.controllers.pods import PODS, phase, with_condition
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.selectors import labels_of, selects
from tests.kubernetes.server.storage import Change, Key
from tests.kubernetes.server.subresources import SCHEDULER, bind
from tests.kubernetes.server.writing import now_text

NODES = ("", "nodes")
HINDERING = frozenset({"NoSchedule", "NoExecute"})
HOSTNAME = "kubernetes.io/hostname"


class Scheduler:
    """Looks at pods without a node, each time a pod or a node changes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pods, self._nodes = cluster.resource("v1", "Pod"), cluster.resource("v1", "Node")

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return pods that wait for a node."""
        if change.place == PODS and change.new is not None:
            yield change.key
        elif change.place == NODES or (change.place == PODS and change.new is None):
            yield from (_key(pod) for pod in self._cluster.objects(self._pods) if _waits(pod))

    def reconcile(self, key: Key) -> None:
        """Bind a pod, or say in its conditions why no node takes it."""
        pod = self._cluster.find(self._pods, *key)
        if pod is None or not _waits(pod):
            return
        nodes = self._cluster.objects(self._nodes)
        reasons = {node["metadata"]["name"]: self._obstacle(pod, node) for node in nodes}
        fit = [node for node in nodes if reasons[node["metadata"]["name"]] is None]
        if fit:
            chosen = min(fit, key=lambda node: self._crowd(pod, node))
            bind(self._cluster, *key, {"target": {"name": chosen["metadata"]["name"]}})
        else:
            self._refuse(pod, Counter(reason for reason in reasons.values() if reason), len(nodes))

    def _on(self, node: Json) -> list[Json]:
        name = node["metadata"]["name"]
        found = self._cluster.objects(self._pods)
        return [
            pod for pod in found if pod["spec"].get("nodeName") == name and phase(pod) not in ("Succeeded", "Failed")
        ]

    def _obstacle(self, pod: Json, node: Json) -> str | None:
        """Return why a node does not take the pod."""
        spec = pod["spec"]
        if not _is_ready(node):
            return "node(s) were not ready"
        if node["spec"].get("unschedulable"):
            return "node(s) were unschedulable"
        taint = next((each for each in node["spec"].get("taints") or () if not _tolerates(spec, each)), None)
        if taint:
            return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
        if not _matches(spec, labels_of(node)):
            return "node(s) didn't match Pod's node affinity/selector"
        if self._is_averse(pod, node):
            return "node(s) didn't match pod anti-affinity rules"
        return self._missing(pod, node)

    def _is_averse(self, pod: Json, node: Json) -> bool:
        affinity = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
        for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ():
            near = [one for one in self._neighbours(node, term["topologyKey"]) if _is_near(one, pod)]
            if any(selects(term.get("labelSelector"), labels_of(one)) for one in near):
                return True
        return False

    def _neighbours(self, node: Json, topology: str) -> list[Json]:
        """Return the pods in the same place of a topology."""
        place = labels_of(node).get(topology)
        nodes = self._cluster.objects(self._nodes)
        same = [one for one in nodes if one is node or (place and labels_of(one).get(topology) == place)]
        return [pod for one in same for pod in self._on(one)]

    def _missing(self, pod: Json, node: Json) -> str | None:
        used: Counter[str] = Counter()
        for other in self._on(node):
            used.update(requests_of(other))
        room = _quantities(node.get("status", {}).get("allocatable") or {})
        wanted = requests_of(pod)
        short = (name for name, amount in wanted.items() if used[name] + amount > room.get(name, Decimal()))
        found = next(short, None)
        return f"Insufficient {found}" if found else None

    def _crowd(self, pod: Json, node: Json) -> tuple[int, int, str]:
        """Return a key: fewest pods of the same labels, then fewest pods."""
        pods = self._on(node)
        same = sum(labels_of(one) == labels_of(pod) for one in pods)
        return same, len(pods), node["metadata"]["name"]

    def _refuse(self, pod: Json, reasons: Mapping[str, int], nodes: int) -> None:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        message = f"0/{nodes} nodes are available: {listed or 'no nodes'}."
        new = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        conditions = with_condition(list(pod["status"].get("conditions") or ()), new, now_text())
        status = pod["status"] | {"conditions": conditions}
        self._cluster.change(self._pods, {**pod, "status": status}, SCHEDULER, subresource="status")


def requests_of(pod: Json) -> Counter[str]:
    """Return what a pod needs at any time: its containers and sidecars together, or an initial container before."""
    total: Counter[str] = Counter({"pods": Decimal(1)})
    highest: Counter[str] = Counter()
    for container in pod["spec"].get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            total.update(_requested(container))
        else:
            highest |= total + _requested(container)
    for container in pod["spec"]["containers"]:
        total.update(_requested(container))
    return total | highest


def _requested(container: Json) -> Counter[str]:
    resources = container.get("resources") or {}
    return Counter(_quantities({**(resources.get("limits") or {}), **(resources.get("requests") or {})}))


def _quantities(given: Mapping[str, str]) -> dict[str, Decimal]:
    return {name: parse_quantity(str(each)) or Decimal() for name, each in given.items()}


def _waits(pod: Json) -> bool:
    return not (
        pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"] or pod["spec"].get("schedulingGates")
    )


def _key(pod: Json) -> Key:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _is_near(one: Json, pod: Json) -> bool:
    return bool(one["metadata"]["namespace"] == pod["metadata"]["namespace"])


def _is_ready(node: Json) -> bool:
    conditions = node.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _tolerates(spec: Json, taint: Json) -> bool:
    return taint["effect"] not in HINDERING or any(is_met(each, taint) for each in spec.get("tolerations") or ())


def is_met(toleration: Json, taint: Json) -> bool:
    """Return whether a toleration is for a taint."""
    if toleration.get("effect") not in {None, "", taint["effect"]}:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in {None, "", taint["key"]}
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def _matches(spec: Json, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = required["nodeSelectorTerms"] if required else None
    return terms is None or any(selects({"matchExpressions": term.get("matchExpressions")}, labels) for term in terms)
