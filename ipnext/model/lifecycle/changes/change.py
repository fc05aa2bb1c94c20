"""Changes: what is asked of a model, and where it stands."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value


class ChangeKind(StrEnum):
    """What is asked of a model."""

    PUBLISH = "publish"
    """New snapshots: walk through every stage."""
    ROLLBACK = "rollback"
    """Back to a former generation: no validation of what has served before."""
    APPLY = "apply"
    """A new manifest with the serving snapshots: plan again, then move."""
    MOVE = "move"
    """A new fleet plan: the generation stays, the placement changes."""
    RETIRE = "retire"
    """Take the model out of serving and free its capacity."""
    REPAIR = "repair"
    """Bring users and replicas that another generation was left with back to the one that serves; the platform records
    it."""


class ChangeState(StrEnum):
    """Where a change stands. RECORDED is acknowledged: it is never lost from there on."""

    RECORDED = "recorded"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"

    @property
    def final(self) -> bool:
        """True if the change has ended."""
        return self not in {ChangeState.RECORDED, ChangeState.QUEUED, ChangeState.RUNNING}


class Change(Value):
    """One thing asked of one model, in the order of `sequence` (rises for each model)."""

    id: str
    """Also the idempotency key: the same id asked twice is one change."""
    model: Name
    kind: ChangeKind
    sequence: int = Field(ge=1)
    generation: int | None = None
    """The target generation; none if the serving one stays."""
    plan_id: str | None = None
    """The plan to carry out (MOVE)."""
    state: ChangeState = ChangeState.RECORDED
    reason: Reason | None = None
    message: str = ""
    run_id: str | None = None
    """Temporal run id of the lifecycle run."""
    created_at: datetime
    finished_at: datetime | None = None

    @property
    def is_retried(self) -> bool:
        """True while a step of the run has failed and is tried again; `reason` and `message` are its failure."""
        return self.state is ChangeState.RUNNING and self.reason not in {None, Reason.FROZEN} and bool(self.message)

    @property
    def is_stuck(self) -> bool:
        """True while attempts to submit the recorded change to the workflow engine fail; `message` has the error."""
        return self.state is ChangeState.RECORDED and bool(self.message)


class QueuedChange(Value):
    """A change in the entity's queue."""

    id: str
    kind: ChangeKind
    sequence: int
    generation: int | None = None
    plan_id: str | None = None
