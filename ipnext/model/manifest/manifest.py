"""`kind: Model`: the document that describes a model, strict, for ranking and generative models alike.

`part`, `rollout` and `split` have its sections, `parser` reads it and the other kinds from YAML.
"""

from collections.abc import Mapping
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from ipnext.model.access.predictions import AccessSpec
from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.gate.live import LiveLatencySpec
from ipnext.model.manifest.optimization import MOST_STEPS, OptimizationStep, StepTarget, check_steps
from ipnext.model.manifest.part import PartSpec
from ipnext.model.manifest.replay import ReplaySpec
from ipnext.model.manifest.retention import RetentionSpec
from ipnext.model.manifest.rollout import RolloutSpec
from ipnext.model.manifest.sources import MOST_SOURCES, SourceSpec, check_sources
from ipnext.model.manifest.split import MOST_HOSTED_PARTS, SplitPolicy, options_of
from ipnext.model.manifest.stages import MOST_ENTRIES, StageEntry
from ipnext.model.metadata import Metadata
from ipnext.model.registry.disaggregated import check_graph, handoff_graph, handoff_of
from ipnext.model.registry.mixed_graph import check_pair_alone, check_roles
from ipnext.model.registry.registry import REQUEST, PartGraph, SyncPolicy, source_node
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.settings.engine import vllm_settings
from ipnext.model.settings.kv_transfer import Handoff
from ipnext.model.throughput import FIELDS, REQUESTS, TOKENS, Throughput, Unit
from ipnext.model.value import LARGEST_FIGURE, SMALLEST_RATE, Name, WrittenValue
from ipnext.names import COMPILE_SETTING

MOST_PARTS: Final = 256
"""Adapters included, which no plan has. The limit of other parts is MOST_HOSTED_PARTS."""
MOST_REGIONS: Final = 1024
"""Regions with users of one model."""


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


class ValidationSpec(WrittenValue):
    """Checks beside the always-on ones; names of registered validators to skip need a reason."""

    skip: Mapping[str, str] = Field(default_factory=dict)
    """Validator name -> the reason it is skipped; the reason stays in the report."""
    replay: ReplaySpec | None = None
    """What the figures of a new generation may lose against the serving one; the check `replay`."""
    live_latency: LiveLatencySpec | None = None
    """How much slower live replicas may be than those of the serving generation; the check `live-latency`."""
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
    optimization: tuple[OptimizationStep, ...] = Field(default=(), max_length=MOST_STEPS)
    """Steps that derive what serves from what is published, in their order; a split comes after them."""
    sync: SyncPolicy = SyncPolicy()
    sources: tuple[SourceSpec, ...] = Field(default=(), max_length=MOST_SOURCES)
    """Upstream streams whose snapshots are published by themselves."""
    demand: tuple[DemandItem, ...] = Field(min_length=1, max_length=MOST_REGIONS)
    latency_tolerance_ms: float = Field(default=100.0, ge=0, le=LARGEST_FIGURE)
    survive: Literal["region", "none"] = "none"
    priority: float = Field(default=1.0, ge=SMALLEST_RATE, le=LARGEST_FIGURE)
    budget_per_hour: float | None = Field(default=None, ge=0, le=LARGEST_FIGURE)
    lifecycle: tuple[StageEntry, ...] = Field(default=(), max_length=MOST_ENTRIES)
    """Stages of other distributions that its changes go through, and stages that they leave out."""
    rollout: RolloutSpec = RolloutSpec()
    validation: ValidationSpec = ValidationSpec()
    access: AccessSpec = AccessSpec()
    """Who may ask it for predictions."""
    retention: RetentionSpec = RetentionSpec()
    """How long its snapshots are kept; what is not set follows the platform's settings."""

    @property
    def hosted_parts(self) -> tuple[PartSpec, ...]:
        """The parts with processes: all but adapters."""
        return tuple(part for part in self.parts if part.adapter_of is None)

    @property
    def adapters(self) -> Mapping[str, str]:
        """Part that is an adapter -> its base part."""
        return {part.name: part.adapter_of for part in self.parts if part.adapter_of is not None}

    def kinds_of(self, part: PartSpec) -> tuple[str, ...]:
        """Return the hardware kinds of a part's hosts; of one that is split: of the parts that are made of it."""
        return tuple(option.kind for option in part.hardware) if self.split is None else self.split.kinds(part.hardware)

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
    def _sources_have_parts(self) -> Self:
        check_sources(self.sources, tuple(part.name for part in self.parts))
        return self

    @model_validator(mode="after")
    def _times_its_parts(self) -> Self:
        limits, hosted = self.validation.live_latency, [part.name for part in self.hosted_parts]
        if limits is not None and limits.part not in {None, *hosted}:
            msg = f"validation.liveLatency.part: {limits.part!r} is unknown; known: {hosted}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _steps_have_parts(self) -> Self:
        targets = {
            part.name: StepTarget(
                engine=part.engine,
                hardware=self.kinds_of(part),
                is_split=self.split is not None,
                runs_libraries=part.settings.get(COMPILE_SETTING, False) is not False,
            )
            for part in self.hosted_parts
        }
        check_steps(self.optimization, targets)
        index = next((i for i, step in enumerate(self.optimization) if step.compile is not None), None)
        if index is not None and self.split is not None:
            msg = f"optimization.{index}.compile: a library can't be split; allowed: compile in a model without split"
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
