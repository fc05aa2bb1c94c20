"""A replan as the mover of a fleet: many models move at a time, and their progress."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from ipnext.model.value import Name, Value, WrittenValue

MoverAction = Literal["pause", "resume", "cancel"]
"""Commands for a replan that moves models."""


NAMED = 10
"""The most models of each kind that a progress names."""


class MoveTrouble(Value):
    """A model that did not come to where the plan has it."""

    model: Name
    message: str


class PlannedMove(Value):
    """A model that a replan has to move."""

    position: int = Field(ge=0)
    """Its position in the order of the replan, from 0."""
    model: Name
    change_id: str = ""
    """The change that moves it; empty before the request."""
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
        """Percentage of the models that have ended."""
        return 100.0 * (self.moved + self.failed) / self.total if self.total else 100.0

    @property
    def busy(self) -> int:
        """Models that move without a hold."""
        return self.moving - self.held


class MoverState(Value):
    """The state of a mover; the list of the models is in the store."""

    progress: ReplanProgress
    """The last known progress."""
    cancelled: str = ""
    """Why no further model moves at all; empty while moves continue."""
    busy_seconds: float = Field(default=0.0, ge=0)
    """Total time of the moves, pauses not counted."""


class MoveTurn(Value):
    """Input of `move_models`: check the moving models, and start the next ones as far as the window allows."""

    plan_id: str
    window: int = Field(ge=0)
    """Models that may move at a time; held or slow models do not count."""
    asking: bool = True
    """False: no further model starts."""
    wait: bool = True
    """False: a model counts as moved after its request."""
    patience_seconds: float = Field(default=300.0, gt=0)
    """A move that takes longer makes room in the window for the next one."""
    busy_seconds: float = Field(default=0.0, ge=0)
    """Total time of the moves so far, for the pace."""


class MoveTurnResult(Value):
    """Answer of `move_models`."""

    progress: ReplanProgress
    repair_waits: bool = False
    """Whether a replan for the drain of a lost region waits for this one's end."""


class MoverAsked(Value):
    """Argument of the updates `pause_replan`, `resume_replan` and `cancel_replan`."""

    reason: str = ""


class SteerRequest(WrittenValue):
    """Body of what is asked of the replan that runs."""

    action: MoverAction
    reason: str = Field(default="", max_length=500)
