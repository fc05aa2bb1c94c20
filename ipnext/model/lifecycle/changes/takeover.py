"""Messages of an entity that begins, or whose run has gone: open changes, the state of one, and its transition."""

from ipnext.model.lifecycle.changes.change import ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.changes.transition_run import TransitionInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value


class ModelAsked(Value):
    """Input of `open_changes`."""

    model: Name


class OpenChange(Value):
    """A change that the engine has accepted and that has not ended."""

    change: QueuedChange
    begun: bool
    """Whether a run of it has begun; the run may have gone since."""
    moves: bool = False
    """Whether it has planned waves: it has moved the model, or is about to."""
    passes: bool = False
    """Whether it has begun and goes on although the model is paused: a move away from a lost region."""


class OpenChanges(Value):
    """Answer of `open_changes`: the changes that a new entity finds, by sequence."""

    changes: tuple[OpenChange, ...] = ()
    held: ControlAsked | None = None
    """The author of the pause of the model's changes, and the reason."""
    serving_generation: int | None = None
    retired: bool = False
    """Whether the model is retired."""


class ChangeAsked(Value):
    """Input of `look_at_change` and `may_pass`."""

    model: Name
    change_id: str


class ChangeSeen(Value):
    """Answer of `look_at_change`: the change in the store, and whether its run is open in the engine."""

    state: ChangeState
    generation: int | None = None
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    runs: bool = False


class MayPass(Value):
    """Answer of `may_pass`."""

    passes: bool = False
    """Whether the change may run although the model is paused, or another change of it waits for something."""


class TakeOver(Value):
    """Input of `take_over`: a change without its run, and the reason for the revert of its transition."""

    model: Name
    change: QueuedChange
    reason: Reason
    message: str


class TakenOver(Value):
    """Answer of `take_over`, and the result of a takeover."""

    waits: bool = False
    """A run of the transition is open and will end without help. Call again."""
    transition: TransitionInput | None = None
    """The input of the run that reverts the transition. None if nothing is left to do."""
    moved: bool = False
    """Whether the change had a transition."""
    done: bool = False
    """Whether the transition was complete: its generation has all the traffic."""
    generation: int | None = None
    revision: int = 0
    """Revision of the manifest of the transition's plan."""
    withdrawn: bool = False
    """Whether the change retires its model, and no gateway knows the model any more: the retirement is completed."""
    undone: str = ""
    """The part that could not be reverted, in words."""


class ChangeEnded(Value):
    """Signal `change_ended` to the entity that follows a run which it did not start."""

    change_id: str
