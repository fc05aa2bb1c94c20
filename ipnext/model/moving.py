"""A replan as the mover of a fleet: what is asked of many models at a time, and how far it is."""

from typing import Literal

from pydantic import Field

from ipnext.model.value import Name, Value, Written

MoverAction = Literal["pause", "resume", "cancel"]
"""What may be asked of a replan that moves models."""


class MoveTrouble(Value):
    """A model that did not come to where the plan has it."""

    model: Name
    message: str


class ReplanProgress(Value):
    """How far a replan is with its models."""

    total: int
    moved: int = 0
    """Models that have taken their place."""
    moving: tuple[Name, ...] = ()
    """Models that were asked and have not ended."""
    held: tuple[Name, ...] = ()
    """Of those: frozen, paused or slow ones. They are watched on, and take no place of the window."""
    waiting: int = 0
    """Models that are still to be asked."""
    failed: tuple[MoveTrouble, ...] = ()
    paused: str = ""
    """Why no further model is asked; empty where it goes on."""
    per_minute: float = Field(default=0.0, ge=0)
    """Models moved a minute, pauses not counted."""

    @property
    def percent(self) -> float:
        """Of the models: those that have ended."""
        return 100.0 * (self.moved + len(self.failed)) / self.total if self.total else 100.0


class MoveAsked(Value):
    """A model that was asked to move and has not ended."""

    model: Name
    change_id: str
    seconds: float = Field(default=0.0, ge=0)
    """When it was asked, since 1970."""
    held: bool = False


class MoverState(Value):
    """All that a mover has to remember."""

    waiting: tuple[Name, ...]
    """Still to be asked, in their order."""
    moving: tuple[MoveAsked, ...] = ()
    moved: int = 0
    failed: tuple[MoveTrouble, ...] = ()
    paused: str = ""
    cancelled: str = ""
    """Why no further model is asked at all; empty where it goes on."""
    busy_seconds: float = Field(default=0.0, ge=0)
    """How long models were moved, pauses not counted."""


class MoveTurn(Value):
    """Input of `move_models`: look at those that move, ask the next ones as far as there is room."""

    plan_id: str
    moving: tuple[MoveAsked, ...] = ()
    """Asked, not ended."""
    candidates: tuple[Name, ...] = ()
    """The next ones, in their order; those for which there is no supply yet are passed over."""
    room: int = Field(default=0, ge=0)
    """At most so many are asked."""
    progress: ReplanProgress | None = None
    """Written down for those who read the store."""


class MoveSeen(Value):
    """One model as `move_models` saw it."""

    model: Name
    state: Literal["moving", "held", "moved", "failed"]
    change_id: str = ""
    message: str = ""


class MoveTurnResult(Value):
    """Answer of `move_models`: every model that it looked at or asked; a candidate that is not among them still waits."""

    seen: tuple[MoveSeen, ...] = ()
    repair_waits: bool = False
    """Whether the replan that a lost region's drain has asked for waits for this one's end."""


class MoverAsked(Value):
    """Argument of the updates `pause_replan`, `resume_replan` and `cancel_replan`."""

    reason: str = ""


class SteerRequest(Written):
    """Body of what is asked of the replan that runs."""

    action: MoverAction
    reason: str = Field(default="", max_length=500)
