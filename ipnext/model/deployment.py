"""What the infrastructure is told to run, and what it reports back."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from ipnext.model.registry import PartGraph, SyncPolicy
from ipnext.model.value import Name, Value


class DeploymentKey(Value):
    """Names a replica set: one part of a model in a region on a hardware kind."""

    model: Name
    part: Name
    region: Name
    hardware: Name

    def __str__(self) -> str:
        return f"{self.model}.{self.part}.{self.region}.{self.hardware}"


class HeldSnapshot(Value):
    """A snapshot that each replica of a deployment holds, and the generations it answers for."""

    part: Name | None = None
    """The segment of a split that it is of; None: the deployment's part itself."""
    snapshot: int = Field(ge=1)
    digest: str
    uri: str
    generations: tuple[int, ...] = Field(min_length=1)


class Deployment(Value):
    """The wanted state of one replica set. Applying the same one twice changes nothing."""

    key: DeploymentKey
    replicas: int = Field(ge=0)
    engine: str
    units: float = Field(gt=0)
    qps: float = Field(gt=0)
    """Throughput of one replica."""
    memory_bytes: int | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    holds: tuple[HeldSnapshot, ...] = ()
    own: Mapping[int, int] = Field(default_factory=dict)
    """Generation -> processes that hold it and nothing else, `replicas` in all; empty: every process holds everything."""

    @property
    def generations(self) -> tuple[int, ...]:
        """All generations that the replicas answer for, ascending."""
        return tuple(sorted({g for held in self.holds for g in held.generations}))

    def pieces(self, generation: int) -> frozenset[str]:
        """What the graph of a generation may call here: the part, or those of its segments that are held."""
        return frozenset(held.part or self.key.part for held in self.holds if generation in held.generations)

    def snapshots_of(self, generation: int) -> frozenset[tuple[str, int]]:
        """Part or segment and number of all that is held for a generation."""
        return frozenset((h.part or self.key.part, h.snapshot) for h in self.holds if generation in h.generations)

    def replicas_of(self, generation: int) -> int:
        """Processes that hold a generation."""
        if not self.own:
            return self.replicas if generation in self.generations else 0
        mine = self.snapshots_of(generation)
        return sum(count for other, count in self.own.items() if self.snapshots_of(other) == mine)


class ReplicaPhase(StrEnum):
    """Where a replica's process stands."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    FAILED = "failed"


class LoadFailure(Value):
    """A snapshot that a replica could not load. `code` is an error code of `ipnext.errors`."""

    snapshot: int
    generations: tuple[int, ...]
    code: str
    message: str


class Replica(Value):
    """One process as observed. It takes traffic for the generations in `ready` only: it has all of them that it holds."""

    id: str
    key: DeploymentKey
    phase: ReplicaPhase
    url: str | None = None
    pid: int | None = None
    ready: tuple[int, ...] = ()
    failures: tuple[LoadFailure, ...] = ()
    restarts: int = 0
    message: str | None = None


class SnapshotFacts(Value):
    """What a router has to know of a snapshot to let another one of the same part answer in its place."""

    created_at: datetime
    signature: str
    """Digest of its signature: only snapshots of one signature stand in for each other."""


class ServedGeneration(Value):
    """What a router needs to answer with one generation of a model."""

    generation: int
    graph: PartGraph
    snapshots: Mapping[str, int]
    """Part -> snapshot number."""
    sync: SyncPolicy = SyncPolicy()
    facts: Mapping[str, SnapshotFacts] = Field(default_factory=dict)
    """Part -> facts of its snapshot; a part that has none answers with exactly this snapshot."""


class RouteShare(Value):
    """Fraction of a region's requests that go to a generation in a serving region."""

    to: Name
    generation: int
    fraction: float = Field(ge=0, le=1.000001)


class RouteTable(Value):
    """How the gateway of `region` answers requests for `model`. A later revision replaces an earlier one.

    `shares` choose region and generation by weight; `served` lists every generation that the region's router may
    answer with, those without traffic included (a client may pin them by header).
    """

    model: Name
    region: Name
    revision: int = Field(ge=1)
    shares: tuple[RouteShare, ...]
    served: tuple[ServedGeneration, ...]


class GenerationTraffic(Value):
    """Requests of one generation as the region's router counted them since it started."""

    model: Name
    generation: int
    requests: int = 0
    errors: int = 0
    """Answers with a 5xx status."""
    non_finite: int = 0
    """Answers that held NaN or infinity."""
    in_flight: int = 0
    latency_seconds_sum: float = 0.0


class RegionState(Value):
    """What one region reports."""

    region: Name
    gateway_url: str
    replicas: tuple[Replica, ...] = ()
    routes: Mapping[str, int] = Field(default_factory=dict)
    """Model -> revision of the route table that its gateway follows."""
    traffic: tuple[GenerationTraffic, ...] = ()


class HostedSnapshot(Value):
    """One snapshot that a host process is asked to hold."""

    model: Name
    part: Name
    engine: str
    snapshot: int
    digest: str
    uri: str
    generations: tuple[int, ...]
    settings: Mapping[str, Any] = Field(default_factory=dict)


class HostHolds(Value):
    """Body of `PUT /control/holds` of a host: everything it shall hold; the rest it unloads once unused."""

    holds: tuple[HostedSnapshot, ...]


class HeldGeneration(Value):
    """A generation of a part that a host answers for."""

    model: Name
    part: Name
    generation: int
    snapshot: int


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
    """Of the whole process, its snapshots included."""
    budget_bytes: int | None = None
    snapshots: tuple[SnapshotMemory, ...] = ()


class HostState(Value):
    """Answer of `GET /control/state` of a host. A generation is in `ready` once loaded and warmed."""

    ready: tuple[HeldGeneration, ...] = ()
    loading: tuple[HeldGeneration, ...] = ()
    failures: tuple[HostFailure, ...] = ()
    in_flight: int = 0
    draining: bool = False
    memory: HostMemoryState | None = None


class PartEndpoint(Value):
    """A host process that answers for generations of a part."""

    part: Name
    url: str
    generations: tuple[int, ...]


class RoutedModel(Value):
    """All that a router knows of one model."""

    model: Name
    served: tuple[ServedGeneration, ...]
    endpoints: tuple[PartEndpoint, ...] = ()


class RouterTable(Value):
    """The file that a router follows (renamed into place by the region's agent)."""

    revision: int = Field(ge=0)
    region: Name
    models: tuple[RoutedModel, ...] = ()


class RouterState(Value):
    """Answer of `GET /control/state` of a router."""

    revision: int
    """Revision of the router table in use."""
    traffic: tuple[GenerationTraffic, ...] = ()
