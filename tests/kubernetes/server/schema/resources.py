"""The resources that the API server double serves, as data."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes.server.schema.schema import Schema, core_schema, custom_schema

SCALE = {"spec": ".spec.replicas", "status": ".status.replicas", "selector": ".status.selector"}
"""Paths of the subresource `scale` if a custom resource names no others."""

COUNTED = frozenset(
    ("CustomResourceDefinition", "DaemonSet", "Deployment", "NetworkPolicy", "Pod", "PodDisruptionBudget")
) | {"PriorityClass", "ReplicaSet", "StatefulSet"}
"""Kubernetes' own kinds that have a generation."""


@dataclass(frozen=True)
class Resource:
    """One kind under one version, and where it is served."""

    group: str
    version: str
    kind: str
    plural: str
    schema: Schema = field(compare=False, repr=False)
    namespaced: bool = True
    subresources: frozenset[str] = frozenset()
    short_names: tuple[str, ...] = ()
    is_custom: bool = False
    scale: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def api_version(self) -> str:
        """Group and version, as in manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def has_status(self) -> bool:
        """Whether `status` is written by its subresource only."""
        return "status" in self.subresources

    @property
    def counts_generations(self) -> bool:
        """Whether `metadata.generation` grows with each change of the desired state."""
        return self.is_custom or self.kind in COUNTED

    @property
    def qualified(self) -> str:
        """Plural and group, as in messages."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _core(kind: str, *subresources: str, group: str = "", **options: Any) -> Resource:
    plural = options.pop("plural", f"{kind.lower()}s")
    schema = core_schema(group, "v1", kind)
    return Resource(group, "v1", kind, plural, schema, subresources=frozenset(subresources), **options)


def core_resources() -> tuple[Resource, ...]:
    """Return Kubernetes' own resources."""
    access, rules = "rbac.authorization.k8s.io", "roles"
    return (
        _core("Namespace", "status", namespaced=False, short_names=("ns",)),
        _core("Node", "status", namespaced=False, short_names=("no",)),
        _core("Pod", "status", "binding", "eviction", "log", short_names=("po",)),
        _core("Service", "status", short_names=("svc",)),
        _core("ConfigMap", short_names=("cm",)),
        _core("Secret"),
        _core("ServiceAccount", "token", short_names=("sa",)),
        _core("Event", short_names=("ev",)),
        _core("PersistentVolumeClaim", "status", short_names=("pvc",)),
        _core("ResourceQuota", "status", short_names=("quota",)),
        _core("Deployment", "status", "scale", group="apps", short_names=("deploy",)),
        _core("ReplicaSet", "status", "scale", group="apps", short_names=("rs",)),
        _core("StatefulSet", "status", "scale", group="apps", short_names=("sts",)),
        _core("DaemonSet", "status", group="apps", short_names=("ds",)),
        _core("PodDisruptionBudget", "status", group="policy", short_names=("pdb",)),
        _core("Lease", group="coordination.k8s.io"),
        _core("Role", group=access, plural=rules),
        _core("RoleBinding", group=access),
        _core("ClusterRole", group=access, namespaced=False),
        _core("ClusterRoleBinding", group=access, namespaced=False),
        _core("NetworkPolicy", group="networking.k8s.io", plural="networkpolicies", short_names=("netpol",)),
        _core("PriorityClass", group="scheduling.k8s.io", plural="priorityclasses", namespaced=False),
        _core(
            "CustomResourceDefinition",
            "status",
            group="apiextensions.k8s.io",
            namespaced=False,
            short_names=("crd",),
        ),
    )


@functools.cache
def installed_definitions() -> tuple[Any, ...]:
    """Return the CustomResourceDefinitions that each API server double has from the start."""
    files = sorted(Path(__file__).with_name("definitions").glob("*.yaml"))
    return tuple(yaml.safe_load(file.read_text()) for file in files)


def custom_resources(definition: Mapping[str, Any]) -> tuple[Resource, ...]:
    """Return what a CustomResourceDefinition serves: one resource for each served version."""
    spec = definition["spec"]
    return tuple(_custom(spec, version) for version in spec["versions"] if version["served"])


def _custom(spec: Mapping[str, Any], version: Mapping[str, Any]) -> Resource:
    subresources = version.get("subresources") or {}
    scale = subresources.get("scale") or {}
    return Resource(
        spec["group"],
        version["name"],
        spec["names"]["kind"],
        spec["names"]["plural"],
        custom_schema(version.get("schema", {}).get("openAPIV3Schema", {})),
        namespaced=spec["scope"] == "Namespaced",
        subresources=frozenset(subresources),
        short_names=tuple(spec["names"].get("shortNames", ())),
        is_custom=True,
        scale={
            "spec": scale.get("specReplicasPath", SCALE["spec"]),
            "status": scale.get("statusReplicasPath", SCALE["status"]),
            "selector": scale.get("labelSelectorPath", SCALE["selector"]),
        },
    )
