"""The environment and the command of a container."""

import os
import re
from collections.abc import Awaitable, Callable, Mapping

from tests.kubernetes.server.errors import Json

REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
INHERITED = ("PATH", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "HOME")
"""Of the node, in place of an image's own."""
Reader = Callable[[str, str], Awaitable[Json]]
"""Reads a ConfigMap or a Secret by kind and name."""


class ConfigMissing(Exception):
    """A reference of the environment to what is not there."""


async def environment_of(container: Json, fields: Mapping[str, str], read: Reader) -> dict[str, str]:
    """Return the variables of a container; `fields`: what `fieldRef` may name."""
    found = {name: os.environ[name] for name in INHERITED if name in os.environ}
    for source in container.get("envFrom") or ():
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if key in source:
                found |= {
                    f"{source.get('prefix', '')}{n}": v for n, v in (await read(kind, source[key]["name"])).items()
                }
    for one in container.get("env") or ():
        if (value := await _value(one, found, fields, read)) is not None:
            found[one["name"]] = value
    return found


async def _value(one: Json, known: Mapping[str, str], fields: Mapping[str, str], read: Reader) -> str | None:
    source = one.get("valueFrom") or {}
    if "fieldRef" in source:
        return _field(source["fieldRef"]["fieldPath"], fields)
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if key in source:
            return await _entry(kind, source[key], read)
    return expanded(one.get("value") or "", known)


def _field(path: str, fields: Mapping[str, str]) -> str:
    if path not in fields:
        msg = f"fieldRef {path} is not supported"
        raise ConfigMissing(msg)
    return fields[path]


async def _entry(kind: str, reference: Json, read: Reader) -> str | None:
    found = await read(kind, reference["name"])
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


def command_of(container: Json, variables: Mapping[str, str]) -> list[str]:
    """Return the words to run."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
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
    return found
