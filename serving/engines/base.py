"""The port to an engine: what loads a snapshot into this process and computes with it."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, runtime_checkable

from ipnext.errors import LoadFailed
from ipnext.model.registry import Signature, SnapshotManifest
from ipnext.names import ENGINE_GROUP
from serving.protocol.tensors import Array

BUILT_IN: Final[Mapping[str, str]] = MappingProxyType({"torch": "serving.engines.torch.engine:TorchEngine"})
"""Engines that come with IPnext, each imported only when a snapshot asks for it."""


class LoadedPart(Protocol):
    """A snapshot in memory. `infer` may be called from several threads at once."""

    @property
    def signature(self) -> Signature:
        """The tensors it takes and gives."""

    @property
    def size_bytes(self) -> int:
        """Memory that its weights take, in bytes."""

    @property
    def rows_are_independent(self) -> bool:
        """Whether a row's answer is the same whatever other rows stand in the batch, so that requests may be joined.

        Known once the part is warmed up.
        """

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One forward pass. Inputs fit the signature; the outputs are named and typed as it says.

        InvalidInput where a value lies beyond what the part takes, IPnextError where the part fails.
        """

    def warm_up(self) -> None:
        """Run what the first real request would otherwise pay for."""

    def close(self) -> None:
        """Give the memory back. Called once, when no request uses the part any more."""


class Staged(Protocol):
    """A forward pass in two steps, so that one can begin before all inputs are there. Gives the bits of `infer`."""

    def begin(self, inputs: Mapping[str, Array]) -> Any:
        """Compute what needs no late input."""

    def complete(self, state: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs, from what `begin` gave and the late inputs. Errors as `infer`."""


@runtime_checkable
class StagedPart(Protocol):
    """A loaded part whose passes can be staged."""

    def staged(self, late: frozenset[str]) -> Staged | None:
        """The pass in two steps where inputs of these names come later; None where nothing could begin without them."""


class Engine(Protocol):
    """Loads snapshots of its kind. One is made for each host; it may keep what snapshots share. Used from one thread."""

    def load(self, directory: Path, manifest: SnapshotManifest, settings: Mapping[str, Any]) -> LoadedPart:
        """Load the snapshot in `directory`, whose files are already checked. LoadFailed says what is wrong with it."""


def find_engine(name: str) -> Engine:
    """The engine of a name: a built-in one or an entry point of the group `ipnext.engines`. LoadFailed if unknown."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        engine: Engine = getattr(import_module(module), attribute)()
        return engine
    plugins = {point.name: point for point in entry_points(group=ENGINE_GROUP)}
    if name not in plugins:
        known = ", ".join(sorted({*BUILT_IN, *plugins}))
        msg = (
            f"engine {name!r} is not installed; known: {known}. Install the package that brings it into the host's venv"
        )
        raise LoadFailed(msg)
    found: Engine = plugins[name].load()()
    return found
