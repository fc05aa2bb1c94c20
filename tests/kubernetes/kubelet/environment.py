"""The environment and the command of a container."""

import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from lightkube.utils.quantity import parse_quantity

from tests.kubernetes.kubelet.api import Gone
from tests.kubernetes.server.errors import Json

REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
INHERITED = ("PATH", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "HOME")
"""Of the node, in place of an image's own."""
Reader = Callable[[str, str], Awaitable[Json]]
"""Reads a ConfigMap or a Secret by kind and name."""


class ConfigMissing(Exception):
    """A reference of the environment to what is not there."""


@dataclass(frozen=True)
class Origins:
    """What the variables of a container are made of."""

    container: Json
    pod: Json
    fields: Mapping[str, str]
    read: Reader


def inherited() -> dict[str, str]:
    """Return the variables of the node that each container has."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


async def environment_of(container: Json, pod: Json, fields: Mapping[str, str], read: Reader) -> dict[str, str]:
    """Return the variables that a container declares; `fields`: what `fieldRef` may name."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if key in source:
                entries = await _entries(kind, source[key], read)
                found |= {f"{source.get('prefix', '')}{name}": each for name, each in entries.items()}
    for one in container.get("env") or ():
        if (value := await _value(one, found, Origins(container, pod, fields, read))) is not None:
            found[one["name"]] = value
    return found


async def _value(one: Json, known: Mapping[str, str], origins: Origins) -> str | None:
    source = one.get("valueFrom") or {}
    if "fieldRef" in source:
        return field_of(source["fieldRef"]["fieldPath"], origins.fields)
    if "resourceFieldRef" in source:
        return resource_of({"containerName": origins.container["name"]} | source["resourceFieldRef"], origins.pod)
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if key in source:
            return await _entry(kind, source[key], origins.read)
    return expanded(one.get("value") or "", known)


def field_of(path: str, fields: Mapping[str, str]) -> str:
    """Return a field of the pod. ConfigMissing if the node double does not know it."""
    if path not in fields:
        msg = f"fieldRef {path} is not supported"
        raise ConfigMissing(msg)
    return fields[path]


def resource_of(reference: Json, pod: Json) -> str:
    """Return a request or a limit of a container, in units of the divisor. ConfigMissing if it has none."""
    containers = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or ())]
    container = next(each for each in containers if each["name"] == reference["containerName"])
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    given = (limits if kind == "limits" else limits | (resources.get("requests") or {})).get(name)
    if given is None and kind == "limits":
        msg = f"container {container['name']} has no {reference['resource']}"
        raise ConfigMissing(msg)
    value = (parse_quantity(str(given or 0)) or Decimal()) / (parse_quantity(reference.get("divisor") or "1") or 1)
    return str(value.to_integral_value(ROUND_CEILING))


async def _entries(kind: str, reference: Json, read: Reader) -> Json:
    """Read an object; an optional one that is missing has no entries."""
    try:
        return await read(kind, reference["name"])
    except Gone:
        if reference.get("optional"):
            return {}
        raise


async def _entry(kind: str, reference: Json, read: Reader) -> str | None:
    found = await _entries(kind, reference, read)
    if reference["key"] in found:
        return str(found[reference["key"]])
    if reference.get("optional"):
        return None
    msg = f"couldn't find key {reference['key']} in {kind} {reference['name']}"
    raise ConfigMissing(msg)


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by the variable; unknown ones stay, `$$` is one dollar."""

    def value(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return REFERENCE.sub(value, text)


def command_of(container: Json, variables: Mapping[str, str], entrypoint: Sequence[str] = ()) -> list[str]:
    """Return the words to run; `entrypoint`: those of the image."""
    words = [*(container.get("command") or entrypoint), *(container.get("args") or ())]
    return [expanded(word, variables) for word in words]


def fields_of(pod: Json, address: str, node: str) -> dict[str, str]:
    """Return what `fieldRef` may name."""
    metadata = pod["metadata"]
    found = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": node,
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": address,
        "status.podIPs": address,
        "status.hostIP": "127.0.0.1",
    }
    for kind in ("labels", "annotations"):
        found |= {f"metadata.{kind}['{name}']": each for name, each in (metadata.get(kind) or {}).items()}
        found[f"metadata.{kind}"] = "\n".join(f'{name}="{each}"' for name, each in (metadata.get(kind) or {}).items())
    return found
