"""What an entity asks when it begins, or when a run has gone: open changes, how one stands, and its transition."""

from ipnext.model.controls import ControlAsked
from ipnext.model.lifecycle import ChangeState, QueuedChange, TransitionInput
from ipnext.model.status import Reason
from ipnext.model.value import Name, Value


class ModelAsked(Value):
    """Input of `open_changes`."""

    model: Name


class OpenChange(Value):
    """A change that the engine has taken and that has not ended."""

    change: QueuedChange
    begun: bool
    """Whether a run of it has begun; it may have gone since."""


class OpenChanges(Value):
    """Answer of `open_changes`: what an entity that begins finds, by sequence."""

    changes: tuple[OpenChange, ...] = ()
    held: ControlAsked | None = None
    """Who paused the model's changes, and why."""
    serving_generation: int | None = None


class ChangeAsked(Value):
    """Input of `look_at_change`."""

    model: Name
    change_id: str


class ChangeSeen(Value):
    """Answer of `look_at_change`: the change in the store, and whether its run is open in the engine."""

    state: ChangeState
    generation: int | None = None
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    runs: bool = False


class TakeOver(Value):
    """Input of `take_over`: the run of a change has gone, and why its transition is to be reverted."""

    model: Name
    change: QueuedChange
    reason: Reason
    message: str


class TakenOver(Value):
    """Answer of `take_over`, and how a takeover ends."""

    waits: bool = False
    """A run of the transition is open: it ends by itself. Ask again."""
    transition: TransitionInput | None = None
    """The run to start, which reverts the transition. None if nothing is left to do."""
    moved: bool = False
    """Whether the change had a transition at all."""
    done: bool = False
    """Whether the transition had come to its end: its generation has all the traffic."""
    generation: int | None = None
    revision: int = 0
    """Revision of the manifest that the transition was planned with."""
    undone: str = ""
    """What could not be reverted, in words."""


class ChangeEnded(Value):
    """Signal `change_ended` to the entity that follows a run which it did not start."""

    change_id: str
