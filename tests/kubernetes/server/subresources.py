"""Subresources that are no part of their object's document: scale, binding and eviction."""

from collections.abc import Mapping
from typing import Any

from tests.kubernetes.server import errors
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.fields.patches import merge_patched
from tests.kubernetes.server.schema.resources import SCALE, Resource
from tests.kubernetes.server.selectors import labels_of, selects
from tests.kubernetes.server.writing import Options, now_text

SCHEDULER = "kube-scheduler"


def read_scale(resource: Resource, obj: Json) -> Json:
    """Return the document of `scale`, which does not name a desired number of zero."""
    paths = resource.scale or SCALE
    kept = {"name", "namespace", "uid", "resourceVersion", "creationTimestamp"}
    selector = _at(obj, paths["selector"]) if resource.is_custom else _selector_text(obj["spec"].get("selector"))
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: each for name, each in obj["metadata"].items() if name in kept},
        "spec": {"replicas": replicas} if (replicas := _at(obj, paths["spec"])) else {},
        "status": {"replicas": _at(obj, paths["status"]) or 0} | ({"selector": selector} if selector else {}),
    }


def write_scale(cluster: Cluster, resource: Resource, namespace: str, name: str, change: Any, options: Options) -> Json:
    """Set the number of replicas by a document of `scale` or a merge patch of one."""
    obj = cluster.get(resource, namespace, name)
    scale = merge_patched(read_scale(resource, obj), change)
    replicas = scale["spec"].get("replicas", 0)
    if not isinstance(replicas, int) or replicas < 0:
        raise errors.invalid("Scale", name, [("spec.replicas", f"{replicas!r} is no count")], group="autoscaling")
    version = change.get("metadata", {}).get("resourceVersion") or obj["metadata"]["resourceVersion"]
    new = _with(obj, (resource.scale or SCALE)["spec"], replicas)
    new["metadata"] = obj["metadata"] | {"resourceVersion": version}
    return read_scale(resource, cluster.update(resource, namespace, name, new, options, subresource="scale"))


def _at(obj: Any, path: str) -> Any:
    for name in path.strip(".").split("."):
        obj = obj.get(name) if isinstance(obj, dict) else None
    return obj


def _with(obj: Json, path: str, value: Any) -> Json:
    first, _, rest = path.strip(".").partition(".")
    return {**obj, first: _with(obj.get(first) or {}, rest, value) if rest else value}


def _selector_text(selector: Mapping[str, Any] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(((selector or {}).get("matchLabels") or {}).items()))


def bind(cluster: Cluster, namespace: str, name: str, binding: Json) -> Json:
    """Bind a pod to a node, once."""
    pods = cluster.resource("v1", "Pod")
    pod = cluster.get(pods, namespace, name)
    if pod["spec"].get("nodeName"):
        raise errors.conflict("pods", name, f"the pod is already assigned to node {pod['spec']['nodeName']}")
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now_text()}
    conditions = [each for each in pod["status"].get("conditions", ()) if each["type"] != "PodScheduled"]
    bound = {
        **pod,
        "spec": pod["spec"] | {"nodeName": binding["target"]["name"]},
        "status": pod["status"] | {"conditions": [*conditions, scheduled]},
    }
    bound["metadata"] = pod["metadata"] | {"generation": pod["metadata"].get("generation", 1) + 1}
    cluster.storage.put(("", "pods"), bound)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def evict(cluster: Cluster, namespace: str, name: str, eviction: Json, *, dry_run: bool) -> Json:
    """Delete a pod if its disruption budgets allow it. ApiFailure 429 if not."""
    pods = cluster.resource("v1", "Pod")
    pod = cluster.get(pods, namespace, name)
    budgets = _budgets_of(cluster, pod) if _counts(pod) else []
    if len(budgets) > 1:
        message = "more than one PodDisruptionBudget matches the pod, which an eviction does not support"
        raise errors.ApiFailure(500, "InternalError", message)
    for budget in budgets:
        _spend(cluster, budget, name, dry_run=dry_run)
    asked = eviction.get("deleteOptions") or {}
    cluster.delete(pods, namespace, name, asked, dry_run=dry_run)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _counts(pod: Json) -> bool:
    """Return whether the end of the pod is a disruption."""
    ended = pod.get("status", {}).get("phase") in {"Succeeded", "Failed", "Pending"}
    return not ended and "deletionTimestamp" not in pod["metadata"]


def _budgets_of(cluster: Cluster, pod: Json) -> list[Json]:
    found = cluster.objects(cluster.resource("policy/v1", "PodDisruptionBudget"), pod["metadata"]["namespace"])
    return [each for each in found if selects(each["spec"].get("selector"), labels_of(pod))]


def _spend(cluster: Cluster, budget: Json, pod: str, *, dry_run: bool) -> None:
    """Take one disruption from a budget."""
    status = budget.get("status") or {}
    name = budget["metadata"]["name"]
    if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 1):
        raise _refused(f"the budget {name} was not observed yet")
    if status.get("disruptionsAllowed", 0) <= 0:
        healthy, needed = status.get("currentHealthy", 0), status.get("desiredHealthy", 0)
        raise _refused(f"the budget {name} needs {needed} healthy pods and has {healthy} currently")
    if not dry_run:
        left = {
            "disruptionsAllowed": status["disruptionsAllowed"] - 1,
            "disruptedPods": status.get("disruptedPods", {}) | {pod: now_text()},
        }
        changed = {**budget, "status": status | left}
        cluster.change(
            cluster.resource("policy/v1", "PodDisruptionBudget"), changed, "kube-apiserver", subresource="status"
        )


def _refused(why: str) -> errors.ApiFailure:
    message = f"Cannot evict pod as it would violate the pod's disruption budget: {why}"
    return errors.too_many_requests(message, causes=[{"reason": "DisruptionBudget", "message": why}])
