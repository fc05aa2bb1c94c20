"""Pods as documents: what an operator gives, merged with what a host needs. Pure functions but for reading files."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeGuard

import yaml

from ipnext.errors import InvalidInput
from ipnext.infra.host.runtime import HostIdentity
from ipnext.infra.kubernetes.settings import KubernetesSettings
from ipnext.infra.region_commands import HostPaths
from ipnext.infra.settings import AgentSettings
from ipnext.model.deployment.deployment import DeploymentKey

Json = dict[str, Any]

REGION_LABEL: Final = "ipnext.io/region"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
NOTE_ANNOTATION: Final = "ipnext.io/note"
REPLICA_ANNOTATION: Final = "ipnext.io/replica"
SERVING_CONDITION: Final = "ipnext.io/serving"
"""Condition of a host's pod, and its readiness gate: whether the agent sends it requests."""
HOST_CONTAINER: Final = "host"
PROXY_CONTAINER: Final = "proxy"
HOST_URL: Final = "unix:///run/ipnext/host"
"""Sockets of a host in its pod."""

_RUN: Final = "/run/ipnext"
_CACHE: Final = "/var/cache/ipnext"
_CERTIFICATE: Final = "/etc/ipnext/certificate"
_STORE: Final = "/etc/ipnext/store"
_PROXY_STATE: Final = "/var/lib/ipnext-proxy"
_MANAGED: Final = {"app.kubernetes.io/name": "ipnext", "app.kubernetes.io/managed-by": "ipnext-agent"}
_NAME_LETTERS: Final = 40
_PROBE: Final = {"periodSeconds": 1, "failureThreshold": 120}


@dataclass(frozen=True, kw_only=True)
class PodTemplates:
    """What an operator adds to the pods of hosts."""

    common: Json = field(default_factory=dict)
    by_hardware: Mapping[str, Json] = field(default_factory=dict)

    def of(self, hardware: str) -> Json:
        """Return the beginning of a pod for this hardware kind. KeyError if there is none."""
        return merge(self.common, self.by_hardware[hardware])


@dataclass(frozen=True, kw_only=True)
class HostPod:
    """A pod to be created for a host."""

    name: str
    identity: HostIdentity
    annotations: Mapping[str, str]
    """The note."""
    command: Sequence[str]
    environment: Mapping[str, str]
    memory_bytes: int | None
    cpu: int
    grace_seconds: float
    trust_domain: str


def read_templates(settings: KubernetesSettings) -> PodTemplates:
    """Read the operator's files. InvalidInput."""
    file = settings.hardware_file
    kinds = _read_mapping("hardware_file", file)
    for kind, part in kinds.items():
        if part is not None and not isinstance(part, dict):
            msg = f"IPNEXT_KUBERNETES_HARDWARE_FILE: {file}: {kind}: must be parts of a pod, got {part!r}"
            raise InvalidInput(msg, field=f"hardware_file.{kind}", value=part)
    return PodTemplates(
        common=read_common(settings),
        by_hardware={str(kind): part or {} for kind, part in kinds.items()},
    )


def read_common(settings: KubernetesSettings) -> Json:
    """Return the template of all pods; empty if there is none. InvalidInput."""
    template = settings.pod_template_file
    return {} if template is None else _read_mapping("pod_template_file", template)


def _read_mapping(name: str, file: Path) -> Json:
    where = f"IPNEXT_KUBERNETES_{name.upper()}: {file}"
    try:
        content = yaml.safe_load(file.read_text())
        json.dumps(content)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        msg = f"{where}: can't be read as YAML of texts, numbers, lists and mappings: {error}"
        raise InvalidInput(msg, field=name, value=str(file)) from error
    if not isinstance(content, dict):
        msg = f"{where}: must be a mapping, got {content!r:.200}"
        raise InvalidInput(msg, field=name, value=str(file))
    return content


def merge(base: Json, more: Json) -> Json:
    """Return both documents as one.

    Mappings are merged; lists of mappings with a `name` are merged by it; anything else is that of `more`.
    """
    merged = dict(base)
    for key, value in more.items():
        former = merged.get(key)
        if isinstance(former, dict) and isinstance(value, dict):
            merged[key] = merge(former, value)
        elif _has_names(former) and _has_names(value):
            merged[key] = _merge_lists(former, value)
        else:
            merged[key] = value
    return merged


def _has_names(value: object) -> TypeGuard[list[Json]]:
    return isinstance(value, list) and all(isinstance(each, dict) and "name" in each for each in value)


def _merge_lists(former: list[Json], more: list[Json]) -> list[Json]:
    found = {each["name"]: each for each in former}
    for each in more:
        found[each["name"]] = merge(found.get(each["name"], {}), each)
    return list(found.values())


def host_labels(region: str) -> dict[str, str]:
    """Return the labels of all pods of hosts of a region."""
    return {COMPONENT_LABEL: "host", REGION_LABEL: region}


def selector(labels: Mapping[str, str]) -> str:
    """Return labels as a label selector."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def deployment_labels(key: DeploymentKey) -> dict[str, str]:
    """Return the labels by which the pods of one replica set are found."""
    return {
        **host_labels(key.region),
        "ipnext.io/model": key.model,
        "ipnext.io/part": key.part,
        "ipnext.io/hardware": key.hardware,
    }


def name_pod(identity: HostIdentity, token: str) -> str:
    """Return the name for a pod of this replica: DNS allows 63 characters. `token` differs at each start."""
    words = f"{identity.key.model}-{identity.key.part}"[:_NAME_LETTERS].strip("-")
    return f"{words}-{sha256(identity.name.encode()).hexdigest()[:6]}-{token}"


def name_budget(key: DeploymentKey) -> str:
    """Return the name of a replica set's PodDisruptionBudget."""
    words = f"{key.model}-{key.part}"[:_NAME_LETTERS].strip("-")
    return f"{words}-{sha256(str(key).encode()).hexdigest()[:10]}"


def host_paths(settings: KubernetesSettings) -> HostPaths:
    """Return where the command of a host finds what it needs in its pod."""
    return HostPaths(
        python=settings.python,
        cache=Path(_CACHE),
        store_environment=Path(_STORE, "environment.json") if settings.store_secret else None,
    )


def render_pod(pod: HostPod, settings: KubernetesSettings, templates: PodTemplates) -> Json:
    """Return the document of a pod. KeyError if the templates lack its hardware kind."""
    own = {
        "metadata": {
            "name": pod.name,
            "labels": {**_MANAGED, **deployment_labels(pod.identity.key), "ipnext.io/engine": _label(pod)},
            "annotations": {
                REPLICA_ANNOTATION: pod.identity.name,
                **pod.annotations,
                "kubectl.kubernetes.io/default-container": HOST_CONTAINER,
            },
        },
        "spec": _spec(pod, settings),
    }
    given = merge({"spec": _defaults(pod, settings)}, templates.of(pod.identity.key.hardware))
    merged = merge(given, own)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": merged["metadata"], "spec": merged["spec"]}


def _defaults(pod: HostPod, settings: KubernetesSettings) -> Json:
    """Return what a template may replace: the images, and that replicas are spread over nodes."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": deployment_labels(pod.identity.key)},
    }
    return {
        "topologySpreadConstraints": [spread],
        "initContainers": [{"name": PROXY_CONTAINER, "image": settings.image}],
        "containers": [{"name": HOST_CONTAINER, "image": settings.image}],
    }


def _label(pod: HostPod) -> str:
    return re.sub(r"[^a-zA-Z0-9]+$", "", pod.identity.engine)


def _spec(pod: HostPod, settings: KubernetesSettings) -> Json:
    spec: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(pod.grace_seconds),
        "readinessGates": [{"conditionType": SERVING_CONDITION}],
        "initContainers": [_proxy(pod, settings)],
        "containers": [_host(pod, settings)],
        "volumes": _volumes(settings),
    }
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    if settings.user:
        spec["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "runAsGroup": settings.user,
            "fsGroup": settings.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    return spec


def _host(pod: HostPod, settings: KubernetesSettings) -> Json:
    mounts = [_mount("run", _RUN), _mount("cache", _CACHE), _mount("temporary", "/tmp")]  # noqa: S108 - of the container
    if settings.store_secret:
        mounts.append(_mount("store", _STORE, is_read_only=True))
    return {
        "name": HOST_CONTAINER,
        "command": list(pod.command),
        "env": [{"name": name, "value": value} for name, value in pod.environment.items()],
        "resources": _resources(pod),
        "securityContext": _confinement(),
        "volumeMounts": mounts,
    }


def _resources(pod: HostPod) -> Json:
    requests: Json = {"cpu": str(pod.cpu)}
    if pod.memory_bytes is None:
        return {"requests": requests}
    memory = str(pod.memory_bytes)
    return {"requests": {**requests, "memory": memory}, "limits": {"memory": memory}}


def _proxy(pod: HostPod, settings: KubernetesSettings) -> Json:
    """Return the native sidecar that has the certificate: it starts before the host, and ends after it."""
    places = ["--sockets", HOST_URL.removeprefix("unix://"), "--state", f"{_PROXY_STATE}/state"]
    address = ["--host", "$(POD_IP)", "--port", str(settings.port)]
    region = pod.identity.key.region
    files = {"CERTIFICATE": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"}
    return {
        "name": PROXY_CONTAINER,
        "restartPolicy": "Always",
        "command": [settings.python, "-m", "ipnext.infra.host_proxy_process", "--region", region, *address, *places],
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "IPNEXT_TRUST_DOMAIN", "value": pod.trust_domain},
            *(
                {"name": f"IPNEXT_COMPONENT_{name}_FILE", "value": f"{_CERTIFICATE}/{file}"}
                for name, file in files.items()
            ),
        ],
        "ports": [{"name": "https", "containerPort": settings.port}],
        "startupProbe": {"tcpSocket": {"port": settings.port}, **_PROBE},
        "securityContext": _confinement(),
        "volumeMounts": [
            _mount("run", _RUN),
            _mount("proxy", _PROXY_STATE),
            _mount("certificate", _CERTIFICATE, is_read_only=True),
        ],
    }


def _confinement() -> Json:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _mount(name: str, path: str, *, is_read_only: bool = False) -> Json:
    return {"name": name, "mountPath": path, **({"readOnly": True} if is_read_only else {})}


def _volumes(settings: KubernetesSettings) -> list[Json]:
    path = settings.cache_path
    cache = {"hostPath": {"path": path, "type": "DirectoryOrCreate"}} if path else {"emptyDir": {}}
    secrets = {"certificate": settings.certificate_secret, "store": settings.store_secret}
    return [
        {"name": "run", "emptyDir": {"medium": "Memory"}},
        {"name": "proxy", "emptyDir": {}},
        {"name": "temporary", "emptyDir": {}},
        {"name": "cache", **cache},
        *({"name": name, "secret": {"secretName": secret}} for name, secret in secrets.items() if secret),
    ]


def pod_memory(declared: int | None, settings: AgentSettings) -> int | None:
    """Return the memory limit of a host's container, in bytes, for the `memoryBytes` of its part; None: no limit."""
    if declared is None:
        return settings.host_memory_bytes
    return declared + settings.host_memory_allowance_bytes


def render_budget(key: DeploymentKey, replicas: int) -> Json:
    """Return the PodDisruptionBudget of a replica set: one replica at a time may be drained, never the only one."""
    labels = deployment_labels(key)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name_budget(key), "labels": {**_MANAGED, **labels}},
        "spec": {
            "minAvailable": max(1, replicas - 1),
            "selector": {"matchLabels": labels},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
