"""Kinds of sources: the built-in ones, and those of other distributions. A broken one is refused by its name."""

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Final

from ipnext import names
from ipnext.errors import InvalidInput
from ipnext.plugins import load_kind
from ipnext.sources.bucket import BucketKind
from ipnext.sources.directory import DirectoryKind
from ipnext.sources.mlflow.kind import MlflowKind
from ipnext.sources.oci.kind import OciKind
from ipnext.sources.port import SourceKind
from ipnext.sources.pushed import PushKind

BUILT_IN: Final[tuple[SourceKind, ...]] = (DirectoryKind(), BucketKind(), MlflowKind(), OciKind(), PushKind())
METHODS: Final = ("upstream", "check", "connect")
"""Of a kind."""


class SourceKinds:
    """The kinds of this environment, each loaded once, at the first use of any."""

    @cached_property
    def by_name(self) -> Mapping[str, SourceKind]:
        """Name -> kind. A plug-in with the name of a built-in kind is refused."""
        found = {kind.name: kind for kind in BUILT_IN}
        for point in sorted(entry_points(group=names.SOURCE_GROUP), key=lambda point: (point.name, point.value)):
            kind = load_kind(point, taken=found, methods=METHODS, what="source")
            if kind is not None:
                found[point.name] = kind
        return found

    def get(self, name: str) -> SourceKind:
        """Return a kind. InvalidInput names the known ones."""
        kind = self.by_name.get(name)
        if kind is None:
            known = tuple(sorted(self.by_name))
            msg = f"{name!r} is no kind of source here; allowed: {', '.join(known)}"
            raise InvalidInput(msg, field="plugin.kind", value=name, allowed=known)
        return kind
