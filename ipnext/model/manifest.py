"""What a person writes: `kind: Model` in YAML, strict, for ranking and generative models alike."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ipnext.errors import InvalidInput
from ipnext.model.fleet import FleetManifest, HardwareOption
from ipnext.model.registry import REQUEST, PartGraph, SyncPolicy, source_node
from ipnext.model.split import SplitPolicy, options_of
from ipnext.model.value import Name, Value, Written

API_VERSION = "ipnext/v1"


class Metadata(Written):
    """Name, owner and free labels of an object."""

    name: Name
    owner: Name = "default"
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


class PartSpec(Written):
    """One part of a model, hosted apart."""

    name: Name
    engine: Literal["torch", "vllm"] = "torch"
    hardware: tuple[HardwareOption, ...] = Field(min_length=1)
    min_replicas: int = Field(default=1, ge=0)
    memory_bytes: int | None = Field(default=None, gt=0)
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Engine settings, such as {"maxModelLen": 4096} for vLLM."""


class DemandItem(Written):
    """Requests a second from the users of one region."""

    region: Name
    qps: float = Field(ge=0)


class RolloutSpec(Written):
    """How traffic moves to a new generation. Shares are fractions of a region's traffic."""

    canary: float = Field(default=0.1, gt=0, le=1)
    max_step: float = Field(default=0.5, gt=0, le=1)
    hold_seconds: float = Field(default=0.0, ge=0)
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    deadline_seconds: float = Field(default=600.0, gt=0)
    refresh: Literal["auto", "in_place", "replace"] = "auto"
    """How a new snapshot comes to a part: `in_place` into the running processes, beside the former one; `replace` into new
    processes, and the former ones end; `auto`: in place where `memory_bytes` of every part has room for both."""
    keep_warm: int = Field(default=1, ge=0)
    """Former generations that stay loaded, without traffic, so that a rollback needs no load."""


class ValidationSpec(Written):
    """Checks beside the always-on ones; names of registered validators to skip need a reason."""

    skip: Mapping[str, str] = Field(default_factory=dict)
    """Validator name -> the reason it is skipped; the reason stays in the report."""


class ModelSpec(Written):
    """The wanted state of a model."""

    task: Literal["ranking", "generation", "embedding"] = "ranking"
    parts: tuple[PartSpec, ...] = Field(min_length=1)
    graph: PartGraph | None = None
    """May be left out for a model of one part."""
    split: SplitPolicy | None = None
    """Cuts the one part listed, as it is published, into several; their graph is derived."""
    sync: SyncPolicy = SyncPolicy()
    demand: tuple[DemandItem, ...] = Field(min_length=1)
    latency_tolerance_ms: float = Field(default=100.0, ge=0)
    survive: Literal["region", "none"] = "none"
    priority: float = Field(default=1.0, gt=0)
    budget_per_hour: float | None = Field(default=None, ge=0)
    rollout: RolloutSpec = RolloutSpec()
    validation: ValidationSpec = ValidationSpec()

    @model_validator(mode="after")
    def _split_fits(self) -> Self:
        if self.split is None:
            return self
        if len(self.parts) > 1 or self.graph is not None or self.parts[0].engine != "torch":
            parts = [part.name for part in self.parts]
            msg = f"split: cuts a model of one part of engine torch, without a graph of its own; parts: {parts}"
            raise ValueError(msg)
        _check_split(self.split, self.parts[0])
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
        if self.graph is None:
            if len(parts) > 1:
                msg = f"graph: needed for a model of several parts ({parts})"
                raise ValueError(msg)
            return self
        for node in self.graph.nodes:
            if node.part not in parts:
                msg = f"graph.nodes.{node.name}.part: unknown part {node.part!r}; known: {parts}"
                raise ValueError(msg)
        unused = sorted(set(parts) - {node.part for node in self.graph.nodes})
        if unused:
            msg = f"graph.nodes: no node uses the parts {unused}"
            raise ValueError(msg)
        for name, source in self.graph.outputs.items():
            if source_node(source) == REQUEST:
                msg = f"graph.outputs.{name}: {source!r} is an input; an output comes from a node"
                raise ValueError(msg)
        return self


def _check_split(policy: SplitPolicy, whole: PartSpec) -> None:
    """Each part of a split can be run, and none has the name of the one that is cut."""
    for index, part in enumerate(policy.parts):
        try:
            options_of(part.hardware, whole.hardware)
        except ValueError as error:
            msg = f"split.parts.{index}.hardware: {error}"
            raise ValueError(msg) from error
    if policy.may_make(whole.name):
        msg = f"split: {whole.name!r} is the part that is cut; a part that comes of it needs another name"
        raise ValueError(msg)


class ModelManifest(Written):
    """`kind: Model`: one file describes a model, whatever engines its parts run on."""

    api_version: Literal["ipnext/v1"]
    kind: Literal["Model"]
    metadata: Metadata
    spec: ModelSpec

    @property
    def name(self) -> str:
        """The model's name."""
        return self.metadata.name


class _Header(Value):
    """Only what chooses the parser."""

    model_config = Value.model_config | {"extra": "ignore"}
    apiVersion: str  # noqa: N815 - the written name
    kind: str


KINDS: Mapping[str, type[ModelManifest] | type[FleetManifest]] = {"Model": ModelManifest, "Fleet": FleetManifest}


def parse_manifests(text: str) -> tuple[ModelManifest | FleetManifest, ...]:
    """Read one or more YAML documents. Raises InvalidInput that names the field's path and what is allowed."""
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        msg = f"not YAML: {error}"
        raise InvalidInput(msg) from error
    if not documents:
        msg = "the manifest is empty; it needs apiVersion, kind, metadata and spec"
        raise InvalidInput(msg)
    return tuple(parse_manifest(document) for document in documents)


def parse_manifest(document: object) -> ModelManifest | FleetManifest:
    """One manifest from plain data. Raises InvalidInput."""
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


def invalid_input(error: ValidationError, model: type[Value] | type[Written]) -> InvalidInput:
    """The first fault of a pydantic error as one line: path, value, what is allowed."""
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    location = first["loc"]
    field = ".".join(str(step) for step in location)
    if first["type"] == "extra_forbidden":
        allowed = _allowed_fields(model, location[:-1])
        msg = f"{field}: unknown field; allowed here: {', '.join(allowed)}"
        return InvalidInput(msg, field=field, value=first["input"], allowed=allowed)
    value = first["input"]
    given = "" if first["type"] in {"missing", "value_error"} else f" (got {value!r:.200})"
    text = first["msg"].removeprefix("Value error, ")
    more = len(faults) - 1
    msg = f"{field}: {text}{given}" if field else f"{text}{given}"
    return InvalidInput(msg + (f" (and {more} more)" if more else ""), field=field, value=value)


def _allowed_fields(model: Any, location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Walk a pydantic model along an error's location and list the fields allowed there."""
    schema = model.model_json_schema(by_alias=True)
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
