"""The manifest's `spec.lifecycle`: changes to the order of stages by which changes of the model are carried out.

An entry inserts a stage of another distribution, or leaves one out. Entries apply one after another, so each names
stages that are in the order by then (`ipnext.stages.composition`).
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ipnext.model.value import Name, WrittenValue, canonical_json

MOST_ENTRIES: Final = 16
"""Entries of one manifest, or of the platform's setting."""
MOST_SETTINGS_BYTES: Final = 16 << 10
"""Settings of one stage, as JSON."""

ComposedKind = Literal["publish", "apply", "move"]
"""Kinds of change whose order may be changed. Rollbacks and repairs restore what served, and nothing else changes a
model while it retires: nothing holds them up."""
POSITIONS: Final = ("after", "before", "replaces")


class StageEntry(WrittenValue):
    """One change to the order of stages: exactly one of `stage` and `leaveOut`."""

    stage: Name | None = None
    """A stage of another distribution (entry points `ipnext.stages`), put `after` or `before` another, or in its place
    (`replaces`)."""
    leave_out: Name | None = None
    """A stage that is not safety-critical."""
    after: Name | None = None
    before: Name | None = None
    replaces: Name | None = None
    changes: tuple[ComposedKind, ...] = Field(default=("publish", "apply"), min_length=1, max_length=3)
    """Kinds of change that the entry is for. An apply may bring a generation to serving, as a publish does."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """What the stage is given."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.stage is None) == (self.leave_out is None):
            msg = "an entry has exactly one of stage, leaveOut; got " + ("none" if self.stage is None else "both")
            raise ValueError(msg)
        given = [name for name in POSITIONS if getattr(self, name) is not None]
        if self.leave_out is not None and (given or self.settings):
            msg = f"leaveOut: goes with changes only; got {', '.join([*given, *(['settings'] * bool(self.settings))])}"
            raise ValueError(msg)
        if self.stage is not None and len(given) != 1:
            what = " and ".join(given) or "none"
            msg = f"a stage has exactly one of {', '.join(POSITIONS)}; got {what}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if len(set(self.changes)) != len(self.changes):
            msg = f"changes: each kind may stand once, got {list(self.changes)}"
            raise ValueError(msg)
        try:
            size = len(canonical_json(self.settings).encode())
        except (TypeError, ValueError) as error:
            msg = f"settings: hold a value that JSON can't carry: {error}"
            raise ValueError(msg) from error
        if size > MOST_SETTINGS_BYTES:
            msg = f"settings: have {size} bytes of JSON; allowed: {MOST_SETTINGS_BYTES}"
            raise ValueError(msg)
        return self

    @property
    def position(self) -> str:
        """The field that says where its stage goes; `leaveOut` if it leaves one out."""
        return next((name for name in POSITIONS if getattr(self, name) is not None), "leaveOut")

    @property
    def anchor(self) -> str:
        """The stage of the order that the entry names."""
        found: str = self.leave_out or getattr(self, self.position)
        return found

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out absent fields."""
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if value is not None and value != {}}


class PlatformStageEntry(StageEntry):
    """An entry of the platform's setting: it applies to every model, before the entries of its manifest."""

    required: bool = True
    """Whether manifests can neither leave its stage out nor replace it."""
