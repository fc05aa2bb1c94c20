"""Mounts of a container: in namespaces by the kernel, without them by the paths in its texts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.kubelet.environment import expanded
from tests.kubernetes.kubelet.processes.isolation import Mount
from tests.kubernetes.server.errors import Json

KEPT_READ_ONLY = frozenset({"configMap", "secret", "projected", "downwardAPI"})


@dataclass(frozen=True)
class Mounts:
    """The places of the node that a container sees at its own paths."""

    all: tuple[Mount, ...]

    def rewritten(self, text: str) -> str:
        """Replace each mounted path, and each path below one, by that of the node."""
        paths = {each.target: each.source for each in self.all}
        if not paths:
            return text
        names = "|".join(re.escape(each) for each in sorted(paths, key=len, reverse=True))
        pattern = rf"(?:(?<![\w.\-/])|(?<=://))({names})(?![\w.\-])"
        return re.sub(pattern, lambda found: str(paths[found[1]]), text)


def mounts_of(container: Json, pod: Json, volumes: Path, variables: Mapping[str, str]) -> Mounts:
    """Return the mounts of a container whose volumes are directories below `volumes`."""
    kinds = {each["name"]: set(each) - {"name"} for each in pod["spec"].get("volumes") or ()}
    found = []
    for each in container.get("volumeMounts") or ():
        inner = each.get("subPath") or expanded(each.get("subPathExpr") or "", variables)
        source = volumes / each["name"] / inner
        if inner and not source.exists():
            source.mkdir(parents=True)
        is_fixed = bool(each.get("readOnly") or kinds.get(each["name"], set()) & KEPT_READ_ONLY)
        found.append(Mount(source, each["mountPath"].rstrip("/"), is_fixed))
    return Mounts(tuple(found))
