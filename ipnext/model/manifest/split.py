"""The manifest's policy for cutting a model into parts: `spec.split`, or a policy file."""

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import AliasChoices, Field, StringConstraints, model_validator

from ipnext.model.fleet import HardwareOption, check_kinds_differ
from ipnext.model.registry.registry import REQUEST
from ipnext.model.value import LARGEST_FIGURE, SMALLEST_RATE, SMALLEST_UNITS, Name, WrittenValue, digest_of

Pattern = Annotated[str, StringConstraints(min_length=1)]
"""Module path with `*`, `?` and `[...]` as in file names; `*` also matches dots."""


MOST_HOSTED_PARTS: Final = 64
"""Parts of one model with processes, written or cut. The time of a plan grows with more than their square."""


class ShardSpec(WrittenValue):
    """Deals the embedding tables of a part (or its big modules) out over sub-parts `NAME-0`, `NAME-1`, ...

    `bytes`: as few as keep each at `max_bytes` or less. `count`: so many, alike in bytes.
    """

    by: Literal["bytes", "count"]
    max_bytes: int | None = Field(
        default=None, gt=0, validation_alias=AliasChoices("max_bytes", "maxBytes"), serialization_alias="max_bytes"
    )
    count: int | None = Field(default=None, ge=1, le=MOST_HOSTED_PARTS)

    @model_validator(mode="after")
    def _budget_belongs(self) -> Self:
        given = {"bytes": self.max_bytes, "count": self.count}
        field = {"bytes": "max_bytes", "count": "count"}
        other = "count" if self.by == "bytes" else "bytes"
        if given[self.by] is None:
            msg = f"by: {self.by!r} needs {field[self.by]}, a whole number above 0"
            raise ValueError(msg)
        if given[other] is not None:
            msg = f"{field[other]} belongs to by: {other!r}, not to by: {self.by!r}; leave it out"
            raise ValueError(msg)
        return self


class SplitHardware(WrittenValue):
    """One way to run a part: `units` of hardware `kind` a replica give `qps` requests a second."""

    kind: Name
    units: float = Field(default=1.0, ge=SMALLEST_UNITS, le=LARGEST_FIGURE)
    qps: float | None = Field(default=None, ge=SMALLEST_RATE, le=LARGEST_FIGURE)


class SplitPart(WrittenValue):
    """The modules of one part: those that a pattern names, with all below them."""

    name: Name
    modules: tuple[Pattern, ...] = Field(min_length=1)
    shard: ShardSpec | None = None
    hardware: tuple[Name | SplitHardware, ...] = ()
    """Hardware kinds, in the form `l4` or {kind: l4, units: 1, qps: 500}; empty: as the model's."""

    @model_validator(mode="after")
    def _kinds_differ(self) -> Self:
        check_kinds_differ(self.name, (option if isinstance(option, str) else option.kind for option in self.hardware))
        return self


class SplitPolicy(WrittenValue):
    """Which modules make which part; the rest of the model goes to the part named by `default`."""

    parts: tuple[SplitPart, ...] = Field(min_length=1, max_length=MOST_HOSTED_PARTS)
    default: Name = "rest"

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = Counter(part.name for part in self.parts)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            msg = (
                f"parts: names must differ, got {twice[0]!r} {names[twice[0]]} times; list all its patterns in one part"
            )
            raise ValueError(msg)
        if REQUEST in {*names, self.default}:
            msg = f"parts: {REQUEST!r} names the request itself; choose another name"
            raise ValueError(msg)
        for part in self.parts:
            if part.name == self.default and part.shard is not None:
                msg = f"default: {self.default!r} is dealt out by its shard; the rest needs a part that is whole"
                raise ValueError(msg)
        return self

    @property
    def cut_digest(self) -> str:
        """SHA-256 of the settings that determine the cut: all but the hardware."""
        parts = [part.model_dump(mode="json", exclude={"hardware"}) for part in self.parts]
        return digest_of({"parts": parts, "default": self.default})

    def assigning(self, modules: Mapping[str, Sequence[str]]) -> Self:
        """Return the policy that cuts another snapshot of the same modules into the same parts.

        `modules` maps each part of a finished cut to its modules: shards are not dealt again, by whatever bytes.
        """
        named = {part.name for part in self.parts}
        parts = tuple(
            SplitPart(name=name, modules=tuple(glob.escape(path) for path in paths))
            for name, paths in modules.items()
            if name != self.default or name in named
        )
        return self.model_copy(update={"parts": parts})

    def kinds(self, model: Sequence[HardwareOption]) -> tuple[str, ...]:
        """Return the hardware kinds on which any part of the split may run, the rest included.

        Raises:
            ValueError: a part has a kind for which neither it nor the model states the throughput.
        """
        asked = [part.hardware for part in self.parts]
        if all(part.name != self.default for part in self.parts):
            asked.append(())
        return tuple(dict.fromkeys(option.kind for each in asked for option in options_of(each, model)))

    def origin(self, name: str) -> SplitPart | None:
        """Return the policy's part from which the derived part `name` comes; None for the rest."""
        whole = next((part for part in self.parts if part.name == name), None)
        dealt = (part for part in self.parts if part.shard is not None and _is_numbered(name, part.name))
        return whole or next(dealt, None)

    def may_make(self, name: str) -> bool:
        """Return whether a part or a segment of the split may have this name."""
        names = (self.default, *(part.name for part in self.parts))
        return any(name == own or _is_numbered(name, own) for own in names)


def _is_numbered(name: str, base: str) -> bool:
    """Return whether the name is that of a shard, `base-0`, or of a stage, `base-s1`."""
    return re.fullmatch(rf"{re.escape(base)}(-s?\d+)+", name) is not None


def options_of(asked: Sequence[Name | SplitHardware], model: Sequence[HardwareOption]) -> tuple[HardwareOption, ...]:
    """Return the options of a derived part.

    A kind alone has the whole model's units and `qps`, a missing `qps` is the whole model's; if nothing is given, all
    options of the model apply.

    Raises:
        ValueError: it has a kind for which neither states the throughput.
    """
    known = {option.kind: option for option in model}
    return tuple(_option(item, known) for item in asked) or tuple(model)


def _option(item: Name | SplitHardware, known: Mapping[str, HardwareOption]) -> HardwareOption:
    kind, qps = (item, None) if isinstance(item, str) else (item.kind, item.qps)
    if qps is None and kind not in known:
        msg = f"{kind!r} is not among the model's own ({', '.join(known)}); write {{kind: {kind}, units: 1, qps: N}}"
        raise ValueError(msg)
    if isinstance(item, str):
        return known[item]
    return HardwareOption(kind=kind, units=item.units, qps=known[kind].throughput if qps is None else qps)
