"""One input and one output for each workflow, update and activity. Add fields with defaults; never change a type.

Plans, route tables and transitions are passed by id; their content is in the store.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from ipnext.model.gate.gate import GateWindow, RegionTraffic
from ipnext.model.gate.live import JudgedRound
from ipnext.model.lifecycle.controls import ControlAsked
from ipnext.model.lifecycle.failure_cause import Place
from ipnext.model.lifecycle.replan_moves import MoverState, ReplanProgress
from ipnext.model.lifecycle.stage_order import ComposedStage
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

    @property
    def is_retried(self) -> bool:
        """True while a step of the run has failed and is tried again; `reason` and `message` are its failure."""
        return self.state is ChangeState.RUNNING and self.reason not in {None, Reason.FROZEN} and bool(self.message)

    @property
    def is_stuck(self) -> bool:
        """True while attempts to submit the recorded change to the workflow engine fail; `message` has the error."""
        return self.state is ChangeState.RECORDED and bool(self.message)


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


class QueuedChange(Value):
    """A change in the entity's queue."""

    id: str
    kind: ChangeKind
    sequence: int
    generation: int | None = None
    plan_id: str | None = None


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


class LifecycleInput(Value):
    """Input of workflow `lifecycle`: one change of one model."""

    model: Name
    change: QueuedChange
    held: ControlAsked | None = None
    """The pause of the model as the run begins."""


class LifecycleResult(Value):
    """The end of a lifecycle run."""

    state: ChangeState
    generation: int | None = None
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    unanswered: bool = False
    """Whether it waited longer for a person than `rollout.manualDeadlineSeconds`."""
    stopped_by: str | None = None
    """The change that preempted it; None if it is done, or ended otherwise."""


class ChangeBegun(Value):
    """Answer of `begin_change`: the data for the run."""

    generation: int | None = None
    """The generation to serve; none if the model has nothing to serve."""
    revision: int = 0
    """Revision of the manifest that the run works with."""
    supply_patience_seconds: float | None = None
    """Longest wait of the run for supply (the manifest's rollout); None: the platform's default."""
    urgent: bool = False
    """Whether the change moves a model away from a lost region: its steps have precedence over others."""
    owner: str = ""
    """The manifest's owner, for searches of runs."""
    regions: tuple[Name, ...] = ()
    """Regions whose users the model serves, for the same purpose."""
    stages: tuple[ComposedStage, ...] | None = None
    """Its stages in their order; None: the default order of its kind."""
    misfit: str = ""
    """Why the entries that change the order do not fit each other: the change is refused."""
    final: ChangeState | None = None
    """Set if an earlier run has already ended this change: nothing is left to do."""


class StageInput(Value):
    """Input of the activities of a lifecycle run."""

    model: Name
    change_id: str
    kind: ChangeKind
    generation: int
    plan_id: str | None = None


class ResolutionResult(Value):
    """Answer of `resolve_snapshots`."""

    parts: int
    size_bytes: int
    summary: str
    cuts: bool = False
    """Whether the generation has to be cut or derived (or no longer has to be): then the run optimizes it."""
    places: bool = False
    """Whether the placement in force has other parts than the generation: then a rollback plans as well."""
    note: str = ""
    """A note for the run's final message."""


class OptimizationResult(Value):
    """Answer of `optimize_generation`."""

    parts: int = 0
    """Number of parts after the cut; 0 if it is not cut."""
    summary: str = ""
    refused: bool = False
    """A policy or step does not fit, or its result answers too differently; the reason says which."""
    reason: Reason = Reason.SUCCEEDED


class PlanningResult(Value):
    """Answer of `place_model` and `compute_plan`."""

    plan_id: str
    feasible: bool
    moves: int
    cost_per_hour: float
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    place: Place = Place()
    """The place of the most unserved demand, if nothing could be placed."""


class TransitionPlanned(Value):
    """Answer of `plan_transition`: the waves are in the store."""

    transition_id: str
    waves: int
    refused: str | None = None
    deadline_seconds: float = 600.0
    """Longest wait of one wave for the infrastructure (the manifest's rollout)."""
    approval: Literal["none", "canary", "each"] = "none"
    manual_deadline_seconds: float = 86400.0
    """Longest wait for a person."""
    on_newer: Literal["finish", "turn"] = "finish"
    gates: tuple[str, ...] = ()
    """The gate of each wave."""
    price: str = ""
    """The surge of the waves beyond both states, or their shortfall against the traffic, in words."""
    back: Literal["at_once", "by_waves"] = "at_once"
    """The way of a revert: in one step, or wave by wave if the supply does not fit all of it at once."""
    fence: int = 0
    """The fencing token: the transition's run writes only while the store has no other."""
    times_replicas: bool = False
    """Whether live replicas are timed before the first traffic moves (`spec.validation.liveLatency`)."""


class Revert(Value):
    """For a transition without a run: the wave at which its revert begins, and the reason."""

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
    """The waves after which a person has to approve."""
    manual_deadline_seconds: float = 86400.0
    on_newer: Literal["finish", "turn"] = "finish"
    gates: tuple[str, ...] = ()
    back: Literal["at_once", "by_waves"] = "at_once"
    held: ControlAsked | None = None
    """The pause of the model as the transition begins."""
    fence: int = 0
    urgent: bool = False
    """Whether its steps have precedence: it brings back a generation that has served before."""
    times_replicas: bool = False
    """Whether live replicas are timed before the first traffic moves."""
    revert: Revert | None = None
    """Only revert, from here: the former run was ended from outside."""


class WaveInput(Value):
    """One wave of one transition."""

    transition_id: str
    model: Name
    generation: int
    index: int
    deadline_seconds: float
    """Longest wait of the wave for the infrastructure, at each of its steps."""
    waited_seconds: float = 0.0
    """Seconds that it has already waited at this step."""
    fence: int = 0
    """The fencing token of the run."""
    back: bool = False
    """True during the revert to the transition's beginning; `index` is the wave that failed."""
    by_waves: bool = False
    """For a revert: only the wave `index` is undone; those before it follow."""
    reason: Reason = Reason.SUCCEEDED
    """For a revert: the reason."""
    message: str = ""
    baseline: tuple[RegionTraffic, ...] = ()
    """For the gate: the target generation's counts just before the wave's traffic moved."""
    early: bool = False
    """For the gate: a check during the hold; only a violation that is already certain fails it."""
    watched_seconds: float = 0.0
    """For the gate: seconds that it has waited for more answers beyond the hold."""
    window: GateWindow | None = None
    """For the gate, with `baseline`: the `window` that `shift_traffic` answered; None: errors alone are judged."""
    rounds: tuple[JudgedRound, ...] = ()
    """For the timing of live replicas: the rounds so far."""


class WaveResult(Value):
    """The result of an activity of a wave."""

    ok: bool
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    place: Place = Place()
    """The failed place, if `ok` is false."""
    hold_seconds: float = 0.0
    baseline: tuple[RegionTraffic, ...] = ()
    """Answer of `shift_traffic`: the counts from before."""
    window: GateWindow | None = None
    """Answer of `shift_traffic`: further data for the gate."""
    again_seconds: float = 0.0
    """Answer of `check_gate`: too few answers to judge; call again after this time. Answer of `ensure_capacity`,
    with `ok` false: not ready yet."""
    waited_seconds: float = 0.0
    """Answer of `ensure_capacity`, with `again_seconds`: the duration of this check."""
    unanswered: bool = False
    """Whether the wave waited longer for a person than `rollout.manualDeadlineSeconds`."""
    rounds: tuple[JudgedRound, ...] = ()
    """Answer of `time_replicas`, with `again_seconds`: the rounds so far; call again with them."""


class TransitionResult(Value):
    """The end of a transition."""

    done: bool
    waves_done: int
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    undone: str = ""
    """The part of its revert that is not done, in words; the message has it, too."""
    unanswered: bool = False
    """Whether it was reverted because a wave waited longer for a person than `rollout.manualDeadlineSeconds`."""


class RecordInput(Value):
    """The record of a run's end in the store."""

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
    """The beginning of a stage: conditions, change state and the run's id are recorded."""

    model: Name
    change_id: str
    stage: str
    run_id: str
    generation: int | None = None


class SupersededChange(Value):
    """A change and the newer one that superseded it."""

    change_id: str
    by: str


class SupersededInput(Value):
    """Changes that newer ones superseded."""

    model: Name
    superseded: tuple[SupersededChange, ...]


class Done(Value):
    """Answer of an activity without a result."""

    note: str = ""


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
