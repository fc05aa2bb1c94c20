"""Validators, engines and stages by name: the built-in ones, and the description of plug-ins."""

from typing import Final, Literal

from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.checks import SAFETY_CRITICAL
from ipnext.model.value import Value

BUILT_IN_ENGINES: Final = ("torch", "vllm")


class ValidatorView(Value):
    """A validator, or a plug-in that was refused as one."""

    name: str
    source: str
    """`built-in`, or the distribution that brings it, with its version and entry point."""
    required: bool = False
    """Whether it always runs: a manifest can't skip it."""
    state: Literal["active", "refused"] = "active"
    reason: str | None = None
    """Why it was refused."""

    @property
    def overridable(self) -> bool:
        """Whether an operator may let a change pass although it refuses."""
        return self.state == "active" and self.name not in SAFETY_CRITICAL

    @property
    def skippable(self) -> bool:
        """Whether a manifest may name it in `validation.skip`."""
        return self.state == "active" and not self.required


class StageView(Value):
    """A stage of changes, or a plug-in that was refused as one."""

    name: str
    source: str
    """`built-in`, or the distribution that brings it, with its version and entry point."""
    changes: tuple[ChangeKind, ...] = ()
    """Kinds of change that have it by default: in the default order, or by the platform's setting."""
    may_be_left_out: bool = False
    """Whether a manifest may leave it out, or replace it."""
    runs: Literal["built-in", "activity", "workflow"] = "built-in"
    queue: str | None = None
    """Its task queue; None: it is built in, and its steps have theirs."""
    schedule_to_close_seconds: float | None = None
    """All attempts together."""
    start_to_close_seconds: float | None = None
    """One attempt; None: no limit of its own."""
    heartbeat_seconds: float | None = None
    """None: the worker's."""
    attempts: int | None = None
    state: Literal["active", "refused"] = "active"
    reason: str | None = None
    """Why it was refused."""
