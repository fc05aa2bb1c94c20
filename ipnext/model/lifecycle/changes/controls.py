"""Commands of a person to a running rollout: pause, resume, approve, promote, abort; and holds of a model's changes."""

from enum import StrEnum

from pydantic import Field

from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value, WrittenValue

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


class ControlRequest(WrittenValue):
    """Body of the API's control routes."""

    reason: str = Field(default="", max_length=LONGEST_REASON)


class ControlAsked(Value):
    """Input of the updates `pause_changes`, `resume_changes`, `abort_run`, `approve_wave` and `promote_run`."""

    by: str = ""
    reason: str = ""
    waiting: str = ""
    """Of an abort: the retirement that waits for a freeze, by the store. It has moved nothing, so it may be aborted."""

    @property
    def text(self) -> str:
        """The command's author and reason: `by anna: looks odd`."""
        return f"by {self.by or 'someone'}" + (f": {self.reason}" if self.reason else "")


class ControlAnswer(Value):
    """Answer of those updates."""

    model: Name
    action: ControlAction
    change_id: str | None = None
    """The change that it concerns; none if nothing runs."""
    message: str = ""


class Hold(Value):
    """Signal `hold_changes`: the model is paused (`held`), or continues."""

    held: bool
    asked: ControlAsked = ControlAsked()


class NewerWaits(Value):
    """Signal `newer_waits`: a newer publish or apply of the model is queued after this run."""

    change_id: str
    may_turn: bool = True
    """False if several runs in a row were interrupted: this one has to finish."""


class HoldNote(Value):
    """Input of `note_hold`: the hold of a model's changes, or its end."""

    model: Name
    held: bool
    reason: Reason
    """The reason of the hold that begins or ends: only that one ends."""
    message: str = ""
    event: str = ""
    """The text of the model's event; empty: no event is written."""
    pause: ControlAsked | None = None
    """The author of a pause, kept until the model resumes."""
