"""Replans of the fleet, and the messages of their workflow."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from ipnext.model.lifecycle.replans.moves import MoverState, ReplanProgress
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value

ReplanTrigger = Literal["schedule", "manual", "supply", "drain", "profile", "shortage"]
"""The trigger of a replan: the clock, a person, a changed fleet, capacity about to go, a new measurement."""


class ReplanState(StrEnum):
    """Where a replan stands. RECORDED is acknowledged: it is never lost from there on."""

    RECORDED = "recorded"
    QUEUED = "queued"
    PLANNING = "planning"
    MOVING = "moving"
    """Its plan is adopted; models take their new places."""
    ADOPTED = "adopted"
    """Done: a new plan is in force."""
    KEPT = "kept"
    """Done: the plan in force stays, for nothing better was found beyond the dead band."""
    DRY_RUN = "dry_run"
    """Done: a plan was computed and stored, and nothing else."""
    FAILED = "failed"
    """No plan could be had, the reason says why; the plan in force stays."""

    @property
    def final(self) -> bool:
        """True if the replan has ended."""
        return self in {ReplanState.ADOPTED, ReplanState.KEPT, ReplanState.DRY_RUN, ReplanState.FAILED}


class Replan(Value):
    """One replan as it was asked for, and what came of it. Several that wait may share one plan."""

    id: str
    """Also the idempotency key: the same id asked twice is one replan."""
    trigger: ReplanTrigger
    dry_run: bool = False
    """Compute and store a plan; adopt nothing, move nothing."""
    max_moves: int | None = Field(default=None, ge=0)
    """At most so many replicas started; None: the platform's setting."""
    state: ReplanState = ReplanState.RECORDED
    reason: Reason = Reason.PENDING
    message: str = ""
    plan_id: str | None = None
    """The plan record that answers it."""
    moves: int = 0
    """Replicas that the adopted plan starts."""
    models: tuple[Name, ...] = ()
    """Models that it has to move, in their order: the first thousand; `progress` counts all."""
    progress: ReplanProgress | None = None
    """How far it is with them; none before the first has been asked."""
    run_id: str | None = None
    """Temporal run id of the run that planned it."""
    not_before: datetime
    """A changed fleet waits so long for further changes."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_adopted(self) -> bool:
        """True if its plan was put in force."""
        return self.state in {ReplanState.MOVING, ReplanState.ADOPTED}


class ReplanInput(Value):
    """Input of workflow `replan`: the requests are in the store."""

    trigger: ReplanTrigger = "manual"
    wait: bool = True
    """Wait until the moved models have finished."""
    computed: "ReplanComputed | None" = None
    """Carried over at continue-as-new: the computed and adopted plan."""
    asked: bool = False
    """Carried over at continue-as-new: another replan may have been requested meanwhile."""
    mover: MoverState | None = None
    """Carried over at continue-as-new: the progress with its models."""


class ReplanComputed(Value):
    """Answer of `replan_fleet`."""

    plan_id: str
    """The record of this replan, also if no plan was found; empty if there was no request."""
    adopted: bool
    """False if the plan in force stays (nothing better within the dead band, a dry run, or no plan)."""
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    moves: int = 0
    total: int = 0
    """Models that don't run yet as the plan in force says: the store lists them, in the order of their moves."""
    trigger: str = ""
    """The trigger, in words."""
    dry_run: bool = False
    window: int = Field(default=1, ge=1)
    """How many models move at a time."""


class ReplanResult(Value):
    """The end of a replan."""

    plan_id: str
    adopted: bool
    moves: int
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    dry_run: bool = False
    progress: ReplanProgress | None = None


class ReplansWaiting(Value):
    """Answer of `finish_replan` and `waiting_replans`: replans requested meanwhile."""

    waiting: int = 0


class ScheduledReplan(Value):
    """Input of workflow `scheduled_replan` and of `ask_replan`. Without an id the workflow's run provides it."""

    id: str | None = None
    trigger: ReplanTrigger = "schedule"
