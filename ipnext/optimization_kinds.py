"""Kinds of optimization steps of other distributions: entry points of the group `ipnext.optimizations`.

The API checks a step's settings when a manifest is applied; the process of a step derives. A broken kind is refused by
its name, and no other one with it. The built-in kinds are in `serving.optimizing`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol

from ipnext import names
from ipnext.errors import InvalidInput
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.plugins import contain_faults, load_kind

BUILT_IN: Final = ("quantize", "compile")
METHODS: Final = ("check", "versions", "derive")
"""Of a kind."""


class OptimizationKind(Protocol):
    """A kind of step. Its class is called without arguments."""

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check a step's settings. Imports nothing heavy. Raises InvalidInput, or ValueError."""

    def versions(self) -> Mapping[str, str]:
        """Return the tools that `derive` uses, with their versions: another version derives again."""

    def derive(self, source: Path, settings: Mapping[str, Any], draft: Path) -> Any:
        """Write the files of the derived snapshot of `source` into the directory `draft`, all but the manifest.

        Names of inputs and outputs stay. Runs confined: it may read `source` and write `draft`, and has no network. The
        answer, plain JSON, becomes part of the report. Raises InvalidInput if the snapshot does not fit the step.
        """


class OptimizationKinds:
    """The kinds of this environment, each loaded once, at the first use of any."""

    @cached_property
    def by_name(self) -> Mapping[str, OptimizationKind]:
        """Name -> kind of another distribution. One with the name of a built-in kind is refused."""
        found: dict[str, OptimizationKind] = {}
        points = entry_points(group=names.OPTIMIZATION_GROUP)
        for point in sorted(points, key=lambda point: (point.name, point.value)):
            kind = load_kind(point, taken=(*BUILT_IN, *found), methods=METHODS, what="optimization")
            if kind is not None:
                found[point.name] = kind
        return found

    def get(self, name: str) -> OptimizationKind:
        """Return a kind of another distribution. InvalidInput names the known ones."""
        kind = self.by_name.get(name)
        if kind is None:
            known = tuple(sorted(self.by_name))
            msg = f"{name!r} is no kind of step here; allowed: {', '.join(known) or 'none, for none is installed'}"
            raise InvalidInput(msg, field="plugin.kind", value=name, allowed=known)
        return kind

    def versions_of(self, name: str) -> Mapping[str, str]:
        """Return the tools of a kind with their versions. Raises InvalidInput."""
        with contain_faults(name, "versions"):
            return dict(self.get(name).versions())

    def check(self, steps: Iterable[OptimizationStep]) -> None:
        """Check the steps of other distributions. Raises InvalidInput with the place in the manifest."""
        for index, step in enumerate(steps):
            if step.plugin is not None:
                self._check(f"spec.optimization.{index}", step.plugin.kind, step.plugin.settings)

    def _check(self, place: str, name: str, settings: Mapping[str, Any]) -> None:
        try:
            with contain_faults(name):
                self.get(name).check(settings)
        except InvalidInput as error:
            field = f"{place}.{error.field}" if error.field else place
            msg = f"{place}: {error.message}"
            raise InvalidInput(msg, field=field, value=error.value, allowed=error.allowed) from error
