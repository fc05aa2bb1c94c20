"""Documents that a person writes: `kind: Model` in YAML, strict, for ranking and generative models alike.

Other modules have all other kinds.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self, TypeAlias

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator
from pydantic_core import ErrorDetails

from ipnext.errors import InvalidInput
from ipnext.model.access.owner import OwnerManifest
from ipnext.model.access.predictions import AccessSpec
from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.fleet import FleetManifest, HardwareOption, check_kinds_differ
from ipnext.model.gate.gate import GateSpec
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.model.manifest.split import MOST_HOSTED_PARTS, SplitPolicy, options_of
from ipnext.model.manifest.yaml_documents import read_documents
from ipnext.model.metadata import Metadata
from ipnext.model.registry.disaggregated import check_graph, handoff_graph, handoff_of
from ipnext.model.registry.mixed_graph import Role, check_pair_alone, check_roles
from ipnext.model.registry.profile import LatencyTarget
from ipnext.model.registry.registry import REQUEST, PartGraph, SyncPolicy, source_node
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.settings.engine import torch_settings, vllm_settings
from ipnext.model.settings.kv_transfer import Handoff
from ipnext.model.throughput import FIELDS, REQUESTS, TOKENS, Throughput, Unit
from ipnext.model.validation_errors import fault_text
from ipnext.model.value import LARGEST_FIGURE, LONGEST_SECONDS, SMALLEST_RATE, EngineName, Name, Value, WrittenValue

MOST_PARTS: Final = 256
"""Adapters included, which no plan has. The limit of other parts is MOST_HOSTED_PARTS."""
MOST_OPTIONS: Final = 64
"""Hardware options of one part."""
MOST_REGIONS: Final = 1024
"""Regions with users of one model."""
MOST_REPLICAS: Final = 100_000
MOST_KEPT_WARM: Final = 100
"""Former generations."""
MOST_BYTES: Final = 1 << 50


class PartSpec(WrittenValue):
    """One part of a model: hosted apart, or an adapter (LoRA) in the processes of another one."""

    name: Name
    engine: EngineName = "torch"
    """`torch`, `vllm`, or an entry point of the group `ipnext.engines`; an apply refuses one that is not registered."""
    adapter_of: Name | None = None
    """The part whose engines load this one beside their model. It has no hardware, demand or settings of its own."""
    hardware: tuple[HardwareOption, ...] = Field(default=(), max_length=MOST_OPTIONS)
    """Ways to run it, at least one; of an adapter none."""
    min_replicas: int = Field(default=1, ge=0, le=MOST_REPLICAS)
    memory_bytes: int | None = Field(default=None, gt=0, le=MOST_BYTES)
    latency_target: LatencyTarget | None = None
    """At which a measured replica's throughput is taken; without it, the most that was measured."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Engine settings, such as {"maxModelLen": 4096} for vLLM or {"threads": 2} for torch."""

    @property
    def role(self) -> Role:
        """The part's role: it computes, embeds or generates."""
        if self.engine != "vllm":
            return "computes"
        return "embeds" if vllm_settings(self.settings).runner == "pooling" else "generates"

    @model_validator(mode="after")
    def _runs_by_itself_or_in_another(self) -> Self:
        if self.adapter_of is not None:
            _check_adapter(self)
        elif not self.hardware:
            msg = (
                f"hardware: part {self.name!r} needs at least one of {{kind, units, qps or tokensPerSecond}}; "
                "only a part with adapterOf has none"
            )
            raise ValueError(msg)
        check_kinds_differ(self.name, (option.kind for option in self.hardware))
        return self

    @model_validator(mode="after")
    def _settings_are_known(self) -> Self:
        if self.engine == "vllm":
            vllm_settings(self.settings)
        elif self.engine == "torch":
            torch_settings(self.settings)
        return self

    @model_validator(mode="after")
    def _only_engines_of_tokens_are_measured(self) -> Self:
        if self.engine != "vllm" and (self.latency_target or any(option.profile for option in self.hardware)):
            msg = f"profile and latencyTarget: for parts of engine vllm; {self.name!r} has engine {self.engine!r}"
            raise ValueError(msg)
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out absent fields, so that the document of an older manifest stays the same."""
        plain: dict[str, Any] = serialize(self)
        if self.adapter_of is not None:
            return {key: value for key, value in plain.items() if key in _OF_ADAPTERS}
        nothing = {"adapter_of", "adapterOf"} | (set() if self.latency_target else {"latency_target", "latencyTarget"})
        return {key: value for key, value in plain.items() if key not in nothing}


_OF_ADAPTERS: Final = ("name", "engine", "adapter_of", "adapterOf")
"""Fields that an adapter has."""


def _check_adapter(part: PartSpec) -> None:
    """Check that an adapter has no other fields than it may.

    Raises:
        ValueError: it has the first such field.
    """
    if part.engine != "vllm":
        msg = f"engine: {part.engine!r} loads no adapters, so {part.name!r} can't have adapterOf; allowed: vllm"
        raise ValueError(msg)
    more = sorted(part.model_fields_set.difference(_OF_ADAPTERS))
    if more:
        field = PartSpec.model_fields[more[0]].alias or more[0]
        msg = (
            f"{field}: {part.name!r} is an adapter and runs in the processes of {part.adapter_of!r}; allowed: "
            "name, engine, adapterOf"
        )
        raise ValueError(msg)


class DemandItem(Throughput):
    """What the users of one region ask for: requests a second, or tokens a second."""

    region: Name

    @model_validator(mode="after")
    def _check_amount(self) -> Self:
        if self.unit is None:
            msg = f"{self.region}: exactly one of qps and tokensPerSecond has to stand here, got none"
            raise ValueError(msg)
        return self

    @property
    def amount(self) -> float:
        """The amount in the model's unit."""
        return self.rate or 0.0


class RolloutSpec(WrittenValue):
    """How traffic moves to a new generation. Shares are fractions of a region's traffic."""

    canary: float = Field(default=0.1, gt=0, le=1)
    max_step: float = Field(default=0.5, gt=0, le=1)
    hold_seconds: float = Field(default=0.0, ge=0, le=LONGEST_SECONDS)
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    gate: GateSpec = GateSpec()
    """What else the new generation's answers must keep."""
    deadline_seconds: float = Field(default=600.0, gt=0, le=LONGEST_SECONDS)
    refresh: Literal["auto", "in_place", "replace", "swap"] = "auto"
    """How a new snapshot comes to a part: `in_place` into the running processes, beside the former one; `replace` into
    new processes, and the former ones end; `swap` into the running processes, in the former one's place (engines that
    serve by themselves only); `auto`: in place where `memory_bytes` of every part has room for both."""
    drain_seconds: float | None = Field(default=None, ge=0, le=LONGEST_SECONDS)
    """How long requests under way may take before a replica ends; left out: the region's default, for vLLM parts
    300."""
    swap_wait_seconds: float | None = Field(default=None, ge=0, le=LONGEST_SECONDS)
    """With `refresh: swap`: how long a request waits at most for an engine that goes over; left out: as long as
    `drain_seconds`, so that the streams that it waits for end first."""
    keep_warm: int = Field(default=1, ge=0, le=MOST_KEPT_WARM)
    """Former generations that stay loaded, without traffic, so that a rollback needs no load."""
    approval: Literal["none", "canary", "each"] = "none"
    """Behind which waves a person has to approve before the run goes on: the canary, or each but the last."""
    manual_deadline_seconds: float = Field(default=86400.0, gt=0, le=LONGEST_SECONDS)
    """How long a run waits for a person (an approval, the end of a pause); then it goes back."""
    on_newer: Literal["finish", "turn"] = "finish"
    """When a newer publish comes while a generation rolls out: finish, or go back first and begin with the newer
    one."""
    when_short: Literal["surge", "dip", "wait"] = "surge"
    """Where the supply has no room for a safe way: refuse and name the surge; dip by `max_dip` at most; wait for
    supply."""
    max_dip: float = Field(default=0.0, ge=0, lt=1)
    """With `dip`: how much of the throughput that a part needs may be missing for a while."""
    wait_seconds: float = Field(default=600.0, gt=0, le=LONGEST_SECONDS)
    """How long a run waits for supply: with `wait` for any, else for what another transition is about to free."""

    @model_validator(mode="after")
    def _waits_for_swaps(self) -> Self:
        if self.swap_wait_seconds is not None and self.refresh != "swap":
            msg = (
                "swapWaitSeconds: goes with refresh: swap, where requests wait for engines that go over; "
                f"got refresh {self.refresh!r}"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _dips_by_something(self) -> Self:
        if (self.when_short == "dip") != (self.max_dip > 0):
            msg = (
                f"maxDip: goes with whenShort: dip and is above 0 then; got whenShort {self.when_short!r}, "
                f"maxDip {self.max_dip:g}"
            )
            raise ValueError(msg)
        return self


class ValidationSpec(WrittenValue):
    """Checks beside the always-on ones; names of registered validators to skip need a reason."""

    skip: Mapping[str, str] = Field(default_factory=dict)
    """Validator name -> the reason it is skipped; the reason stays in the report."""
    signers: SignerPolicy | None = None
    """Who has to have signed what is published; the check `signature`, and each host before it loads."""


class ModelSpec(WrittenValue):
    """The wanted state of a model."""

    task: Literal["ranking", "generation", "embedding"] = "ranking"
    parts: tuple[PartSpec, ...] = Field(min_length=1, max_length=MOST_PARTS)
    graph: PartGraph | None = None
    """May be left out for a model of one part, and for one of a prefill and a decode part."""
    split: SplitPolicy | None = None
    """Cuts the one part listed, as it is published, into several; their graph is derived."""
    sync: SyncPolicy = SyncPolicy()
    demand: tuple[DemandItem, ...] = Field(min_length=1, max_length=MOST_REGIONS)
    latency_tolerance_ms: float = Field(default=100.0, ge=0, le=LARGEST_FIGURE)
    survive: Literal["region", "none"] = "none"
    priority: float = Field(default=1.0, ge=SMALLEST_RATE, le=LARGEST_FIGURE)
    budget_per_hour: float | None = Field(default=None, ge=0, le=LARGEST_FIGURE)
    rollout: RolloutSpec = RolloutSpec()
    validation: ValidationSpec = ValidationSpec()
    access: AccessSpec = AccessSpec()
    """Who may ask it for predictions."""

    @property
    def hosted_parts(self) -> tuple[PartSpec, ...]:
        """The parts with processes: all but adapters."""
        return tuple(part for part in self.parts if part.adapter_of is None)

    @property
    def adapters(self) -> Mapping[str, str]:
        """Part that is an adapter -> its base part."""
        return {part.name: part.adapter_of for part in self.parts if part.adapter_of is not None}

    @property
    def unit(self) -> Unit:
        """The single unit of the model's demand and throughput."""
        return self.demand[0].unit or REQUESTS

    @property
    def handoff(self) -> Handoff | None:
        """The parts that prefill and decode, if these are two."""
        settings = (vllm_settings(part.settings) if part.engine == "vllm" else None for part in self.hosted_parts)
        return handoff_of(tuple(zip((part.name for part in self.hosted_parts), settings, strict=True)))

    @property
    def wiring(self) -> PartGraph | None:
        """The graph of the manifest, or that of a pair without one; None for a model with one part that has hosts."""
        if self.graph is not None or len(self.hosted_parts) == 1:
            return self.graph
        handoff = self.handoff
        return handoff_graph(handoff) if handoff else None

    @model_validator(mode="after")
    def _has_few_hosted_parts(self) -> Self:
        count = len(self.hosted_parts)
        if count > MOST_HOSTED_PARTS:
            msg = f"parts: {count} have processes of their own; allowed: {MOST_HOSTED_PARTS}, and adapters beside them"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _has_one_unit(self) -> Self:
        figures: list[tuple[str, Throughput]] = [(f"demand.{i}", item) for i, item in enumerate(self.demand)]
        for i, part in enumerate(self.parts):
            figures += [(f"parts.{i}.hardware.{j}", option) for j, option in enumerate(part.hardware)]
        other = next(((path, f) for path, f in figures if f.unit not in {None, self.unit}), None)
        if other is not None:
            path, figure = other
            field = FIELDS[TOKENS if self.unit == REQUESTS else REQUESTS]
            msg = (
                f"{path}.{field}: {figure.rate:g} is in another unit than the model's demand; allowed: "
                f"{FIELDS[self.unit]}"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _only_serving_engines_swap(self) -> Self:
        other = next((part for part in self.parts if part.engine not in SERVING_ENGINES), None)
        if self.rollout.refresh == "swap" and other is not None:
            msg = (
                f"rollout.refresh: 'swap' is for models whose parts all have an engine of {sorted(SERVING_ENGINES)}; "
                f"part {other.name!r} has engine {other.engine!r}; allowed: auto, in_place, replace"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _split_fits(self) -> Self:
        if self.split is None:
            return self
        if self.unit != REQUESTS:
            msg = f"split: the demand of a model that is cut is in qps, not in {FIELDS[self.unit]}"
            raise ValueError(msg)
        if len(self.parts) > 1 or self.graph is not None or self.parts[0].engine != "torch":
            parts = [part.name for part in self.parts]
            msg = f"split: cuts a model of one part of engine torch, without a graph of its own; parts: {parts}"
            raise ValueError(msg)
        _check_split(self.split, self.parts[0])
        return self

    @model_validator(mode="after")
    def _hands_over_in_order(self) -> Self:
        handoff = self.handoff
        if handoff is None:
            return self
        if self.sync.policy != "locked":
            msg = f"sync.policy: {self.sync.policy!r}; keys and values are those of one checkpoint: write locked"
            raise ValueError(msg)
        if self.graph is not None:
            check_graph(handoff, self.graph)
        return self

    @model_validator(mode="after")
    def _adapters_stand_on_engines(self) -> Self:
        bases = [part.name for part in self.hosted_parts if part.engine == "vllm"]
        for index, part in enumerate(self.parts):
            if part.adapter_of is not None and part.adapter_of not in bases:
                known = part.adapter_of in {other.name for other in self.parts}
                what = "is no part of engine vllm that runs by itself" if known else "is no part of the model"
                msg = f"parts.{index}.adapterOf: {part.adapter_of!r} {what}; allowed: {', '.join(bases) or 'none'}"
                raise ValueError(msg)
        if self.adapters and self.handoff:
            msg = (
                f"adapterOf: {', '.join(self.adapters)} can't stand on parts that prefill and decode; "
                "allowed: a part without kvTransfer"
            )
            raise ValueError(msg)
        if self.adapters and self.sync.policy != "locked":
            msg = (
                f"sync.policy: {self.sync.policy!r} may answer with engines that lack an adapter; "
                "allowed with adapterOf: locked"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        parts = [part.name for part in self.parts]
        if len(set(parts)) != len(parts):
            msg = f"parts: names must differ, got {parts}"
            raise ValueError(msg)
        if REQUEST in parts:
            msg = f"parts: {REQUEST!r} names the request itself; choose another name"
            raise ValueError(msg)
        regions = [item.region for item in self.demand]
        if len(set(regions)) != len(regions):
            msg = f"demand: each region may stand once, got {regions}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _graph_calls_its_parts(self) -> Self:
        hosted = [part.name for part in self.hosted_parts]
        if self.graph is None:
            if self.handoff is not None:
                check_pair_alone(hosted)
            elif len(hosted) > 1:
                msg = f"graph: needed for a model of several parts ({hosted})"
                raise ValueError(msg)
            return self
        for node in self.graph.nodes:
            if node.part not in hosted:
                what = "is an adapter, which no node calls" if node.part in self.adapters else "is unknown"
                msg = f"graph.nodes.{node.name}.part: {node.part!r} {what}; known: {hosted}"
                raise ValueError(msg)
        unused = sorted(set(hosted) - {node.part for node in self.graph.nodes})
        if unused:
            msg = f"graph.nodes: no node uses the parts {unused}"
            raise ValueError(msg)
        for name, source in self.graph.outputs.items():
            if source_node(source) == REQUEST:
                msg = f"graph.outputs.{name}: {source!r} is an input; an output comes from a node"
                raise ValueError(msg)
        if self.handoff is not None:
            check_pair_alone(hosted, self.graph)
        else:
            check_roles(self.graph, {part.name: part.role for part in self.parts}, self.task)
        return self


def _check_split(policy: SplitPolicy, whole: PartSpec) -> None:
    """Check that each part of a split can run, and that none has the name of the part that is cut."""
    for index, part in enumerate(policy.parts):
        try:
            options_of(part.hardware, whole.hardware)
        except ValueError as error:
            msg = f"split.parts.{index}.hardware: {error}"
            raise ValueError(msg) from error
    if policy.may_make(whole.name):
        msg = f"split: {whole.name!r} is the part that is cut; a part that comes of it needs another name"
        raise ValueError(msg)


_RESERVED: Final = frozenset({"stats"})
"""The path of all models' statistics: `GET /v2/models/stats` (Open Inference Protocol's statistics extension)."""


class ModelManifest(WrittenValue):
    """`kind: Model`: one file describes a model, whatever engines its parts run on."""

    api_version: Literal["ipnext/v1"]
    kind: Literal["Model"]
    metadata: Metadata
    spec: ModelSpec

    @model_validator(mode="after")
    def _check_name(self) -> "ModelManifest":
        if self.name in _RESERVED:
            msg = f"metadata.name: {self.name!r} is a path of the data plane; choose another name"
            raise ValueError(msg)
        return self

    @property
    def name(self) -> str:
        """The model's name."""
        return self.metadata.name


Manifest: TypeAlias = ModelManifest | FleetManifest | FreezeManifest | OwnerManifest

KINDS: Mapping[str, type[Manifest]] = {
    "Model": ModelManifest,
    "Fleet": FleetManifest,
    "Freeze": FreezeManifest,
    "Owner": OwnerManifest,
}


def parse_manifests(text: str) -> tuple[Manifest, ...]:
    """Return one or more YAML documents as manifests.

    Raises InvalidInput with the field's path and the allowed values.
    """
    documents = [document for document in read_documents(text) if document is not None]
    if not documents:
        msg = "the manifest is empty; it needs apiVersion, kind, metadata and spec"
        raise InvalidInput(msg)
    return tuple(parse_manifest(document) for document in documents)


def parse_manifest(document: object) -> Manifest:
    """Return one manifest from plain data. Raises InvalidInput."""
    if not isinstance(document, dict):
        msg = f"a manifest is a mapping with apiVersion, kind, metadata and spec, not a {type(document).__name__}"
        raise InvalidInput(msg)
    kind = document.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        msg = f"kind: {kind!r} is not known; allowed: {', '.join(KINDS)}"
        raise InvalidInput(msg, field="kind", value=kind, allowed=tuple(KINDS))
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid_input(error, model) from error


def invalid_input(error: ValidationError, model: type[Value] | type[WrittenValue]) -> InvalidInput:
    """Return the first fault of a pydantic error as one line: path, value, allowed values."""
    return first_fault(error.errors(include_url=False), model)


def first_fault(found: Sequence[ErrorDetails], model: type[Value] | type[WrittenValue]) -> InvalidInput:
    """Return the first of a model's faults as one line: path, value, allowed values."""
    faults = _own_faults(found)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    location = first["loc"]
    field = ".".join(str(step) for step in location)
    if first["type"] == "extra_forbidden":
        allowed = _allowed_fields(model, location[:-1])
        msg = f"{field}: unknown field; allowed here: {', '.join(allowed)}"
        return InvalidInput(msg, field=field, value=first["input"], allowed=allowed)
    value = first["input"]
    given = "" if first["type"] in {"missing", "value_error"} else f" (got {value!r:.200})"
    text = fault_text(first)
    more = len(faults) - 1
    msg = f"{field}: {text}{given}" if field else f"{text}{given}"
    return InvalidInput(msg + (f" (and {more} more)" if more else ""), field=field, value=value)


def _own_faults(faults: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Return the faults without those of lists that are too short because their items have faults."""
    at_or_below = Counter(fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]) + 1))
    return [fault for fault in faults if fault["type"] != "too_short" or at_or_below[fault["loc"]] == 1]


@functools.lru_cache
def _schema_of(model: Any) -> dict[str, Any]:
    """Return a pydantic model's JSON schema, which is made once: that takes as long as ten refusals."""
    found: dict[str, Any] = model.model_json_schema(by_alias=True)
    return found


def _allowed_fields(model: Any, location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the allowed fields of a pydantic model at an error's location."""
    schema = _schema_of(model)
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while True:
            if "$ref" in node:
                node = definitions[node["$ref"].rsplit("/", 1)[1]]
            elif "anyOf" in node:
                node = next((n for n in node["anyOf"] if n.get("type") != "null"), {})
            elif "allOf" in node:
                node = node["allOf"][0]
            else:
                return node

    node = resolve(schema)
    for step in location:
        if isinstance(step, int):
            node = resolve(node.get("items", {}))
        else:
            node = resolve(node.get("properties", {}).get(step) or node.get("additionalProperties") or {})
    return tuple(sorted(node.get("properties", {})))
