"""What the infrastructure is told to run, and what it reports back."""

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Literal

from pydantic import Field

from ipnext.model.adapter import ServedAdapter
from ipnext.model.kv_transfer import Handoff
from ipnext.model.predictions import PredictionAccess
from ipnext.model.registry import PartGraph, SyncPolicy, TensorSpec
from ipnext.model.routing import RoutingPolicy
from ipnext.model.signing import SignerPolicy
from ipnext.model.sketch import PredictionSketch
from ipnext.model.starting import EngineStart
from ipnext.model.value import Name, Value

SERVING_ENGINES: Final = frozenset({"vllm"})
"""Engines that serve by themselves, each in a protocol of its own: vLLM in OpenAI's."""

DRAIN_SECONDS: Final = 10.0
"""How long requests under way may go on when what answers them is to end, where nothing is said."""

STREAM_DRAIN_SECONDS: Final = 300.0
"""A generated answer streams for minutes: that long may one that is under way keep its replica, where nothing else is said."""


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
    """The segment of a split, or the adapter, that it is of; None: the deployment's part itself."""
    snapshot: int = Field(ge=1)
    digest: str
    uri: str
    generations: tuple[int, ...] = Field(min_length=1)
    signers: SignerPolicy | None = None
    """Who has to have signed it; None for what the platform itself has cut."""
    adapter: bool = False
    """Whether it is loaded into the engine of the deployment's part."""
    adapters: int = Field(default=0, ge=0)
    """Adapters that stand on it in each of its generations: an engine has room for them from its start, or never."""

    @property
    def content(self) -> str:
        """What a process that has it can answer for: its digest, and whether it can take adapters."""
        return loaded_content(self.digest, self.adapters)


def loaded_content(digest: str, adapters: int) -> str:
    """Names a loaded snapshot by what it can answer for."""
    return f"{digest}+{adapters}" if adapters else digest


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
    drain_seconds: float | None = None
    """Longest wait for requests in flight before a replica ends; None: the region's own."""
    holds: tuple[HeldSnapshot, ...] = ()
    own: Mapping[int, int] = Field(default_factory=dict)
    """Generation -> processes that hold it and nothing else, `replicas` in all; empty: every process holds everything."""
    swap: bool = False
    """With `own`: a process that no generation has a place for goes over to one that lacks some, before new ones are started."""
    swap_wait_seconds: float | None = None
    """With `swap`: how long a request waits at most for a process that goes over; None: as long as requests in flight may take."""

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
    adapter: Name | None = None
    """The part that it is of, where that is an adapter on the replica's own."""


SwapState = Literal["swapping", "swapped", "started_anew"]


class EngineSwap(Value):
    """An engine that went over, or goes over, from one snapshot of a part to another."""

    model: Name
    part: Name
    former: int
    snapshot: int
    state: SwapState
    """`started_anew`: it could not go over, so it was ended, and another engine was started with the snapshot."""
    seconds: float = 0.0
    """In which it took no request."""
    message: str | None = None
    """Why it was started anew."""

    @property
    def text(self) -> str:
        """For people."""
        step = f"{self.part} from snapshot {self.former} to {self.snapshot}"
        match self.state:
            case "swapping":
                return f"swaps {step}"
            case "swapped":
                return f"swapped {step} in {self.seconds:.1f} s"
            case "started_anew":
                return f"could not swap {step}, started anew: {self.message}"


class Replica(Value):
    """One process as observed. It takes traffic for the generations in `ready` only: it has all of them that it holds."""

    id: str
    key: DeploymentKey
    phase: ReplicaPhase
    url: str | None = None
    pid: int | None = None
    ready: tuple[int, ...] = ()
    engines: Mapping[int, str] = Field(default_factory=dict)
    """Generation -> where an engine that serves by itself answers for it."""
    failures: tuple[LoadFailure, ...] = ()
    restarts: int = 0
    message: str | None = None
    coming: tuple[int, ...] = ()
    """Generations that it goes over to, in the place of those that it has, and is not ready for yet."""
    swaps: tuple[EngineSwap, ...] = ()
    """How its engines last went over."""
    starts: tuple[EngineStart, ...] = ()
    """How far its engines are that do not answer yet."""
    log: str | None = None
    """The file with its output, on the machine of the region's agent; logs of its engines lie beside it."""

    @property
    def going_over(self) -> str:
        """Whereto, for people; empty where it stays."""
        return f"goes over to generation {', '.join(map(str, self.coming))}" if self.coming else ""

    @property
    def doing(self) -> str:
        """On what way it is, for people; empty where it stays and all that it has answers."""
        going = [self.going_over] if self.going_over else []
        return "; ".join([*going, *(start.text for start in self.starts)])

    @property
    def note(self) -> str:
        """All that a person should know of it now."""
        failures = [failure.message for failure in self.failures]
        told = [self.message] if self.message and not failures else []
        doing = [self.doing] if self.doing else []
        return "; ".join([*failures, *told, *doing, *(swap.text for swap in self.swaps)])


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
    engines: Mapping[str, str] = Field(default_factory=dict)
    """Part -> engine of those that serve by themselves: a router speaks their own protocol to them."""
    routing: Mapping[str, RoutingPolicy] = Field(default_factory=dict)
    """Part -> how a router picks one of its engines; `prefix` where nothing is said."""
    contexts: Mapping[str, int] = Field(default_factory=dict)
    """Part -> most tokens that a prompt and its answer have together, where the manifest says it."""
    handoff: Handoff | None = None
    """Of the parts that serve by themselves: the two that answer a request one after the other."""
    adapters: Mapping[str, ServedAdapter] = Field(default_factory=dict)
    """Part that is an adapter -> how its engines know it."""
    inputs: tuple[TensorSpec, ...] = ()
    """Tensors that an OpenAI request brings beside its prompt, for the nodes of a graph that ends in one that generates."""


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
    access: PredictionAccess = "open"
    """What the manifest said as the table was made. The region's access list says it as it is now, and wins if it has the model."""
    unmet_rules: tuple[str, ...] = ()
    """Rules of the plan that leave the region's users without a region to serve them; read only if `shares` is empty.
    Of a model that has never served: why it has not."""

    @property
    def refuses(self) -> bool:
        """Whether it sends nobody anywhere and lists no generation: all that it says is why."""
        return not self.shares and not self.served


class AsideTraffic(Value):
    """Requests of a generation that say nothing of it: clients chose it, or their deadline was too short for any. Gates leave them out."""

    requests: int = 0
    errors: int = 0
    non_finite: int = 0
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Buckets as of GenerationTraffic, here and below."""
    first_token: Mapping[int, int] = Field(default_factory=dict)
    token: Mapping[int, int] = Field(default_factory=dict)


class GenerationTraffic(Value):
    """Requests of one generation as the region's router counted them since it started."""

    model: Name
    generation: int
    requests: int = 0
    errors: int = 0
    """Answers with a 5xx status."""
    non_finite: int = 0
    """Answers that held NaN or infinity though their requests did not."""
    in_flight: int = 0
    latency_seconds_sum: float = 0.0
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Bucket of `ipnext.model.sketch.LATENCY_SECONDS` -> answers with status 200 that took so long."""
    first_token: Mapping[int, int] = Field(default_factory=dict)
    """The same of the time to the first piece, for those that streamed."""
    token: Mapping[int, int] = Field(default_factory=dict)
    """The same of the mean time between two pieces of one answer."""
    predictions: Mapping[str, PredictionSketch] = Field(default_factory=dict)
    """Output -> sketch of its numbers, from sampled answers with status 200 to requests that are not `aside`."""
    aside: AsideTraffic = Field(default_factory=AsideTraffic)
    """Those of all these that gates leave out."""


class RegionState(Value):
    """What one region reports."""

    region: Name
    gateway_url: str
    peer_url: str = ""
    """Where the gateways of other regions send requests to this one's."""
    replicas: tuple[Replica, ...] = ()
    routes: Mapping[str, int] = Field(default_factory=dict)
    """Model -> revision of the route table that its gateway follows."""
    traffic: tuple[GenerationTraffic, ...] = ()
    token: str = ""
    """Names what replicas and routes are now, for `Infrastructure.await_change`. Empty: the look was at
    all models, or the region does not tell."""

    def only(self, models: Collection[str] | None) -> "RegionState":
        """What it tells of some models; None: of all."""
        if models is None:
            return self
        return RegionState(
            region=self.region,
            gateway_url=self.gateway_url,
            peer_url=self.peer_url,
            replicas=tuple(replica for replica in self.replicas if replica.key.model in models),
            routes={model: revision for model, revision in self.routes.items() if model in models},
            traffic=tuple(count for count in self.traffic if count.model in models),
        )


class HostedSnapshot(Value):
    """One snapshot that a host process is asked to hold."""

    model: Name
    part: Name
    engine: str
    snapshot: int
    digest: str
    uri: str
    generations: tuple[int, ...]
    signers: SignerPolicy | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    adapter_of: Name | None = None
    """Of an adapter: the part in whose engines it is loaded."""
    adapters: int = Field(default=0, ge=0)
    """Adapters that stand on it in each of its generations."""
    swap: bool = False
    """Whether its engine may go over to it from another snapshot of the part, or from it to another one."""

    @property
    def content(self) -> str:
        """As of HeldSnapshot."""
        return loaded_content(self.digest, self.adapters)


class HostHolds(Value):
    """Body of `PUT /control/holds` of a host: everything it shall hold; the rest it unloads once unused."""

    holds: tuple[HostedSnapshot, ...]
    drain_seconds: float | None = None
    """How long requests may go on with what is unloaded by this; None: the host's own."""
    ending_seconds: float | None = None
    """How long they may go on when the host itself is told to end; None: the host's own."""
    coming: tuple[HostedSnapshot, ...] = ()
    """What it shall fetch and check, to hold it soon in the place of another snapshot."""
    stamp: str = ""
    """A word of the agent that nobody else knows: by it the agent sees whether the host follows its own holds."""

    @property
    def stamped(self) -> str:
        """What the host's state says of the stamp, from which it cannot be had."""
        return sha256(self.stamp.encode()).hexdigest()


class HeldGeneration(Value):
    """A generation of a part that a host answers for."""

    model: Name
    part: Name
    generation: int
    snapshot: int
    url: str | None = None
    """Where an engine that serves by itself, such as vLLM, answers for it; None: the host does."""
    answers_as: str | None = None
    """What that engine writes into its answers as `model`, which proves its snapshot; None: not known."""


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
    stamped: str | None = None
    """As of the holds that it was sent last; None: it was sent none, or does not tell."""
    fetched: tuple[str, ...] = ()
    """Digests of what is `coming` and has been fetched and checked."""
    swaps: tuple[EngineSwap, ...] = ()
    """The last swap of each engine."""
    starts: tuple[EngineStart, ...] = ()
    """Engines that do not answer yet, those that only have to be fetched included."""
    memory: HostMemoryState | None = None
    revision: int = 0
    """Rises when a load ends: `GET /control/state/after/{revision}` answers once it has risen. 0: the host does not tell."""


class PartEndpoint(Value):
    """A process that answers for generations of a part: a host, or the engine that it runs."""

    part: Name
    url: str
    generations: tuple[int, ...]
    answers_as: str | None = None
    """What an engine writes into its answers as `model`; routers pass on no answer with another name. None: not checked."""


class RoutedModel(Value):
    """All that a router knows of one model."""

    model: Name
    served: tuple[ServedGeneration, ...]
    endpoints: tuple[PartEndpoint, ...] = ()
    swap: bool = False
    """Whether processes go over from one generation to another: what no client has pinned may be answered by either then."""
    coming: tuple[int, ...] = ()
    """Generations that processes are going over to: a request that finds no engine may wait for them."""
    drain_seconds: float = Field(default=DRAIN_SECONDS, ge=0)
    """How long requests under way may go on when what answers them leaves, or the router is to end."""
    swap_wait_seconds: float = Field(default=STREAM_DRAIN_SECONDS, ge=0)
    """How long a request waits at most for a process that goes over."""
    access: PredictionAccess = "open"
    """As of the route table."""


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
    engines: Mapping[str, int] = Field(default_factory=dict)
    """URL of an engine that serves by itself -> requests that it has from this router; those without any are left out."""
    draining: bool = False
    """Whether it is about to end: it takes nothing new, and finishes what it has."""
