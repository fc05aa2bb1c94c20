"""Defaults that the API server writes into Kubernetes' own kinds, for those fields that controllers and nodes read."""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any

from tests.kubernetes.server.errors import bad_request
from tests.kubernetes.server.schema.schema import Json

CONTAINER = {
    "terminationMessagePath": "/dev/termination-log",
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
CONTAINERS = ("containers", "initContainers")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
DEPLOYMENT = {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600}
ROLLING_UPDATE = {"maxSurge": "25%", "maxUnavailable": "25%"}
HOOKS = ("postStart", "preStop")
HTTP = {"path": "/", "scheme": "HTTP"}
FILE_MODE = 0o644
FILES = ("configMap", "downwardAPI", "projected", "secret")
"""Volumes whose files have a mode."""
ACCOUNT_TOKEN_SECONDS = 3600
SERVICE = {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}
BUDGET_STATUS = {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def with_defaults(kind: str, obj: Json) -> Json:
    """Return the object with the defaults of its kind."""
    fill = BY_KIND.get(kind)
    return fill(obj) if fill else obj


def _with(obj: Json, field: str, defaults: Mapping[str, Any], fill: Callable[[Json], Json] = lambda each: each) -> Json:
    """Return the object with defaults of a field that it has."""
    return obj if not isinstance(obj.get(field), dict) else {**obj, field: fill({**defaults, **obj[field]})}


def _pod(obj: Json) -> Json:
    spec: Json = {"enableServiceLinks": True, **_pod_spec(obj["spec"])}
    lists = {name: [_requesting(each) for each in spec[name]] for name in CONTAINERS if spec.get(name)}
    return {**obj, "spec": spec | lists, "status": {"phase": "Pending"} | obj.get("status", {})}


def _requesting(container: Json) -> Json:
    """Return a container of a pod, which requests as much as it may take unless it says otherwise."""
    limits = container["resources"].get("limits")
    requests = {**(limits or {}), **(container["resources"].get("requests") or {})}
    return {**container, "resources": container["resources"] | {"requests": requests}} if limits else container


def _pod_spec(spec: Json) -> Json:
    found: Json = {name: [_container(each) for each in spec[name]] for name in CONTAINERS if spec.get(name)}
    found |= {"volumes": [_volume(each) for each in spec["volumes"]]} if spec.get("volumes") else {}
    found |= {"serviceAccount": account} if (account := spec.get("serviceAccountName")) else {}
    return {**POD_SPEC, **spec, **found}


def _container(container: Json) -> Json:
    ports = [{"protocol": "TCP", **each} for each in container.get("ports") or ()]
    env = [_with(each, "valueFrom", {}, _referring) for each in container.get("env") or ()]
    probes = {name: _probe(container[name]) for name in PROBES if container.get(name)}
    lists = {name: each for name, each in (("ports", ports), ("env", env)) if each}
    policy = {"imagePullPolicy": _pull_policy(container.get("image") or "")}
    return _with({**CONTAINER, **policy, **container, **lists, **probes}, "lifecycle", {}, _lifecycle)


def _pull_policy(image: str) -> str:
    """Return when an image is pulled: each time if its name says nothing, or `latest`."""
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return "Always" if not digest and tag in {"", "latest"} else "IfNotPresent"


def _referring(source: Json) -> Json:
    return _with(source, "fieldRef", {"apiVersion": "v1"})


def _probe(probe: Json) -> Json:
    return _with({**PROBE, **probe}, "httpGet", HTTP)


def _lifecycle(lifecycle: Json) -> Json:
    return lifecycle | {name: _with(lifecycle[name], "httpGet", HTTP) for name in HOOKS if lifecycle.get(name)}


def _volume(volume: Json) -> Json:
    for kind in FILES:
        volume = _with(volume, kind, {"defaultMode": FILE_MODE}, _source)
    return volume


def _source(source: Json) -> Json:
    """Return where files come from, itself and each of those that it projects."""
    items = [_referring(each) for each in source.get("items") or ()]
    parts = [_projection(each) for each in source.get("sources") or ()]
    return source | ({"items": items} if items else {}) | ({"sources": parts} if parts else {})


def _projection(part: Json) -> Json:
    part = _with(part, "serviceAccountToken", {"expirationSeconds": ACCOUNT_TOKEN_SECONDS})
    return _with(part, "downwardAPI", {}, _source)


def _workload(obj: Json, defaults: Mapping[str, Any]) -> Json:
    spec = {"template": {}, **defaults, **obj["spec"]}
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
    status = {"loadBalancer": {}} | (obj.get("status") or {})
    return {**obj, "spec": {**SERVICE, **obj["spec"], **({"ports": ports} if ports else {})}, "status": status}


def _namespace(obj: Json) -> Json:
    spec = {"finalizers": ["kubernetes"]} | (obj.get("spec") or {})
    labels = (obj["metadata"].get("labels") or {}) | {NAMESPACE_LABEL: obj["metadata"].get("name", "")}
    metadata = obj["metadata"] | {"labels": labels}
    return {**obj, "metadata": metadata, "spec": spec, "status": {"phase": "Active"} | (obj.get("status") or {})}


def _secret(obj: Json) -> Json:
    """Return the secret with its texts among its data. ApiFailure 400 if its data is not encoded."""
    texts = {name: b64encode(each.encode()).decode() for name, each in (obj.get("stringData") or {}).items()}
    data = (obj.get("data") or {}) | texts
    for name, each in data.items():
        _check_encoded(name, each)
    kept = {name: each for name, each in obj.items() if name != "stringData"}
    return {"type": "Opaque", **kept, **({"data": data} if data else {})}


def _budget(obj: Json) -> Json:
    return {**obj, "status": BUDGET_STATUS | (obj.get("status") or {})}


def _check_encoded(name: str, text: str) -> None:
    try:
        b64decode(text, validate=True)
    except binascii.Error as error:
        raise bad_request(f"data.{name} is no base64: {error}") from error


BY_KIND: Mapping[str, Callable[[Json], Json]] = {
    "Deployment": _deployment,
    "Namespace": _namespace,
    "Pod": _pod,
    "PodDisruptionBudget": _budget,
    "ReplicaSet": lambda obj: _workload(obj, {"replicas": 1}),
    "StatefulSet": lambda obj: _workload(obj, {"replicas": 1}),
    "Secret": _secret,
    "Service": _service,
}
