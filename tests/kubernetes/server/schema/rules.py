"""Rules that schemas do not state: of names, of values, and between fields. Each is (field, why) if it is broken."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lightkube.utils.quantity import parse_quantity

from tests.kubernetes.server.schema.resources import Resource
from tests.kubernetes.server.schema.schema import Json
from tests.kubernetes.server.selectors import selects

Broken = tuple[str, str]
REQUIRED = "Required value"
DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
DNS_LABEL_OF_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
PLAIN = r"([A-Za-z0-9]([-\w.]*[A-Za-z0-9])?)"
LABEL_KEY = re.compile(rf"([a-z0-9.-]+/)?{PLAIN}", re.ASCII)
LABEL_VALUE = re.compile(rf"{PLAIN}?", re.ASCII)
ENTRY = re.compile(r"[-\w.]+", re.ASCII)
LABEL_LENGTH, SUBDOMAIN_LENGTH, LAST_PORT = 63, 253, 65535
FREE_NAMES = frozenset({"rbac.authorization.k8s.io"})
"""Groups whose names need not be those of DNS."""
FINALIZERS = frozenset({"foregroundDeletion", "kubernetes", "orphan"})
"""Those that need no domain."""
PULL_POLICIES, STRATEGIES = ("Always", "IfNotPresent", "Never"), ("Recreate", "RollingUpdate")
HANDLERS = frozenset({"exec", "grpc", "httpGet", "tcpSocket"})
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def broken_rules(resource: Resource, obj: Json) -> list[Broken]:
    """Return the rules that an object breaks."""
    check = BY_KIND.get(resource.kind) if not resource.is_custom else None
    return [*_of_metadata(resource, obj["metadata"]), *(check(obj) if check else ())]


def _of_metadata(resource: Resource, metadata: Json) -> Iterator[Broken]:
    name = metadata.get("name", "")
    if not name:
        yield "metadata.name", f"{REQUIRED}: name or generateName"
    elif resource.group not in FREE_NAMES and not _is_name(name, resource.kind):
        yield "metadata.name", f"{name!r} is no lower-case name of letters, digits, '-' and '.'"
    for key, value in (metadata.get("labels") or {}).items():
        if not _is_label(key, value):
            yield "metadata.labels", f"{key}={value} is no label"
    for number, each in enumerate(metadata.get("finalizers") or ()):
        if "/" not in each and each not in FINALIZERS:
            yield f"metadata.finalizers[{number}]", f"{each!r} has no domain"


def _is_name(name: str, kind: str) -> bool:
    if kind == "Service":
        return bool(DNS_LABEL_OF_SERVICE.fullmatch(name)) and len(name) <= LABEL_LENGTH
    return bool(DNS_SUBDOMAIN.fullmatch(name)) and len(name) <= SUBDOMAIN_LENGTH


def _is_label(key: str, value: str) -> bool:
    matches = LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value)
    return bool(matches) and max(len(key.rpartition("/")[2]), len(value)) <= LABEL_LENGTH


def _of_pod(obj: Json) -> Iterator[Broken]:
    yield from _of_pod_spec(obj.get("spec") or {}, "spec")


def _of_workload(obj: Json) -> Iterator[Broken]:
    spec = obj.get("spec") or {}
    template = spec.get("template") or {}
    if spec.get("replicas", 0) < 0:
        yield "spec.replicas", "a count is not below 0"
    if not selects(spec.get("selector"), (template.get("metadata") or {}).get("labels") or {}) or not spec["selector"]:
        yield "spec.template.metadata.labels", "`selector` does not match the labels of the template"
    yield from _of_pod_spec(template.get("spec") or {}, "spec.template.spec")
    if (policy := (template.get("spec") or {}).get("restartPolicy", "Always")) != "Always":
        yield "spec.template.spec.restartPolicy", f"Unsupported value: {policy!r}"


def _of_deployment(obj: Json) -> Iterator[Broken]:
    yield from _of_workload(obj)
    strategy = (obj.get("spec") or {}).get("strategy") or {}
    if strategy.get("type", STRATEGIES[0]) not in STRATEGIES:
        yield "spec.strategy", f"Unsupported value: {strategy['type']!r}"
    rolling = strategy.get("rollingUpdate") or {"maxSurge": 1}
    if {str(rolling.get(name)).rstrip("%") for name in ("maxSurge", "maxUnavailable")} == {"0"}:
        yield "spec.strategy.rollingUpdate.maxUnavailable", "it is not 0 if `maxSurge` is 0"


def _of_pod_spec(spec: Json, place: str) -> Iterator[Broken]:
    if not spec.get("containers"):
        yield f"{place}.containers", REQUIRED
    volumes = {each.get("name") for each in spec.get("volumes") or ()}
    for name in ("containers", "initContainers"):
        for number, each in enumerate(spec.get(name) or ()):
            yield from _of_container(each, f"{place}.{name}[{number}]", volumes)
    every = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    yield from _repeated([each.get("name") for each in every], f"{place}.containers", len(spec.get("containers") or ()))


def _repeated(names: Sequence[Any], place: str, last: int) -> Iterator[Broken]:
    first = len(names) - last
    for number, name in enumerate(names):
        if name is not None and name in names[:number]:
            yield f"{place}[{number - first}].name", f"Duplicate value: {name!r}"


def _of_container(container: Json, place: str, volumes: set[Any]) -> Iterator[Broken]:
    if (name := container.get("name")) and not DNS_LABEL.fullmatch(name):
        yield f"{place}.name", f"{name!r} is no lower-case name of letters, digits and '-'"
    if not container.get("image"):
        yield f"{place}.image", REQUIRED
    if (policy := container.get("imagePullPolicy", PULL_POLICIES[0])) not in PULL_POLICIES:
        yield f"{place}.imagePullPolicy", f"Unsupported value: {policy!r}"
    for number, each in enumerate(container.get("ports") or ()):
        if not 0 < each.get("containerPort", 1) <= LAST_PORT:
            yield f"{place}.ports[{number}].containerPort", "it is no port"
    for number, each in enumerate(container.get("volumeMounts") or ()):
        if each.get("name") not in volumes:
            yield f"{place}.volumeMounts[{number}].name", f"Not found: {each.get('name')!r}"
    for name in PROBES:
        if name in container and not HANDLERS & set(container[name]):
            yield f"{place}.{name}", f"{REQUIRED}: what it does"
    yield from _of_resources(container.get("resources") or {}, f"{place}.resources")


def _of_resources(resources: Json, place: str) -> Iterator[Broken]:
    limits = resources.get("limits") or {}
    for name, given in (resources.get("requests") or {}).items():
        most = parse_quantity(limits.get(name))
        if most is not None and (parse_quantity(given) or 0) > most:
            yield f"{place}.requests", f"{given} of {name} is beyond the limit {limits[name]}"


def _of_service(obj: Json) -> Iterator[Broken]:
    ports = (obj.get("spec") or {}).get("ports") or ()
    for number, each in enumerate(ports):
        if len(ports) > 1 and not each.get("name"):
            yield f"spec.ports[{number}].name", REQUIRED


def _of_entries(obj: Json) -> Iterator[Broken]:
    for name in obj.get("data") or ():
        if not ENTRY.fullmatch(name):
            yield f"data[{name}]", f"{name!r} is no name of an entry"


def _of_lease(obj: Json) -> Iterator[Broken]:
    if (obj.get("spec") or {}).get("leaseDurationSeconds", 1) <= 0:
        yield "spec.leaseDurationSeconds", "it is above 0"


BY_KIND: Mapping[str, Callable[[Json], Iterator[Broken]]] = {
    "ConfigMap": _of_entries,
    "Deployment": _of_deployment,
    "Lease": _of_lease,
    "Pod": _of_pod,
    "ReplicaSet": _of_workload,
    "Secret": _of_entries,
    "Service": _of_service,
}
