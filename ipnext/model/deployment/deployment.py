"""Desired state of one replica set, and the snapshots that its replicas load."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field

from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.value import Name, Value

SERVING_ENGINES: Final = frozenset({"vllm"})
"""Engines with their own server and protocol: vLLM with OpenAI's."""

DRAIN_SECONDS: Final = 10.0
"""Default for the longest time that requests under way may take after their process was asked to end."""

STREAM_DRAIN_SECONDS: Final = 300.0
"""The same default for parts whose generated answers stream for minutes."""


class DeploymentKey(Value):
    """Names a replica set: one part of a model in a region on a hardware kind."""

    model: Name
    part: Name
    region: Name
    hardware: Name

    def __str__(self) -> str:
        return f"{self.model}.{self.part}.{self.region}.{self.hardware}"


class AssignedSnapshot(Value):
    """A snapshot that each replica of a deployment loads, and the generations for which it answers."""

    part: Name | None = None
    """Its segment of a split, or its adapter; None: the deployment's part itself."""
    snapshot: int = Field(ge=1)
    digest: str
    uri: str
    generations: tuple[int, ...] = Field(min_length=1)
    signers: SignerPolicy | None = None
    """Required signers; None for a snapshot that the platform itself has cut."""
    is_cut_from_signed: bool = False
    """Whether the platform cut it from a snapshot of a model that names signers."""
    denied: str = ""
    """Why no host may load it any more; empty if it may be loaded. One that is loaded serves on."""
    adapter: bool = False
    """Whether it is loaded into the engine of the deployment's part."""
    adapters: int = Field(default=0, ge=0)
    """Adapters based on it in each of its generations. An engine reserves room for them only at its start."""

    @property
    def content(self) -> str:
        """The identity of its loaded form: its digest, and whether it can take adapters."""
        return loaded_content(self.digest, self.adapters)


def loaded_content(digest: str, adapters: int) -> str:
    """Return the identity of a loaded snapshot: its digest, and the adapters that it has room for."""
    return f"{digest}+{adapters}" if adapters else digest


class Deployment(Value):
    """The desired state of one replica set. Applying it twice changes nothing."""

    key: DeploymentKey
    replicas: int = Field(ge=0)
    engine: str
    units: float = Field(gt=0)
    qps: float = Field(gt=0)
    """Throughput of one replica."""
    memory_bytes: int | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    drain_seconds: float | None = None
    """Longest wait for requests in flight before a replica ends; None: the region's default."""
    holds: tuple[AssignedSnapshot, ...] = ()
    own: Mapping[int, int] = Field(default_factory=dict)
    """Generation -> processes with only that generation, `replicas` in total; empty: every process has everything."""
    swap: bool = False
    """With `own`: a surplus process swaps to a generation that lacks processes, before new ones start."""
    shadow: Mapping[int, int] = Field(default_factory=dict)
    """Generation that answers no client -> processes, among `replicas`, that hold it alone. Others do not hold it."""
    swap_wait_seconds: float | None = None
    """With `swap`: the longest wait of a request for a swapping process; None: the time that requests in flight
    have."""

    @property
    def generations(self) -> tuple[int, ...]:
        """All generations that the replicas serve, ascending."""
        return tuple(sorted({g for held in self.holds for g in held.generations}))

    @property
    def clients_replicas(self) -> int:
        """The number of processes without those of shadows."""
        return self.replicas - sum(self.shadow.values())

    @property
    def clients_generations(self) -> frozenset[int]:
        """The generations without those of shadows."""
        return frozenset(self.generations) - self.shadow.keys()

    def pieces(self, generation: int) -> frozenset[str]:
        """Return the names that the graph of a generation may call here: the part, or its loaded segments."""
        return frozenset(held.part or self.key.part for held in self.holds if generation in held.generations)

    def snapshots_of(self, generation: int) -> frozenset[tuple[str, int]]:
        """Return the part or segment and the number of each snapshot loaded for a generation."""
        return frozenset((h.part or self.key.part, h.snapshot) for h in self.holds if generation in h.generations)

    def replicas_of(self, generation: int) -> int:
        """Return the number of processes with a generation."""
        if generation in self.shadow:
            return self.shadow[generation]
        if not self.own:
            return self.clients_replicas if generation in self.generations else 0
        mine = self.snapshots_of(generation)
        return sum(count for other, count in self.own.items() if self.snapshots_of(other) == mine)


class DeploymentStatus(Value):
    """A deployment's wanted and observed replica counts."""

    key: DeploymentKey
    wanted: int
    ready: int
    generations: tuple[int, ...] = ()
