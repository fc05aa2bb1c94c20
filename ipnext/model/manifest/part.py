"""Parts of a model in its manifest: their engine, hardware and settings."""

from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ipnext.model.fleet import MOST_BYTES, HardwareOption, check_kinds_differ
from ipnext.model.manifest.freshness import FreshnessSpec
from ipnext.model.registry.mixed_graph import Role
from ipnext.model.registry.profile import LatencyTarget
from ipnext.model.settings.engine import torch_settings, vllm_settings
from ipnext.model.value import EngineName, Name, WrittenValue

MOST_OPTIONS: Final = 64
"""Hardware options of one part."""
MOST_REPLICAS: Final = 100_000


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
    freshness: FreshnessSpec | None = None
    """How old its serving snapshots may be. It is judged, and changes nothing that serves."""
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
        nothing = set() if self.latency_target else {"latency_target", "latencyTarget"}
        nothing |= set() if self.freshness else {"freshness"}
        if self.adapter_of is not None:
            return {key: value for key, value in plain.items() if key in _OF_ADAPTERS and key not in nothing}
        return {key: value for key, value in plain.items() if key not in nothing | {"adapter_of", "adapterOf"}}


_OF_ADAPTERS: Final = ("name", "engine", "adapter_of", "adapterOf", "freshness")
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
            "name, engine, adapterOf, freshness"
        )
        raise ValueError(msg)
