"""The order of a change's stages, as its run keeps it: decided once, by the worker that began the change."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ipnext.model.value import Name, Value


class StageCall(Value):
    """How a stage of another distribution is run, as the worker that began the change knew it."""

    source: str
    """The distribution with its version and entry point."""
    runs: Literal["activity", "workflow"]
    queue: str | None = None
    """Its task queue; None: that of lifecycles."""
    schedule_to_close_seconds: float = Field(gt=0)
    start_to_close_seconds: float | None = Field(default=None, gt=0)
    heartbeat_seconds: float | None = Field(default=None, gt=0)
    attempts: int = Field(ge=1)
    settings: Mapping[str, Any] = Field(default_factory=dict)


class ComposedStage(Value):
    """One stage of a change's order."""

    name: Name
    call: StageCall | None = None
    """None: it is built in, or lacking."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Of a built-in stage that an entry has inserted."""
    lacking: str = ""
    """Why the worker that began the change can't run it."""
