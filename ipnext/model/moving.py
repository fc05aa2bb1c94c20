"""A replan as the mover of a fleet: what is asked of many models at a time, and how far it is."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from ipnext.model.value import Name, Value, Written

MoverAction = Literal["pause", "resume", "cancel"]
"""What may be asked of a replan that moves models."""


NAMED = 10
"""Models that a progress names of each kind at most."""


class MoveTrouble(Value):
    """A model that did not come to where the plan has it."""

    model: Name
    message: str


class PlannedMove(Value):
    """A model that a replan has to move."""

    position: int = Field(ge=0)
    """Its place in the order of the replan, from 0."""
    model: Name
    change_id: str = ""
    """The change that moves it; empty before it was asked."""
    asked_at: datetime | None = None


class MovesPause(Value):
    """A pause of all moves of replans."""

    reason: str
    paused_at: datetime


class ReplanProgress(Value):
    """How far a replan is with its models. Its size does not depend on how many they are."""

    total: int
    moved: int = 0
    """Models that have taken their place."""
    moving: int = 0
    """Models that were asked and have not ended."""
    held: int = 0
    """Of those: frozen or paused ones. They are watched on, and take no place of the window."""
    waiting: int = 0
    """Models that are still to be asked."""
    failed: int = 0
    """Models that did not come to where the plan has them."""
    moving_models: tuple[Name, ...] = Field(default=(), max_length=NAMED)
    """The first of those that move."""
    held_models: tuple[Name, ...] = Field(default=(), max_length=NAMED)
    """The first of those that are held."""
    troubles: tuple[MoveTrouble, ...] = Field(default=(), max_length=NAMED)
    """The newest failures."""
    paused: str = ""
    """Why no further model is asked; empty where it goes on."""
    per_minute: float = Field(default=0.0, ge=0)
    """Models moved a minute, pauses not counted."""

    @property
    def percent(self) -> float:
        """Of the models: those that have ended."""
        return 100.0 * (self.moved + self.failed) / self.total if self.total else 100.0

    @property
    def busy(self) -> int:
        """Models that move by themselves."""
        return self.moving - self.held


class MoverState(Value):
    """All that a mover has to remember; which models move lies in the store."""

    progress: ReplanProgress
    """As it was last seen."""
    cancelled: str = ""
    """Why no further model is asked at all; empty where it goes on."""
    busy_seconds: float = Field(default=0.0, ge=0)
    """How long models were moved, pauses not counted."""


class MoveTurn(Value):
    """Input of `move_models`: look at those that move, ask the next ones as far as there is room."""

    plan_id: str
    window: int = Field(ge=0)
    """Models that may move at a time; those that are held, or slow, take no place."""
    asking: bool = True
    """False: no further model is asked."""
    wait: bool = True
    """False: a model that was asked counts as moved."""
    patience_seconds: float = Field(default=300.0, gt=0)
    """A move that takes longer gives its place in the window to the next one."""
    busy_seconds: float = Field(default=0.0, ge=0)
    """How long models were moved so far, for the pace."""


class MoveTurnResult(Value):
    """Answer of `move_models`."""

    progress: ReplanProgress
    repair_waits: bool = False
    """Whether the replan that a lost region's drain has asked for waits for this one's end."""


class MoverAsked(Value):
    """Argument of the updates `pause_replan`, `resume_replan` and `cancel_replan`."""

    reason: str = ""


class SteerRequest(Written):
    """Body of what is asked of the replan that runs."""

    action: MoverAction
    reason: str = Field(default="", max_length=500)
