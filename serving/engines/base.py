"""The engine interface: loads a snapshot into this process and computes with it."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, runtime_checkable

from ipnext.errors import LoadFailed
from ipnext.model.registry.registry import Signature, SnapshotManifest
from ipnext.names import ENGINE_GROUP
from serving.protocol.tensors import Array

BUILT_IN: Final[Mapping[str, str]] = MappingProxyType({"torch": "serving.engines.torch.engine:TorchEngine"})
"""Engines that come with IPnext, each imported only when a snapshot needs it."""


class LoadedPart(Protocol):
    """A snapshot in memory. `infer` may be called from several threads at once."""

    @property
    def signature(self) -> Signature:
        """The input and output tensors."""

    @property
    def size_bytes(self) -> int:
        """Memory of its weights, in bytes."""

    @property
    def rows_are_independent(self) -> bool:
        """Whether a row's answer does not depend on the other rows of the batch, so that requests may share a pass.

        Known once the part is warmed up.
        """

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one forward pass. Inputs fit the signature, and so do the outputs.

        InvalidInput if a value is outside the part's range, IPnextError if the part fails.
        """

    def warm_up(self) -> None:
        """Run the one-time work that would otherwise delay the first request."""

    def close(self) -> None:
        """Free the memory. Called once, when no request uses the part any more."""


class StagedPass(Protocol):
    """A forward pass in two steps, so that it can begin before all inputs are there. Bit-identical to `infer`."""

    def begin(self, inputs: Mapping[str, Array]) -> Any:
        """Compute the share that needs no late input."""

    def complete(self, state: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs, from the state of `begin` and the late inputs. Errors as `infer`."""


@runtime_checkable
class StagedPart(Protocol):
    """A loaded part whose passes can be staged."""

    def stage(self, late: frozenset[str]) -> StagedPass | None:
        """Return the two-step pass for inputs that arrive late; None if nothing can be computed without them."""


class Engine(Protocol):
    """Loads snapshots of its kind. Created once per host; it may cache data shared by snapshots.

    Used from one thread.
    """

    def load(self, directory: Path, manifest: SnapshotManifest, settings: Mapping[str, Any]) -> LoadedPart:
        """Load the snapshot in `directory`, whose files are already checked. LoadFailed names the fault."""


def find_engine(name: str) -> Engine:
    """Return the engine of a name: a built-in one or an entry point of the group `ipnext.engines`.

    LoadFailed if unknown.
    """
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
