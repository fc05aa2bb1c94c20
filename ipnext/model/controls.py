"""What a person says to a rollout that runs: pause, resume, approve, promote, abort; and what holds a model's changes."""

from enum import StrEnum

from pydantic import Field

from ipnext.model.status import Reason
from ipnext.model.value import Name, Value, Written

LONGEST_REASON = 2000
"""Characters."""


class ControlAction(StrEnum):
    """What is asked. A rollback is a change of its own (`ipnext rollback`)."""

    PAUSE = "pause"
    """Begin no further wave and no further change; rollbacks and retirements pass."""
    RESUME = "resume"
    """Go on where it was paused."""
    APPROVE = "approve"
    """Let a run go on that waits for a person behind a wave that passed its gate."""
    PROMOTE = "promote"
    """Wait for no hold and no approval any more; gates and capacity are kept."""
    ABORT = "abort"
    """Take the traffic back to where the run began."""


class ControlRequest(Written):
    """Body of the API's control routes."""

    reason: str = Field(default="", max_length=LONGEST_REASON)


class ControlAsked(Value):
    """Input of the updates `pause_changes`, `resume_changes`, `abort_run`, `approve_wave` and `promote_run`."""

    by: str = ""
    reason: str = ""

    @property
    def text(self) -> str:
        """`by anna: looks odd`."""
        return f"by {self.by or 'someone'}" + (f": {self.reason}" if self.reason else "")


class ControlAnswer(Value):
    """Answer of those updates."""

    model: Name
    action: ControlAction
    change_id: str | None = None
    """The change that it concerns; none where nothing runs."""
    message: str = ""


class Hold(Value):
    """Signal `hold_changes`: the model is paused (`held`), or goes on."""

    held: bool
    asked: ControlAsked = ControlAsked()


class NewerWaits(Value):
    """Signal `newer_waits`: a newer publish or apply of the model is queued behind this run."""

    change_id: str
    may_turn: bool = True
    """False where several runs in a row gave way: this one is to be finished."""


class HoldNote(Value):
    """Input of `note_hold`: what holds a model's changes now, or that nothing does."""

    model: Name
    held: bool
    reason: Reason
    """What holds them, or held them: only that ends."""
    message: str = ""
    event: str = ""
    """What happened, for the model's events; none is written where it is empty."""
    pause: ControlAsked | None = None
    """Who paused the model, for a pause: it is kept until it is resumed."""
