"""Control of a host: the snapshots that it has to load, and the state that it reports."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from pydantic import Field

from ipnext.model.deployment.deployment import loaded_content
from ipnext.model.deployment.engine_start import EngineStart
from ipnext.model.deployment.engine_swap import EngineSwap
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.value import Name, Value


class HostedSnapshot(Value):
    """One snapshot that a host process has to load."""

    model: Name
    part: Name
    engine: str
    snapshot: int
    digest: str
    uri: str
    generations: tuple[int, ...]
    signers: SignerPolicy | None = None
    is_cut_from_signed: bool = False
    denied: str = ""
    """Both as of the AssignedSnapshot."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    adapter_of: Name | None = None
    """For an adapter: the part whose engines load it."""
    adapters: int = Field(default=0, ge=0)
    """Adapters based on it in each of its generations."""
    swap: bool = False
    """Whether its engine may swap to it from another snapshot of the part, or from it to another one."""

    @property
    def is_guarded(self) -> bool:
        """Whether its files are hashed before every load: it is signed, or was cut from a signed snapshot."""
        return self.signers is not None or self.is_cut_from_signed

    @property
    def content(self) -> str:
        """As in AssignedSnapshot."""
        return loaded_content(self.digest, self.adapters)


class HostHolds(Value):
    """Body of `PUT /control/holds` of a host: all snapshots that it has to load.

    It unloads others once they are unused.
    """

    holds: tuple[HostedSnapshot, ...]
    drain_seconds: float | None = None
    """Longest time for requests to snapshots that this body unloads; None: the host's default."""
    ending_seconds: float | None = None
    """Longest time for requests after the host itself was asked to end; None: the host's default."""
    coming: tuple[HostedSnapshot, ...] = ()
    """Snapshots to fetch and check, which will soon replace others."""
    stamp: str = ""
    """A secret of the agent: it shows the agent whether the host follows this agent's holds."""

    @property
    def stamp_digest(self) -> str:
        """The digest of the stamp in the host's state, which does not reveal the stamp."""
        return sha256(self.stamp.encode()).hexdigest()


class HeldGeneration(Value):
    """A generation of a part for which a host answers."""

    model: Name
    part: Name
    generation: int
    snapshot: int
    url: str | None = None
    """The address of an engine with its own server, such as vLLM; None: the host answers."""
    answers_as: str | None = None
    """The `model` that the engine writes into its answers, which proves its snapshot; None: unknown."""


class HostFailure(Value):
    """A snapshot that a host could not load. `code` is an error code of `ipnext.errors`."""

    model: Name
    part: Name
    snapshot: int
    generations: tuple[int, ...]
    code: str
    message: str


class SnapshotMemory(Value):
    """A snapshot in a host's memory: the bytes of its tensors, those of several names once."""

    model: Name
    part: Name
    snapshot: int
    size_bytes: int


class HostMemoryState(Value):
    """A host's memory in bytes. Without a budget nothing is refused."""

    used_bytes: int
    """Memory of the whole process, its snapshots included."""
    budget_bytes: int | None = None
    snapshots: tuple[SnapshotMemory, ...] = ()


class HostState(Value):
    """Answer of `GET /control/state` of a host. A generation is in `ready` once loaded and warmed."""

    ready: tuple[HeldGeneration, ...] = ()
    loading: tuple[HeldGeneration, ...] = ()
    failures: tuple[HostFailure, ...] = ()
    in_flight: int = 0
    draining: bool = False
    stamped: str | None = None
    """The digest of the last holds' stamp; None: the host received none, or does not support it."""
    fetched: tuple[str, ...] = ()
    """Digests of `coming` snapshots that were fetched and checked."""
    swaps: tuple[EngineSwap, ...] = ()
    """The last swap of each engine."""
    starts: tuple[EngineStart, ...] = ()
    """Engines that do not answer yet, including those that only have to be fetched."""
    memory: HostMemoryState | None = None
    revision: int = 0
    """Rises when a load ends: `GET /control/state/after/{revision}` answers once it has risen. 0: unsupported by the
    host."""
