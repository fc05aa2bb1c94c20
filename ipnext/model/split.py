"""What a person writes to have a model cut into parts: the `spec.split` of a manifest, or a policy file of its own."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, StringConstraints, model_validator

from ipnext.model.registry import REQUEST
from ipnext.model.value import Name, Written

Pattern = Annotated[str, StringConstraints(min_length=1)]
"""Module path with `*`, `?` and `[...]` as in file names; `*` passes dots too."""


class ShardSpec(Written):
    """Deals the embedding tables of a part (or its big modules) out over sub-parts `NAME-0`, `NAME-1`, ...

    `bytes`: as few as keep each at `max_bytes` or less. `count`: so many, alike in bytes.
    """

    by: Literal["bytes", "count"]
    max_bytes: int | None = Field(
        default=None, gt=0, validation_alias=AliasChoices("max_bytes", "maxBytes"), serialization_alias="max_bytes"
    )
    count: int | None = Field(default=None, ge=1)

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


class SplitHardware(Written):
    """One way to run a part: `units` of hardware `kind` a replica give `qps` requests a second."""

    kind: Name
    units: float = Field(default=1.0, gt=0)
    qps: float | None = Field(default=None, gt=0)


class SplitPart(Written):
    """The modules of one part: those that a pattern names, with all below them."""

    name: Name
    modules: tuple[Pattern, ...] = Field(min_length=1)
    shard: ShardSpec | None = None
    hardware: tuple[Name | SplitHardware, ...] = ()
    """Hardware kinds, in the form `l4` or {kind: l4, units: 1, qps: 500}; empty: as the model's."""


class SplitPolicy(Written):
    """Which modules make which part; the rest of the model goes to the part named by `default`."""

    parts: tuple[SplitPart, ...] = Field(min_length=1)
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
