"""One input and one output for each workflow, update and activity. Add fields with defaults; never retype one.

Plans, route tables and transitions travel by id; their content lies in the store.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from ipnext.model.cause import Place
from ipnext.model.controls import ControlAsked
from ipnext.model.deployment import DeploymentKey
from ipnext.model.gates import GateWindow, RegionTraffic
from ipnext.model.moving import MoverState, ReplanProgress
from ipnext.model.status import Reason
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
    """Bring users and replicas that another generation was left with back to the one that serves; the platform records it."""


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
        """True where nothing more will happen."""
        return self not in {ChangeState.RECORDED, ChangeState.QUEUED, ChangeState.RUNNING}


class Change(Value):
    """One thing asked of one model, in the order of `sequence` (rises for each model)."""

    id: str
    """Also the idempotency key: the same id asked twice is one change."""
    model: Name
    kind: ChangeKind
    sequence: int = Field(ge=1)
    generation: int | None = None
    """The target generation; none where the serving one stays."""
    plan_id: str | None = None
    """The plan to carry out (MOVE)."""
    state: ChangeState = ChangeState.RECORDED
    reason: Reason | None = None
    message: str = ""
    run_id: str | None = None
    """Temporal run id of the lifecycle run."""
    created_at: datetime
    finished_at: datetime | None = None


class ModelEntityInput(Value):
    """Input of workflow `model`; `queue` and `recent` come over at continue-as-new."""

    model: Name
    queue: tuple["QueuedChange", ...] = ()
    recent: tuple[str, ...] = ()
    """Ids of changes seen lately: a repeated submission is not queued twice."""
    serving_generation: int | None = None
    held: ControlAsked | None = None
    """Who paused the model's changes, and why."""
    turned: int = 0
    """How many runs in a row gave way to a newer change."""
    rebuilt: bool = False
    """False for an entity that begins: it reads from the store first what was asked before."""
    begun: tuple["QueuedChange", ...] = ()
    """Changes that have begun and may not have ended: the run of the first one is awaited."""
    superseded: tuple["SupersededChange", ...] = ()
    """What is still to be marked as superseded."""
    told_newer: bool = False
    """The run of the first of `begun` was told that a newer change waits."""
    told_to_end: tuple[str, str] | None = None
    """The change whose run was told to end last, and why."""
    retired: bool = False


class QueuedChange(Value):
    """A change as the entity holds it."""

    id: str
    kind: ChangeKind
    sequence: int
    generation: int | None = None
    plan_id: str | None = None


class ChangeAccepted(Value):
    """Answer of update `submit_change`."""

    change_id: str
    position: int
    """How many changes run before it; 0 where it starts at once."""
    lifecycle_workflow_id: str


class ModelEntityState(Value):
    """Answer of query `model_state`."""

    model: Name
    running: QueuedChange | None
    queue: tuple[QueuedChange, ...]
    handled: int
    held: ControlAsked | None = None
    """Who paused the model's changes, and why."""


class LifecycleInput(Value):
    """Input of workflow `lifecycle`: one change of one model."""

    model: Name
    change: QueuedChange
    held: ControlAsked | None = None
    """The model is paused as the run begins."""


class LifecycleResult(Value):
    """How a lifecycle run ended."""

    state: ChangeState
    generation: int | None = None
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    unanswered: bool = False
    """It waited longer for a person than `rollout.manualDeadlineSeconds`."""


class ChangeBegun(Value):
    """Answer of `begin_change`: what the run works on."""

    generation: int | None = None
    """The generation to serve; none where the model has nothing to serve."""
    revision: int = 0
    """Revision of the manifest that the run works with."""
    supply_patience_seconds: float | None = None
    """How long the run may wait for supply (the manifest's rollout); None: the platform's patience."""
    urgent: bool = False
    """The change moves a model away from a region that is lost: its steps pass those of others."""
    owner: str = ""
    """Of the manifest, for those who search for runs."""
    regions: tuple[Name, ...] = ()
    """Regions whose users the model serves, for the same."""
    final: ChangeState | None = None
    """Set where an earlier run has ended this change already: nothing is left to do."""


class StageInput(Value):
    """Input of the activities of a lifecycle run."""

    model: Name
    change_id: str
    kind: ChangeKind
    generation: int
    plan_id: str | None = None


class Resolved(Value):
    """Answer of `resolve_snapshots`."""

    parts: int
    size_bytes: int
    summary: str
    cuts: bool = False
    """Whether the generation has to be cut (or no longer shall be): the run optimizes it then."""
    places: bool = False
    """Whether the placement in force is of other parts than the generation's: a rollback plans then, too."""
    note: str = ""
    """What the end of the run shall tell beside what came of it."""


class CheckResult(Value):
    """One check of the validation report. The schema of this result is fixed."""

    check: str
    subject: str
    """What was looked at: a part, a file, an edge of the graph."""
    passed: bool
    reason: Reason = Reason.SUCCEEDED
    message: str = ""


class ValidationReport(Value):
    """All checks of one generation. It passes where every check does."""

    model: Name
    generation: int
    checks: tuple[CheckResult, ...]

    @property
    def refused(self) -> CheckResult | None:
        """The first check that failed, if any."""
        return next((check for check in self.checks if not check.passed), None)


class Optimized(Value):
    """Answer of `optimize_generation`."""

    parts: int = 0
    """Parts that it is cut into; 0 where it is not."""
    summary: str = ""
    refused: bool = False
    """The policy does not fit, or the pieces answer otherwise than the whole; the reason says which."""
    reason: Reason = Reason.SUCCEEDED


class Planned(Value):
    """Answer of `place_model` and `compute_plan`."""

    plan_id: str
    feasible: bool
    moves: int
    cost_per_hour: float
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    place: Place = Place()
    """Where the most demand stays unserved, where nothing could be placed."""


class TransitionPlanned(Value):
    """Answer of `plan_transition`: the waves lie in the store."""

    transition_id: str
    waves: int
    refused: str | None = None
    deadline_seconds: float = 600.0
    """How long one wave may wait for the infrastructure (the manifest's rollout)."""
    approval: Literal["none", "canary", "each"] = "none"
    manual_deadline_seconds: float = 86400.0
    """How long it may wait for a person."""
    on_newer: Literal["finish", "turn"] = "finish"
    gates: tuple[str, ...] = ()
    """The gate of each wave."""
    price: str = ""
    """What the waves take beyond both states, or miss against the traffic, in words."""
    back: Literal["at_once", "by_waves"] = "at_once"
    """How the way back goes: in one step, or wave by wave where the supply does not hold all of it at once."""
    fence: int = 0
    """The fencing token: the run that walks the waves writes only as long as the store has no other."""


class Revert(Value):
    """Of a transition whose run has gone: where it is to begin its way back, and why."""

    index: int
    reason: Reason
    message: str


class TransitionInput(Value):
    """Input of workflow `transition`."""

    transition_id: str
    model: Name
    generation: int
    waves: int
    deadline_seconds: float
    change_id: str
    approval: Literal["none", "canary", "each"] = "none"
    """Behind which waves a person has to approve."""
    manual_deadline_seconds: float = 86400.0
    on_newer: Literal["finish", "turn"] = "finish"
    gates: tuple[str, ...] = ()
    back: Literal["at_once", "by_waves"] = "at_once"
    held: ControlAsked | None = None
    """The model is paused as the transition begins."""
    fence: int = 0
    urgent: bool = False
    """Its steps pass those of others: it brings back what has served before."""
    revert: Revert | None = None
    """Only walk back, from here: the run that walked before was ended from outside."""


class WaveInput(Value):
    """One wave of one transition."""

    transition_id: str
    model: Name
    generation: int
    index: int
    deadline_seconds: float
    """How long the wave may wait for the infrastructure, at each of its steps."""
    waited_seconds: float = 0.0
    """How long it has waited at this step before."""
    fence: int = 0
    """The fencing token of the run."""
    back: bool = False
    """True on the way back to where the transition began; `index` is the wave that failed."""
    by_waves: bool = False
    """On the way back: only the wave `index` is undone; those before it follow."""
    reason: Reason = Reason.SUCCEEDED
    """On the way back: why."""
    message: str = ""
    baseline: tuple[RegionTraffic, ...] = ()
    """For the gate: the target generation's counts just before the wave's traffic moved."""
    early: bool = False
    """For the gate: a look during the hold; only what is certain by now fails it."""
    watched_seconds: float = 0.0
    """For the gate: how long it has waited for more answers beyond the hold."""
    window: GateWindow | None = None
    """For the gate, with `baseline`: the `window` that `shift_traffic` answered; None: errors alone are judged."""


class WaveResult(Value):
    """What an activity of a wave did."""

    ok: bool
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    place: Place = Place()
    """What failed, where `ok` is false."""
    hold_seconds: float = 0.0
    baseline: tuple[RegionTraffic, ...] = ()
    """Answer of `shift_traffic`: the counts from before."""
    window: GateWindow | None = None
    """Answer of `shift_traffic`: what else the gate needs."""
    again_seconds: float = 0.0
    """Answer of `check_gate`: too few answers to judge; ask again after so long. Of `ensure_capacity`, with `ok` false: not ready yet."""
    waited_seconds: float = 0.0
    """Answer of `ensure_capacity`, with `again_seconds`: how long this look was."""
    unanswered: bool = False
    """The wave waited longer for a person than `rollout.manualDeadlineSeconds`."""


class TransitionResult(Value):
    """How a transition ended."""

    done: bool
    waves_done: int
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    undone: str = ""
    """What of its way back is not done, in words; the message says it, too."""
    unanswered: bool = False
    """It was reverted because a wave waited longer for a person than `rollout.manualDeadlineSeconds`."""


class RecordInput(Value):
    """What the end of a run leaves in the store."""

    model: Name
    change_id: str
    kind: ChangeKind
    generation: int | None
    result: LifecycleResult
    run_id: str
    plan_id: str | None = None
    revision: int = 0
    """Revision of the manifest that the run worked with."""


class ProgressInput(Value):
    """A stage begins: conditions, change state and the run's id are written down."""

    model: Name
    change_id: str
    stage: str
    run_id: str
    generation: int | None = None


class SupersededChange(Value):
    """A change and the newer one that made it pointless."""

    change_id: str
    by: str


class SupersededInput(Value):
    """Changes that newer ones made pointless."""

    model: Name
    superseded: tuple[SupersededChange, ...]


class Done(Value):
    """Answer of an activity that has nothing to tell."""

    note: str = ""


ReplanTrigger = Literal["schedule", "manual", "supply", "drain", "profile", "shortage"]
"""What asks for a replan: the clock, a person, a changed fleet, capacity that is about to go, a new measurement."""


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
        """True where nothing more will happen."""
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
    def adopted(self) -> bool:
        """True where its plan was put in force."""
        return self.state in {ReplanState.MOVING, ReplanState.ADOPTED}


class ReplanInput(Value):
    """Input of workflow `replan`: what is asked for lies in the store."""

    trigger: ReplanTrigger = "manual"
    wait: bool = True
    """Wait until the moved models have finished."""
    computed: "ReplanComputed | None" = None
    """Comes over at continue-as-new: what was computed and adopted."""
    asked: bool = False
    """Comes over at continue-as-new: another replan may have been asked for meanwhile."""
    mover: MoverState | None = None
    """Comes over at continue-as-new: how far it is with its models."""


class ReplanComputed(Value):
    """Answer of `replan_fleet`."""

    plan_id: str
    """The record of this replan, also where no plan was found; empty where nothing was asked for."""
    adopted: bool
    """False where the plan in force stays (nothing better within the dead band, a dry run, or no plan)."""
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    moves: int = 0
    total: int = 0
    """Models that don't run yet as the plan in force says: the store lists them, in the order to move them."""
    trigger: str = ""
    """What asked for it, in words."""
    dry_run: bool = False
    window: int = Field(default=1, ge=1)
    """How many models move at a time."""


class ReplanResult(Value):
    """How a replan ended."""

    plan_id: str
    adopted: bool
    moves: int
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    dry_run: bool = False
    progress: ReplanProgress | None = None


class ReplansWaiting(Value):
    """Answer of `finish_replan` and `waiting_replans`: replans that were asked for meanwhile."""

    waiting: int = 0


class ScheduledReplan(Value):
    """Input of workflow `scheduled_replan` and of `ask_replan`. Without an id the workflow's run gives it."""

    id: str | None = None
    trigger: ReplanTrigger = "schedule"


class DeploymentStatus(Value):
    """A deployment's wanted and observed replica counts."""

    key: DeploymentKey
    wanted: int
    ready: int
    generations: tuple[int, ...] = ()
