"""Discovery documents: which groups, versions and resources there are."""

from typing import Any

from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.schema.registry import Registry
from tests.kubernetes.server.schema.resources import Resource

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
SUBRESOURCE_KINDS = {
    "scale": ("autoscaling", "v1", "Scale"),
    "eviction": ("policy", "v1", "Eviction"),
    "binding": ("", "v1", "Binding"),
}
SUBRESOURCE_VERBS = {"eviction": ["create"], "binding": ["create"], "log": ["get"]}
VERSION = {"major": "1", "minor": "37", "gitVersion": "v1.37.0-double", "platform": "linux/amd64"}


def document(registry: Registry, parts: list[str]) -> Json | None:
    """Return the document of a path such as `apis/apps/v1`, None if there is none."""
    match parts:
        case ["version"]:
            found: Json | None = dict(VERSION)
        case ["api"]:
            found = {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        case ["apis"]:
            found = {"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups(registry)}
        case ["api", version]:
            found = _resources(registry, "", version)
        case ["apis", group]:
            found = next((each for each in _groups(registry) if each["name"] == group), None)
        case ["apis", group, version]:
            found = _resources(registry, group, version)
        case _:
            found = None
    return found


def _groups(registry: Registry) -> list[Json]:
    return [_group(name, versions) for name, versions in sorted(registry.versions().items())]


def _group(name: str, versions: list[str]) -> Json:
    listed: list[Json] = [{"groupVersion": f"{name}/{each}", "version": each} for each in versions]
    document: dict[str, Any] = {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": listed}
    return document | {"preferredVersion": listed[0]}


def _resources(registry: Registry, group: str, version: str) -> Json | None:
    found = [one for one in registry if (one.group, one.version) == (group, version)]
    if not found:
        return None
    listed = [entry for one in found for entry in (_entry(one), *_subresource_entries(one))]
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": listed}


def _entry(resource: Resource) -> Json:
    entry: Json = {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(VERBS),
    }
    return entry | ({"shortNames": list(resource.short_names)} if resource.short_names else {})


def _subresource_entries(resource: Resource) -> list[Json]:
    return [_subresource_entry(resource, name) for name in sorted(resource.subresources)]


def _subresource_entry(resource: Resource, name: str) -> Json:
    group, version, kind = SUBRESOURCE_KINDS.get(name, ("", "", resource.kind))
    entry: Json = {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": SUBRESOURCE_VERBS.get(name, ["get", "patch", "update"]),
    }
    return entry | ({"group": group, "version": version} if version else {})
