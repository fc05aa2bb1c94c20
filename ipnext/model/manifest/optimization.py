"""The manifest's optimization pipeline: `spec.optimization`, an ordered list of steps.

Each step derives a snapshot from the published one, or from that of the step before it, and is judged against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

from ipnext.model.manifest.replay import Drop, RankingLimits
from ipnext.model.value import EngineName, Name, WrittenValue, digest_of
from ipnext.names import COMPILE_SETTING

MOST_STEPS: Final = 16
"""Steps of one pipeline."""
MOST_KINDS: Final = 64
"""Hardware kinds of one step."""
ENGINE: Final = "torch"
"""The engine whose snapshots can be optimized."""

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class StepSpec(RankingLimits):
    """What every step has: the part that it derives from, and limits that its accuracy report must keep.

    All differences are against the snapshot that the step derives from. `part` may be left out for a model with one
    part of engine torch.
    """

    hardware: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=MOST_KINDS)
    """Hardware kinds of the part on whose replicas the step takes effect; left out: on all."""
    max_error: Drop | None = None
    """Largest absolute difference of any output."""
    max_bytes_ratio: Drop | None = None
    """Bytes of the derived weights over those that they replace."""
    on_refusal: Literal["refuse", "keep"] = "refuse"
    """If a limit is broken: `refuse` ends the change, `keep` goes on with the snapshot from before the step."""


class QuantizeStep(StepSpec):
    """Stores embedding tables row by row as whole numbers of 8 or 4 bits, each row with a scale and an offset."""

    embeddings: Literal["int8", "int4"]
    tables: tuple[Pattern, ...] = Field(default=("*",), min_length=1, max_length=256)
    """Patterns over the paths of tables, as in `spec.split`."""


class CompileStep(StepSpec):
    """Compiles the program to a native library, which hosts of that processor level run in place of the program."""

    cpu: Literal["x86-64-v3", "x86-64-v4", "native"] = "x86-64-v3"
    """Processor level; `native`: that of the machine that compiles."""
    tolerance: float = Field(default=1e-5, ge=0, le=1)
    """Largest difference of the library's answers from the program's, against the largest figure of an output."""


class PluginStep(StepSpec):
    """A step of a kind that another distribution registers (entry points `ipnext.optimizations`)."""

    kind: EngineName
    settings: Mapping[str, Any] = Field(default_factory=dict)


class OptimizationStep(WrittenValue):
    """One step. Exactly one of the kinds is given."""

    quantize: QuantizeStep | None = None
    compile: CompileStep | None = None
    plugin: PluginStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_no_split(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "split" in given:
            msg = (
                f"split: is no step, since it changes the parts of the model; allowed: {', '.join(_KINDS)}; "
                "write it as spec.split, which cuts what the last step derives"
            )
            raise ValueError(msg)
        return given

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"got {' and '.join(given)}" if given else "got none"
            msg = f"a step has exactly one of {', '.join(_KINDS)}; {what}"
            raise ValueError(msg)
        return self

    @property
    def kind(self) -> str:
        """The kind of the step: a built-in one, or the name of a plug-in."""
        return self.plugin.kind if self.plugin is not None else self._kind_field

    @property
    def spec(self) -> StepSpec:
        """The step's settings."""
        found: StepSpec = getattr(self, self._kind_field)
        return found

    @property
    def _kind_field(self) -> str:
        return next(name for name in _KINDS if getattr(self, name) is not None)

    @property
    def bare(self) -> Self:
        """The step without its hardware kinds: all that determines what it derives, and how that is judged."""
        if self.spec.hardware is None:
            return self
        return self.model_copy(update={self._kind_field: self.spec.model_copy(update={"hardware": None})})

    def takes(self, hardware: str) -> bool:
        """Return whether it takes effect on replicas of a hardware kind."""
        return self.spec.hardware is None or hardware in self.spec.hardware

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that its kind reads: all but those that every step has."""
        if self.plugin is not None:
            return self.plugin.settings
        return self.spec.model_dump(mode="json", by_alias=True, exclude=set(StepSpec.model_fields))

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the other kinds."""
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if value is not None}


_KINDS: Final = tuple(OptimizationStep.model_fields)


def steps_digest(steps: Sequence[OptimizationStep]) -> str | None:
    """Return the SHA-256 of a pipeline; None for an empty one."""
    return digest_of([step.model_dump(mode="json", by_alias=True) for step in steps]) if steps else None


def part_of(step: OptimizationStep, parts: Mapping[str, str]) -> str:
    """Return the part that a step derives from. `parts`: name -> engine.

    Raises:
        ValueError: it names none, and there are several; or one that is unknown, or of another engine.
    """
    able = [name for name, engine in parts.items() if engine == ENGINE]
    named = step.spec.part
    if named is None and len(able) == 1:
        return able[0]
    if named is None:
        msg = (
            f"{step.kind}.part: has to be given for a model of several parts of engine {ENGINE}; "
            f"allowed: {', '.join(able)}"
            if able
            else f"{step.kind}: derives from a part of engine {ENGINE}; the model has none"
        )
        raise ValueError(msg)
    if named not in able:
        what = f"has engine {parts[named]!r}" if named in parts else "is no part of the model"
        msg = f"{step.kind}.part: {named!r} {what}; allowed: {', '.join(able) or 'none'}"
        raise ValueError(msg)
    return named


def parts_by_hardware(steps: Sequence[OptimizationStep], engines: Mapping[str, str]) -> frozenset[str]:
    """Return the parts with a step that names hardware kinds."""
    return frozenset(part_of(step, engines) for step in steps if step.spec.hardware)


@dataclass(frozen=True, slots=True)
class StepTarget:
    """What the steps of a part need to know of it."""

    engine: str
    hardware: tuple[str, ...]
    """Its hardware kinds; of a part that is split, those of the parts that are made of it."""
    is_split: bool = False
    runs_libraries: bool = False
    """Whether its settings let hosts run a library."""


def check_steps(steps: Sequence[OptimizationStep], parts: Mapping[str, StepTarget]) -> None:
    """Check that each step has a part, and takes effect on each hardware kind that it is for. Raises ValueError."""
    engines = {name: part.engine for name, part in parts.items()}
    libraries: dict[tuple[str, str], int] = {}
    for index, step in enumerate(steps):
        try:
            name = part_of(step, engines)
            kinds = _kinds_of(step, name, parts[name])
        except ValueError as error:
            msg = f"optimization.{index}.{error}"
            raise ValueError(msg) from error
        after = next((kind for kind in kinds if (name, kind) in libraries), None)
        if after is not None:
            first = libraries[name, after]
            on = f" on {after}" if step.spec.hardware or steps[first].spec.hardware else ""
            msg = (
                f"optimization.{index}.{step.kind}: comes after the step {first}, compile, of part "
                f"{name}{on}; allowed: before it, since the library is that of the program that it was compiled from"
            )
            raise ValueError(msg)
        if step.compile is not None:
            libraries.update(dict.fromkeys(((name, kind) for kind in kinds), index))
            if not parts[name].runs_libraries:
                msg = (
                    f"optimization.{index}.compile: hosts of part {name} would not run the library; "
                    f"allowed: for parts with settings.{COMPILE_SETTING}, such as {{{COMPILE_SETTING}: true}}"
                )
                raise ValueError(msg)


def _kinds_of(step: OptimizationStep, part: str, target: StepTarget) -> tuple[str, ...]:
    """Return the hardware kinds on which a step takes effect. Raises ValueError for another kind, or one twice."""
    named = step.spec.hardware or ()
    twice = next((kind for kind in named if named.count(kind) > 1), None)
    if twice is not None:
        msg = f"{step.kind}.hardware: {twice!r} is named twice; allowed: each kind once"
        raise ValueError(msg)
    unknown = next((kind for kind in named if kind not in target.hardware), None)
    if unknown is not None:
        of = f"the parts that spec.split makes of {part}" if target.is_split else f"part {part}"
        msg = f"{step.kind}.hardware: {unknown!r} is no hardware kind of {of}; allowed: {', '.join(target.hardware)}"
        raise ValueError(msg)
    return tuple(kind for kind in target.hardware if step.takes(kind))
