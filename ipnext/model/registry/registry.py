"""The registry's types: parts and their graph, snapshots, generations, the sync policy."""

from collections.abc import Collection, Mapping
from datetime import datetime
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, FailFast, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ipnext.model.fleet import HardwareOption
from ipnext.model.registry.checkpoint import Checkpoint
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.settings.prompt import PromptTemplate
from ipnext.model.value import EngineName, Name, Sha256, Value, WrittenValue, digest_of

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
"""Tensor datatypes of the Open Inference Protocol V2."""

SNAPSHOT_FORMAT: Literal["ipnext/snapshot/v1"] = "ipnext/snapshot/v1"
SNAPSHOT_FILE = "snapshot.json"
"""Written last into a snapshot's directory: a directory without it is not a snapshot."""

SIGNATURE_FILE = "snapshot.json.sig"
"""Beside the manifest, if the snapshot is signed. It is no file of the snapshot, so the digest does not change."""

SEEN_FILE = ".seen.json"
"""The hashed files of a fetched snapshot, on hosts (`artifacts.seen_files`)."""

OWN_FILES = frozenset({SNAPSHOT_FILE, SIGNATURE_FILE, SEEN_FILE})
"""Names that neither a file nor a directory of a snapshot has: the platform writes them beside its files."""

DELTA_FILE = "delta.json"
"""A snapshot with this file is a delta: its weights are those of its parent with some rows replaced."""

DELTA_WEIGHTS_FILE = "delta.safetensors"

REQUEST = "request"
"""Name of the pseudo-node with the tensors of the request."""


MOST_TENSORS: Final = 4096
"""Of a part's inputs, of its outputs, and of a node's inputs."""
MOST_DIMENSIONS: Final = 64
NAMED: Final = 10
"""Names that a message lists."""


def _shown_names(names: Collection[str]) -> str:
    more = len(names) - NAMED
    return f"{list(names)[:NAMED]}" + (f" and {more} more" if more > 0 else "")


def _printable(name: str) -> str:
    if not name.isprintable():
        msg = f"{name!r} has characters that can't be shown; allowed: printable ones"
        raise ValueError(msg)
    return name


TensorName = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_printable)]
"""Of a tensor, as requests, graphs and messages name it."""
Reference = Annotated[str, Field(max_length=600), AfterValidator(_printable)]
"""`request.NAME` or `NODE.OUTPUT`."""


class TensorSpec(Value):
    """Name, datatype and shape of a tensor; -1 stands for the batch or another free dimension."""

    name: TensorName
    datatype: Datatype
    shape: tuple[int, ...] = Field(max_length=MOST_DIMENSIONS)


TensorSpecs = Annotated[tuple[TensorSpec, ...], FailFast(), Field(max_length=MOST_TENSORS)]


class Signature(Value):
    """The tensors that a part takes and gives."""

    inputs: TensorSpecs
    outputs: TensorSpecs
    request_inputs: tuple[TensorName, ...] = Field(default=(), max_length=MOST_TENSORS)
    """Inputs that a request may give once, with batch 1, beside others of any batch; they stand for every row."""

    @model_validator(mode="after")
    def _request_inputs_are_inputs(self) -> Self:
        batched = {spec.name for spec in self.inputs if spec.shape and spec.shape[0] == -1}
        unknown = set(self.request_inputs) - batched
        if unknown:
            msg = (
                f"signature.request_inputs: {_shown_names(sorted(unknown))} are no inputs with a free "
                "dimension 0; such are "
                f"{_shown_names(sorted(batched))}"
            )
            raise ValueError(msg)
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty value, so that an older manifest keeps its digest."""
        plain: dict[str, Any] = serialize(self)
        return plain if self.request_inputs else {key: plain[key] for key in plain if key != "request_inputs"}


MOST_PATH_CHARACTERS: Final = 1024
"""Of a file's path within its snapshot."""


class ArtifactFile(Value):
    """One file of a snapshot: path relative to the snapshot's directory, SHA-256 and size in bytes."""

    path: str = Field(min_length=1, max_length=MOST_PATH_CHARACTERS)
    sha256: Sha256
    size_bytes: int = Field(ge=0)


MOST_FILES: Final = 10_000
"""Files of one snapshot."""
MOST_PRODUCERS: Final = 64
ProducerText = Annotated[str, Field(max_length=1024)]


class SnapshotManifest(Value):
    """`snapshot.json`: what a snapshot consists of. Its digest names the snapshot's content."""

    format: Literal["ipnext/snapshot/v1"] = SNAPSHOT_FORMAT
    engine: EngineName
    signature: Signature
    files: Annotated[tuple[ArtifactFile, ...], FailFast(), Field(max_length=MOST_FILES)]
    producer: Mapping[ProducerText, ProducerText] = Field(default_factory=dict, max_length=MOST_PRODUCERS)
    """Tool names and versions that wrote it, such as {"torch": "2.13.0"}."""
    parent: Sha256 | None = None
    """Digest of the snapshot this one was derived from or trained on from."""
    checkpoint: Checkpoint | None = None
    """What it says of itself where it is a checkpoint."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an absent checkpoint, so that an older manifest keeps its digest."""
        plain: dict[str, Any] = serialize(self)
        return plain if self.checkpoint else {key: plain[key] for key in plain if key != "checkpoint"}

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical manifest: equal content, equal digest."""
        return digest_of(self)

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def is_delta(self) -> bool:
        """Whether the snapshot has only changes of its parent."""
        return any(file.path == DELTA_FILE for file in self.files)


class SnapshotSource(Value):
    """One part's published content: its manifest and its location in the artifact store."""

    manifest: SnapshotManifest
    uri: str
    trained_at: datetime | None = None
    """When its training ended; None if that is not known."""


class Snapshot(Value):
    """One immutable version of one part. Numbers rise by one for each (model, part), from 1."""

    model: Name
    part: Name
    number: int = Field(ge=1)
    digest: Sha256
    uri: str
    manifest: SnapshotManifest
    created_at: datetime
    """When it was published."""
    trained_at: datetime | None = None
    """When its training ended; None if that is not known."""
    derived_from: int | None = Field(default=None, ge=1)
    """Number of the published snapshot that the platform derived it from; None if it was published."""
    hardware: tuple[Name, ...] = Field(default=(), exclude_if=lambda kinds: not kinds)
    """Hardware kinds that it was derived for, or the snapshot that it was cut from; empty: all others of its part, or
    it was published."""


class GraphNode(Value):
    """One call of a part in a request. `inputs` maps the part's input name to `request.NAME` or `NODE.OUTPUT`."""

    name: Name
    part: Name
    inputs: Mapping[TensorName, Reference] = Field(max_length=MOST_TENSORS)
    prompt: PromptTemplate | None = None
    """Of a node that generates: how its prompt is made of its inputs; None: the request goes to its engine as it
    came."""

    @model_validator(mode="after")
    def _prompt_takes_the_inputs(self) -> Self:
        named = self.inputs.keys() if self.prompt is None else self.prompt.inputs
        for name in sorted(named - self.inputs.keys()):
            msg = (
                f"graph.nodes.{self.name}.prompt: {name!r} is no input of the node; its inputs: "
                f"{_shown_names(sorted(self.inputs))}"
            )
            raise ValueError(msg)
        for name in sorted(self.inputs.keys() - named):
            msg = f"graph.nodes.{self.name}.inputs.{name}: the node's prompt has no place for it"
            raise ValueError(msg)
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an absent prompt, so that an older graph stays the same."""
        plain: dict[str, Any] = serialize(self)
        return plain if self.prompt else {key: plain[key] for key in plain if key != "prompt"}


MOST_NODES: Final = 4096
"""Nodes of a graph, and its outputs."""


class PartGraph(Value):
    """The DAG that answers a request. `outputs` maps the answer's names to `NODE.OUTPUT`."""

    nodes: Annotated[tuple[GraphNode, ...], FailFast(), Field(min_length=1, max_length=MOST_NODES)]
    outputs: Mapping[TensorName, Reference] = Field(min_length=1, max_length=MOST_NODES)

    @model_validator(mode="after")
    def _is_a_dag(self) -> Self:
        names = [node.name for node in self.nodes]
        known = frozenset(names)
        if len(known) != len(names):
            msg = f"graph.nodes: names must differ, got {_shown_names(names)}"
            raise ValueError(msg)
        needed = {node.name: {source_node(s) for s in node.inputs.values()} - {REQUEST} for node in self.nodes}
        for name, needs in needed.items():
            for need in sorted(needs - known):
                msg = f"graph.nodes.{name}.inputs: unknown node {need!r}; known: {_shown_names([REQUEST, *names])}"
                raise ValueError(msg)
        try:
            TopologicalSorter(needed).prepare()
        except CycleError as error:
            msg = f"graph.nodes: a circle among {sorted(set(error.args[1]))}; a graph must be acyclic"
            raise ValueError(msg) from error
        for output, source in self.outputs.items():
            if source_node(source) not in known:
                msg = f"graph.outputs.{output}: unknown node in {source!r}; known: {_shown_names(names)}"
                raise ValueError(msg)
        return self


def source_node(source: str) -> str:
    """Return the node of a reference such as `sparse.embeddings` -> `sparse`.

    Raises:
        ValueError: the reference has another form.
    """
    node, dot, tensor = source.partition(".")
    if not (node and dot and tensor):
        msg = f"{source!r} is not of the form NODE.TENSOR (or request.TENSOR)"
        raise ValueError(msg)
    return node


def source_tensor(source: str) -> str:
    """Return the tensor of a reference such as `sparse.embeddings` -> `embeddings`."""
    return source.partition(".")[2]


def single_part_graph(part: str, signature: Signature) -> PartGraph:
    """Return the graph of a model with one part: the request's tensors go in, the part's outputs come out."""
    node = GraphNode(name=part, part=part, inputs={t.name: f"{REQUEST}.{t.name}" for t in signature.inputs})
    return PartGraph(nodes=(node,), outputs={t.name: f"{part}.{t.name}" for t in signature.outputs})


class SyncPolicy(WrittenValue):
    """Which snapshots may answer together.

    `locked`: one generation only. `bounded`: parts may differ by `max_snapshots` or `max_seconds`.
    `unsynced`: the newest of each part.
    """

    policy: Literal["locked", "bounded", "unsynced"] = "locked"
    max_snapshots: int | None = Field(default=None, ge=0)
    max_seconds: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _bounds_belong_to_bounded(self) -> Self:
        bounds = (self.max_snapshots, self.max_seconds)
        if self.policy == "bounded" and bounds == (None, None):
            msg = "policy 'bounded' needs maxSnapshots or maxSeconds"
            raise ValueError(msg)
        if self.policy != "bounded" and bounds != (None, None):
            msg = f"maxSnapshots and maxSeconds belong to policy 'bounded', not {self.policy!r}"
            raise ValueError(msg)
        return self


class GenerationState(StrEnum):
    """Where a generation stands."""

    PENDING = "pending"
    VALIDATED = "validated"
    REFUSED = "refused"
    SUPERSEDED = "superseded"
    ROLLING_OUT = "rolling_out"
    SERVING = "serving"
    WARM = "warm"
    """Answers no traffic, still loaded: a rollback reaches it without a load."""
    FAILED = "failed"
    RETIRED = "retired"


class Segment(Value):
    """What a part of a split computes between two waits for others: a node of the graph, with a snapshot of its own."""

    name: Name
    stage: int = Field(ge=0)
    """0 if it waits for the request only."""
    snapshot: int = Field(ge=1)
    size_bytes: int = Field(ge=0)
    """Bytes of its own weights."""


class LayoutPart(Value):
    """A part that a split makes. Its hosts hold all of its segments."""

    name: Name
    modules: tuple[str, ...]
    size_bytes: int = Field(ge=0)
    hardware: tuple[HardwareOption, ...] = Field(min_length=1)
    """As the manifest had it when the model was cut."""
    segments: tuple[Segment, ...] = Field(min_length=1)


class KindCut(Value):
    """The cut of a snapshot that was derived for single hardware kinds: the same parts, segments and tensors."""

    digest: Sha256
    """Of the snapshot that was cut."""
    segments: Mapping[Name, int]
    """Segment -> number of its snapshot, of those with other contents than on most hardware kinds."""


class SplitLayout(Value):
    """How one generation is cut into parts, and the graph that joins the pieces. Each node's part is a segment."""

    source: Name
    """The part that was published and is cut."""
    digest: Sha256
    """Of the snapshot that was cut: the published one, or what the steps without hardware kinds led to."""
    cut: Sha256
    """Digest of the policy, hardware left out."""
    form: int = Field(default=1, ge=1)
    """What the same bytes and policy give differs from one form to another: a version of how models are cut."""
    equal_at: tuple[int, ...]
    """Batch sizes at which every bit of every output was compared with the uncut snapshot."""
    parts: tuple[LayoutPart, ...] = Field(min_length=1)
    graph: PartGraph
    by_hardware: Mapping[Name, KindCut] = Field(default_factory=dict, exclude_if=lambda kinds: not kinds)
    """Hardware kind -> the cut of its own derivative, of kinds that have one."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of all parts, by stage and name."""
        found = (segment for part in self.parts for segment in part.segments)
        return tuple(sorted(found, key=lambda segment: (segment.stage, segment.name)))

    @property
    def numbers(self) -> Mapping[str, int]:
        """Segment -> number of its snapshot, on kinds without a derivative of their own."""
        return {segment.name: segment.snapshot for segment in self.segments}

    @property
    def named(self) -> frozenset[tuple[str, int]]:
        """(segment, number) of the snapshots of all hardware kinds."""
        others = (pair for cut in self.by_hardware.values() for pair in cut.segments.items())
        return frozenset((*self.numbers.items(), *others))


class HostedPart(Value):
    """A part with processes of its own, as a generation served with it last."""

    name: Name
    engine: EngineName
    hardware: tuple[HardwareOption, ...] = Field(min_length=1)
    """With the units of a replica and its throughput, measured or declared."""
    min_replicas: int = Field(ge=0)
    memory_bytes: int | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)


class Hosting(Value):
    """The hosted parts that a generation served with last; for a cut generation: the part that was cut."""

    parts: tuple[HostedPart, ...]


class Generation(Value):
    """One snapshot for every part of a model: the set that answers a request together."""

    model: Name
    number: int = Field(ge=1)
    snapshots: Mapping[str, int]
    """Part name -> snapshot number, as published."""
    derived: Derivatives | None = None
    """The snapshots that serve in place of the published ones; None if the manifest has no pipeline."""
    layout: SplitLayout | None = None
    """How it is cut, if the manifest splits it."""
    graph: PartGraph | None = None
    """The graph by which it served last, if a manifest gave it one; a cut generation has that of its layout."""
    hosting: Hosting | None = None
    """None before it served: its parts are those of the manifest that it is rolled out by."""
    adapters: Mapping[str, str] = Field(default_factory=dict)
    """Part that is an adapter -> the part whose engines load it."""
    state: GenerationState = GenerationState.PENDING
    reason: str | None = None
    message: str | None = None
    created_at: datetime
    serving_at: datetime | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts with hosts: those of the layout if the generation is cut; adapters have no hosts."""
        if self.layout is not None:
            return tuple(part.name for part in self.layout.parts)
        return tuple(part for part in self.snapshots if part not in self.adapters)

    @property
    def optimized(self) -> Mapping[str, int]:
        """Part -> number of the snapshot that its pipeline led to: the published one if it has none.

        Hardware kinds with steps of their own have others: see `optimized_on`.
        """
        return self.snapshots if self.derived is None else {**self.snapshots, **self.derived.parts}

    def optimized_on(self, hardware: str) -> Mapping[str, int]:
        """Map each part to the number of its snapshot on a hardware kind."""
        own = {} if self.derived is None else self.derived.by_hardware.get(hardware, {})
        return {**self.optimized, **own}

    @property
    def by_hardware(self) -> Mapping[str, Mapping[str, int]]:
        """Hardware kind -> part -> number, of the snapshots that are others there than those of `answering`.

        For cut generations: segment -> number.
        """
        if self.layout is not None:
            return {kind: cut.segments for kind, cut in self.layout.by_hardware.items() if cut.segments}
        return {} if self.derived is None else self.derived.by_hardware

    @property
    def named(self) -> tuple[tuple[str, int], ...]:
        """(part or segment, number) of the published snapshots, and of all that the platform made of them.

        For whatever hardware, cut or not.
        """
        derived = () if self.derived is None else sorted(self.derived.named)
        cut = () if self.layout is None else sorted(self.layout.named)
        return tuple(dict.fromkeys((*self.snapshots.items(), *self.answering.items(), *derived, *cut)))

    @property
    def answering(self) -> Mapping[str, int]:
        """Part of a graph's node -> number of the snapshot that answers. For a cut generation: segments.

        Replicas on the hardware kinds of `by_hardware` answer with those named there.
        """
        if self.layout is None:
            return self.optimized
        return self.layout.numbers

    def snapshots_of(self, part: str, hardware: str) -> Mapping[str, int]:
        """Return what a host of `part` on a hardware kind loads: part, its adapters or segments -> snapshot number.

        Empty if the generation lacks the part.
        """
        if self.layout is None:
            if part not in self.parts:
                return {}
            numbers = self.optimized_on(hardware)
            return {name: numbers[name] for name in (part, *self.adapters_of(part))}
        numbers = {**self.answering, **self.by_hardware.get(hardware, {})}
        segments = (segment for own in self.layout.parts if own.name == part for segment in own.segments)
        return {segment.name: numbers[segment.name] for segment in segments}

    def adapters_of(self, part: str) -> tuple[str, ...]:
        """Return the adapters based on a part."""
        return tuple(name for name, base in self.adapters.items() if base == part)
