"""Desired state for the infrastructure, and the state that it reports."""

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from ipnext.model.access.predictions import AccessRevision, PredictionAccess
from ipnext.model.deployment.engine_start import EngineStart
from ipnext.model.gate.shadow import ShadowComparison
from ipnext.model.gate.sketch import PredictionSketch
from ipnext.model.registry.adapter import ServedAdapter
from ipnext.model.registry.registry import PartGraph, SyncPolicy, TensorSpec
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.settings.kv_transfer import Handoff
from ipnext.model.settings.routing import RoutingPolicy
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
    """One process as observed.

    It takes traffic for the generations in `ready` only: it has all of them that it holds.
    """

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
        """The swap's target, for people; empty without a swap."""
        return f"goes over to generation {', '.join(map(str, self.coming))}" if self.coming else ""

    @property
    def doing(self) -> str:
        """The replica's activity, for people; empty if it has no swap and all its engines answer."""
        going = [self.going_over] if self.going_over else []
        return "; ".join([*going, *(start.text for start in self.starts)])

    @property
    def note(self) -> str:
        """The replica's failures, message, activity and swaps, for people."""
        failures = [failure.message for failure in self.failures]
        told = [self.message] if self.message and not failures else []
        doing = [self.doing] if self.doing else []
        return "; ".join([*failures, *told, *doing, *(swap.text for swap in self.swaps)])


class SnapshotFacts(Value):
    """The facts of a snapshot that a router needs to let another one of the same part answer in its place."""

    created_at: datetime
    signature: str
    """Digest of its signature: only snapshots with the same signature may replace each other."""
    published: int | None = None
    """Number of the published snapshot that it was derived from: all that were derived of one count as one."""


class ServedGeneration(Value):
    """The data that a router needs to answer with one generation of a model."""

    generation: int
    graph: PartGraph
    snapshots: Mapping[str, int]
    """Part -> snapshot number."""
    by_hardware: Mapping[Name, Mapping[str, int]] = Field(default_factory=dict, exclude_if=lambda kinds: not kinds)
    """Hardware kind -> part -> number, of snapshots that hosts of this kind answer with in the place of those above.
    All of a part were derived from one published snapshot, and any of them may answer for the generation."""
    sync: SyncPolicy = SyncPolicy()
    facts: Mapping[str, SnapshotFacts] = Field(default_factory=dict)
    """Part -> facts of its snapshot; a part without facts answers with exactly this snapshot."""
    engines: Mapping[str, str] = Field(default_factory=dict)
    """Part -> engine, for engines with their own server: a router uses their protocol."""
    routing: Mapping[str, RoutingPolicy] = Field(default_factory=dict)
    """Part -> the router's policy for the choice of an engine; default `prefix`."""
    contexts: Mapping[str, int] = Field(default_factory=dict)
    """Part -> most tokens of a prompt and its answer together, if the manifest states it."""
    handoff: Handoff | None = None
    """The two parts with their own servers that answer a request one after the other."""
    adapters: Mapping[str, ServedAdapter] = Field(default_factory=dict)
    """Part that is an adapter -> its name in its engines."""
    inputs: tuple[TensorSpec, ...] = ()
    """Tensors of an OpenAI request beside its prompt, for the nodes of a graph that ends in a generator."""

    def snapshot_on(self, part: str, hardware: str) -> int:
        """Return the number of the snapshot with which hosts of a hardware kind answer for a part."""
        return self.by_hardware.get(hardware, {}).get(part, self.snapshots[part])

    @property
    def named(self) -> tuple[tuple[str, int], ...]:
        """(part, number) of all snapshots that answer, on whatever hardware."""
        others = (pair for numbers in self.by_hardware.values() for pair in numbers.items())
        return tuple(dict.fromkeys((*self.snapshots.items(), *others)))


class RouteShare(Value):
    """Fraction of a region's requests that go to a generation in a serving region."""

    to: Name
    generation: int
    fraction: float = Field(ge=0, le=1.000001)


SHADOW_IN_FLIGHT: Final = 8
"""Default for the mirrored requests of a model that a router has under way at once."""
SHADOW_SECONDS: Final = 10.0
"""Default for the longest time of a mirrored request."""


class Shadow(Value):
    """A generation that answers no client: a router sends it a share of the requests that others have answered."""

    served: ServedGeneration
    """The generation, whose own snapshots alone answer, whatever its sync policy."""
    share: float = Field(gt=0, le=1)
    """Fraction of successful predictions that are mirrored."""
    max_in_flight: int = Field(default=SHADOW_IN_FLIGHT, ge=1, le=64)
    """Most mirrored requests under way in a router. Some more wait, and further ones are dropped."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Which requests are chosen follows from it. Another seed also begins another comparison."""
    deadline_seconds: float = Field(default=SHADOW_SECONDS, gt=0, le=60)
    """Longest time of a mirrored request."""

    @property
    def generation(self) -> int:
        """The number of its generation."""
        return self.served.generation

    @model_validator(mode="after")
    def _answers_predictions(self) -> "Shadow":
        _refuse_engines(self.served)
        return self


def _refuse_engines(served: ServedGeneration) -> None:
    if served.engines:
        names = ", ".join(sorted(served.engines))
        msg = (
            f"generation {served.generation} has parts with an engine of their own ({names}); generated answers and "
            "streams are not compared, so such a model has no shadow"
        )
        raise ValueError(msg)


def refuse_served(shadow: Shadow, numbers: Collection[int], places: str) -> None:
    """Raise ValueError if a shadow's generation is one of these, which answer clients."""
    if shadow.generation in numbers:
        msg = f"shadow: generation {shadow.generation} is in {places}; a shadow answers no client"
        raise ValueError(msg)


class RouteTable(Value):
    """The rules by which the gateway of `region` answers requests for `model`.

    A later revision replaces an earlier one. `shares` choose region and generation by weight; `served` lists every
    generation that the region's router may answer with, including those without traffic (a client may pin them by
    header).
    """

    model: Name
    region: Name
    revision: int = Field(ge=1)
    shares: tuple[RouteShare, ...]
    served: tuple[ServedGeneration, ...]
    access: PredictionAccess = "open"
    """The manifest's access at the time of the table. The region's access list is newer and wins if it has the
    model."""
    unmet_rules: tuple[str, ...] = ()
    """Rules of the plan that leave the region's users without a serving region; read only if `shares` is empty. For
    a model that has never served: the reason."""

    pending: bool = False
    """Whether only a manifest that does not serve yet names these users. No transition has written the table, and none
    counts on its region."""

    shadow: Shadow | None = None
    """The generation to which the region's router mirrors requests; it is neither in `served` nor in `shares`."""

    @model_validator(mode="after")
    def _shadow_is_apart(self) -> "RouteTable":
        if self.shadow is not None:
            refuse_served(self.shadow, {one.generation for one in self.served}, "`served`")
            refuse_served(self.shadow, {share.generation for share in self.shares}, "`shares`")
            if not self.served:
                msg = "shadow: `served` has no generation whose answers it could be compared with"
                raise ValueError(msg)
            for one in self.served:
                _refuse_engines(one)
        return self

    @property
    def answering(self) -> frozenset[int]:
        """The generations that answer the region's users."""
        return frozenset(share.generation for share in self.shares if share.fraction > 0)

    @property
    def refuses(self) -> bool:
        """Whether the table has no shares and lists no generation: it only states the reason."""
        return not self.shares and not self.served


class ChosenTraffic(Value):
    """Requests whose generation the gateway of one region chose by weight: the evidence of gates."""

    requests: int = 0
    """Those that ended, without `withdrawn` ones."""
    errors: int = 0
    """Answers with a 5xx status, and answers that an engine did not complete."""
    non_finite: int = 0
    failed: int = 0
    """Answers that are 5xx or not finite; one that is both counts once."""
    broken: int = 0
    """Answers that an engine began and did not complete. `failed` has none of them."""
    withdrawn: int = 0
    """Requests that the client ended before an answer: it left, or its deadline was too short."""
    left: int = 0
    """Answers that the client did not read to their end."""
    under_way: int = 0
    """Requests that have not ended yet."""
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Buckets as in GenerationTraffic, here and below."""
    first_token: Mapping[int, int] = Field(default_factory=dict)
    token: Mapping[int, int] = Field(default_factory=dict)


class GenerationTraffic(Value):
    """Requests of one generation as the region's router counted them since its start."""

    model: Name
    generation: int
    requests: int = 0
    errors: int = 0
    """Answers with a 5xx status."""
    non_finite: int = 0
    """Answers with NaN or infinity whose requests had none."""
    in_flight: int = 0
    latency_seconds_sum: float = 0.0
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Bucket of `ipnext.model.gate.sketch.LATENCY_SECONDS` -> answers with status 200 and that latency."""
    first_token: Mapping[int, int] = Field(default_factory=dict)
    """The same for the time to the first piece of streamed answers."""
    token: Mapping[int, int] = Field(default_factory=dict)
    """The same for the mean time between two pieces of an answer."""
    predictions: Mapping[str, PredictionSketch] = Field(default_factory=dict)
    """Output -> sketch of its numbers, from sampled answers with status 200 to requests that a gateway chose."""
    chosen: Mapping[Name, ChosenTraffic] = Field(default_factory=dict)
    """Region of the gateway that chose this generation by weight -> the subset of these counts that gates judge."""


class RegionState(Value):
    """The report of one region."""

    region: Name
    gateway_url: str
    peer_url: str = ""
    """The address to which gateways of other regions send requests for this one."""
    replicas: tuple[Replica, ...] = ()
    routes: Mapping[str, int] = Field(default_factory=dict)
    """Model -> revision of the route table in use at its gateway."""
    traffic: tuple[GenerationTraffic, ...] = ()
    token: str = ""
    """Identifies the state of replicas and routes, for `Infrastructure.await_change`. Empty: the report covers all
    models, or the region does not support it."""
    access_behind_seconds: float | None = Field(default=None, ge=0)
    """Time since the region has had a newer access list than the one that its router goes by; None: it has none. Only
    in reports of all models."""
    shadows: tuple[ShadowComparison, ...] = ()
    """Comparisons of shadows in its router, one for each model that has one."""

    def only(self, models: Collection[str] | None) -> "RegionState":
        """Return the report limited to some models; None: all."""
        if models is None:
            return self
        return RegionState(
            region=self.region,
            gateway_url=self.gateway_url,
            peer_url=self.peer_url,
            replicas=tuple(replica for replica in self.replicas if replica.key.model in models),
            routes={model: revision for model, revision in self.routes.items() if model in models},
            traffic=tuple(count for count in self.traffic if count.model in models),
            shadows=tuple(found for found in self.shadows if found.model in models),
        )


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


class PartEndpoint(Value):
    """A process that answers for generations of a part: a host, or its engine."""

    part: Name
    url: str
    generations: tuple[int, ...]
    answers_as: str | None = None
    """The `model` that an engine writes into its answers; routers reject answers with another name. None: not
    checked."""
    hardware: str = Field(default="", exclude_if=lambda kind: not kind)
    """The hardware kind of its host; empty if its model answers with the same snapshots on all kinds."""


class RoutedModel(Value):
    """A router's data about one model."""

    model: Name
    served: tuple[ServedGeneration, ...]
    endpoints: tuple[PartEndpoint, ...] = ()
    swap: bool = False
    """Whether processes swap from one generation to another: then either may answer a request that no client has
    pinned."""
    coming: tuple[int, ...] = ()
    """Generations to which processes are swapping: a request that finds no engine may wait for them."""
    drain_seconds: float = Field(default=DRAIN_SECONDS, ge=0)
    """Longest time for requests under way after their process leaves, or after the router was asked to end."""
    swap_wait_seconds: float = Field(default=STREAM_DRAIN_SECONDS, ge=0)
    """Longest wait of a request for a swapping process."""
    access: PredictionAccess = "open"
    """As in the route table."""
    shadow: Shadow | None = None
    """As in the route table."""

    @model_validator(mode="after")
    def _shadow_is_apart(self) -> "RoutedModel":
        if self.shadow is not None:
            refuse_served(self.shadow, {one.generation for one in self.served}, "`served`")
        return self


class GenerationShares(Value):
    """The shares by which a router chooses the generation of a model's OpenAI requests.

    They come from the region's route table.
    """

    model: Name
    shares: tuple[RouteShare, ...] = ()
    """Shares with traffic to this region and to others whose gateways are known, one for each region and generation."""
    refusal: str = ""
    """Reason for which requests are refused if there are no shares."""
    access: PredictionAccess = "open"
    """As in the route table."""


class RouterTable(Value):
    """The router's input file (renamed into place by the region's agent)."""

    revision: int = Field(ge=0)
    region: Name
    models: tuple[RoutedModel, ...] = ()
    choices: tuple[GenerationShares, ...] = ()
    """Of each model that answers OpenAI requests here or in another region. Of a model without an entry the newest
    ready generation answers, or the one that the request names."""
    egress: str = ""
    """URL of the gateway's socket for requests that other regions answer."""


class RouterState(Value):
    """Answer of `GET /control/state` of a router."""

    revision: int
    """Revision of the router table in use."""
    traffic: tuple[GenerationTraffic, ...] = ()
    engines: Mapping[str, int] = Field(default_factory=dict)
    """URL of an engine with its own server, or of the gateway's egress -> its requests from this router; those without
    requests are left out."""
    draining: bool = False
    """Whether it is about to end: it accepts nothing new, and finishes the requests under way."""
    access: AccessRevision = AccessRevision(revision=0)
    """The access list that it goes by."""
    shadows: tuple[ShadowComparison, ...] = ()
    """Of each model with a shadow."""
