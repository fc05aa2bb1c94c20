"""Defaults that the API server writes into Kubernetes' own kinds, for those fields that controllers and nodes read."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.kubernetes.server.schema.schema import Json

CONTAINER = {"imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log"} | {
    "terminationMessagePolicy": "File",
    "resources": {},
}
POD_SPEC = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "securityContext": {},
}
PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
DEPLOYMENT = {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}
ROLLING_UPDATE = {"maxSurge": "25%", "maxUnavailable": "25%"}
SERVICE = {"type": "ClusterIP", "sessionAffinity": "None"}


def with_defaults(kind: str, obj: Json) -> Json:
    """Return the object with the defaults of its kind."""
    fill = BY_KIND.get(kind)
    return fill(obj) if fill else obj


def _with(obj: Json, field: str, defaults: Mapping[str, Any]) -> Json:
    return obj if not isinstance(obj.get(field), dict) else {**obj, field: {**defaults, **obj[field]}}


def _pod(obj: Json) -> Json:
    return {**obj, "spec": _pod_spec(obj["spec"]), "status": {"phase": "Pending"} | obj.get("status", {})}


def _pod_spec(spec: Json) -> Json:
    lists = ("containers", "initContainers")
    containers = {name: [_container(each) for each in spec[name]] for name in lists if isinstance(spec.get(name), list)}
    return {**POD_SPEC, **spec, **containers}


def _container(container: Json) -> Json:
    ports = [{"protocol": "TCP", **each} for each in container.get("ports") or ()]
    probes = {name: _probe(container[name]) for name in PROBES if container.get(name)}
    return {**CONTAINER, **container, **({"ports": ports} if ports else {}), **probes}


def _probe(probe: Json) -> Json:
    return _with({**PROBE, **probe}, "httpGet", {"path": "/", "scheme": "HTTP"})


def _workload(obj: Json, defaults: Mapping[str, Any]) -> Json:
    spec = {**defaults, **obj["spec"]}
    template = spec.get("template")
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        spec["template"] = {**template, "spec": _pod_spec(template["spec"])}
    return {**obj, "spec": spec}


def _deployment(obj: Json) -> Json:
    obj = _workload(obj, DEPLOYMENT)
    strategy = {"type": "RollingUpdate", **(obj["spec"].get("strategy") or {})}
    if strategy["type"] == "RollingUpdate":
        strategy["rollingUpdate"] = {**ROLLING_UPDATE, **(strategy.get("rollingUpdate") or {})}
    return {**obj, "spec": {**obj["spec"], "strategy": strategy}}


def _service(obj: Json) -> Json:
    ports = [{"protocol": "TCP", "targetPort": each.get("port"), **each} for each in obj["spec"].get("ports") or ()]
    return {**obj, "spec": {**SERVICE, **obj["spec"], **({"ports": ports} if ports else {})}}


def _namespace(obj: Json) -> Json:
    spec = {"finalizers": ["kubernetes"]} | (obj.get("spec") or {})
    return {**obj, "spec": spec, "status": {"phase": "Active"} | (obj.get("status") or {})}


def _secret(obj: Json) -> Json:
    return {"type": "Opaque", **obj}


BY_KIND: Mapping[str, Callable[[Json], Json]] = {
    "Deployment": _deployment,
    "Namespace": _namespace,
    "Pod": _pod,
    "ReplicaSet": lambda obj: _workload(obj, {"replicas": 1}),
    "StatefulSet": lambda obj: _workload(obj, {"replicas": 1}),
    "Secret": _secret,
    "Service": _service,
}
