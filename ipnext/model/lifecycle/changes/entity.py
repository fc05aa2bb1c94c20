"""Messages of a model's entity: it queues the model's changes, and runs one after the other."""

from ipnext.model.lifecycle.changes.change import QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.value import Name, Value


class ModelEntityInput(Value):
    """Input of workflow `model`; `queue` and `recent` are carried over at continue-as-new."""

    model: Name
    queue: tuple["QueuedChange", ...] = ()
    recent: tuple[str, ...] = ()
    """Ids of recent changes: a repeated submission is not queued twice."""
    serving_generation: int | None = None
    held: ControlAsked | None = None
    """The author of the pause of the model's changes, and the reason."""
    turned: int = 0
    """How many consecutive runs were interrupted for a newer change."""
    rebuilt: bool = False
    """False for a new entity: it first reads the earlier requests from the store."""
    begun: tuple["QueuedChange", ...] = ()
    """Changes that have begun and may not have ended: the entity awaits the run of the first one."""
    superseded: tuple["SupersededChange", ...] = ()
    """Changes still to be marked as superseded."""
    told_newer: bool = False
    """Whether the run of the first of `begun` was notified of a newer change."""
    stops: tuple["StopAsked", ...] = ()
    """Runs that were asked to end, and have not ended."""
    retired: bool = False
    passing: tuple[str, ...] = ()
    """Open changes that run although the model is paused, or an older change waits."""
    told_hold: tuple["ToldHold", ...] = ()
    """The pause, or its end, that each run knows of; a run that is not in here is told."""
    passed_ids: tuple[str, ...] = ()
    """Those of `begun` whose runs wait while the first one passes them; each passes the ones before it."""
    looks_again: bool = False
    """Whether the store may have open changes that the entity lost: it reads them again."""


class ToldHold(Value):
    """The pause that the run of a change knows of; None: none."""

    change_id: str
    held: ControlAsked | None = None


class StopAsked(Value):
    """A change whose run was asked to end, and the reason."""

    change_id: str
    reason: str


class ChangeAccepted(Value):
    """Answer of update `submit_change`."""

    change_id: str
    position: int
    """How many changes run before it; 0 if it starts at once."""
    lifecycle_workflow_id: str


class ModelEntityState(Value):
    """Answer of query `model_state`."""

    model: Name
    running: QueuedChange | None
    queue: tuple[QueuedChange, ...]
    handled: int
    held: ControlAsked | None = None
    """The author of the pause of the model's changes, and the reason."""


class SupersededChange(Value):
    """A change and the newer one that superseded it."""

    change_id: str
    by: str


class SupersededInput(Value):
    """Changes that newer ones superseded."""

    model: Name
    superseded: tuple[SupersededChange, ...]
