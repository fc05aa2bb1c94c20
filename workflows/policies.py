"""Every timeout and retry policy, named once, and every activity by its name, answer and policy.

Workflow files call activities through `perform` and never import them: importing the store inside the sandbox costs
seconds. A test checks that the worker registers each name.
"""

import os
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy, VersioningBehavior

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.change import ChangeKind
    from ipnext.model.lifecycle.changes.lifecycle_run import (
        ChangeBegun,
        Done,
        OptimizationResult,
        PlanningResult,
        ResolutionResult,
    )
    from ipnext.model.lifecycle.changes.takeover import ChangeSeen, MayPass, OpenChanges, TakenOver
    from ipnext.model.lifecycle.changes.transition_run import TransitionPlanned, WaveResult
    from ipnext.model.lifecycle.checks import ValidationReport
    from ipnext.model.lifecycle.preparation import PreparationResult
    from ipnext.model.lifecycle.regions.drain import DrainSeen
    from ipnext.model.lifecycle.regions.reconciliation import FreshnessJudged, RegionReconciled, RepairsRecorded
    from ipnext.model.lifecycle.replans.moves import MoveTurnResult
    from ipnext.model.lifecycle.replans.replan import ReplanComputed, ReplansWaiting
    from ipnext.model.lifecycle.shadow import ShadowSeen
    from ipnext.model.lifecycle.sources import PickUpResult, PollResult
    from ipnext.model.lifecycle.stages import StageJudged, StageRequest
    from ipnext.model.manifest.freeze import FreezeAnswer
    from ipnext.model.value import Value
    from ipnext.timing import Timing

A = TypeVar("A", bound=Value)

BUGS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""Errors that a bug in workflow code raises: the run fails and reports the error, instead of hanging forever.
Nondeterminism is not among them: that run waits for the right code. The entity lists none: its queue must survive a bug
until it is fixed.
"""

OTHER_HISTORY: tuple[type[Exception], ...] = (workflow.NondeterminismError,)
"""Error that ends an entity: its history does not replay, which no retry fixes. The next one reads all open changes
from the store.

It need not be a fault of the code: a worker that replays may put an update before an event of an earlier task without
commands (temporalio/sdk-rust#1146), and commands then come in another order.
"""

BEGUN_AGAIN: tuple[type[Exception], ...] = (*BUGS, *OTHER_HISTORY)
"""Errors that end a run which is begun again from the store or by its schedule: replans, drains and reconciliation."""

BUILD_ID = os.environ.get("IPNEXT_WORKER_BUILD_ID") or None
"""Build id of this code, if Temporal routes runs by builds. Read at import: the decorators below need it, and the
server refuses a behaviour from a worker without a build id.
"""

ONE_RUN = VersioningBehavior.PINNED if BUILD_ID else VersioningBehavior.UNSPECIFIED
"""Runs that end: they end on the build that they began on."""

ENTITY = VersioningBehavior.AUTO_UPGRADE if BUILD_ID else VersioningBehavior.UNSPECIFIED
"""Runs that never end: they move to the current build."""

SHORTEST_WATCHED_SECONDS = 10.0
"""If a bake time is at least this long, its answers are checked before it ends."""

GATE_EVERY_SECONDS = 5.0
"""Least time between two checks of the answers during a bake time."""

MOST_LOOKS = 20
"""During one bake time, so that one of hours makes no long history."""

MOST_WAIT_LOOKS = 300
"""Of the answers, during a wait for an approval; not more often than GATE_EVERY_SECONDS."""

MOST_TURNS = 3
"""Runs in a row that a newer publish may supersede; the next one is completed, so that one finally is."""

QUICK_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10))
"""For failures that are mostly restarts: soon again, then every ten seconds."""

WAVE_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=5))
"""For unreachable regions: a region that answers again is noticed within five seconds."""

SUPPLY_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=1.5, maximum_interval=timedelta(seconds=15)
)
"""For supply that another model's transition is about to free."""

POLL_LIMIT = timedelta(minutes=10)
"""One poll of all sources of an upstream system; each request has limits of its own."""

POLL_PATIENCE = timedelta(minutes=30)
"""All attempts at one poll: the next one finds what this one did not."""

POLL_JITTER = 0.1
"""Share of an interval by which a poll may be later, so that thousands of watches do not poll at once."""

POLL_AGAIN = timedelta(seconds=15)
"""Until the next poll after one that failed as a whole."""

PICK_UP_LIMIT = timedelta(hours=4)
"""Reading some hundred gigabytes from a slow upstream system."""

COLLECTION_LIMIT = timedelta(hours=4)
"""Of a pass over the artifact store; the next one continues with the rest."""
STEP_PATIENCE = timedelta(hours=24)
"""All attempts at a step that changes nothing or can be reverted: then the run ends with a message. It outlasts an
outage of the database or of a region for a day, and ends steps that would be retried forever (a lasting Conflict).
"""

VALIDATION_LIMIT = timedelta(hours=2)
"""Reading some hundred gigabytes twice from an object store."""

OPTIMIZATION_LIMIT = timedelta(hours=2)
"""Fetching a model, splitting it, running it whole and in pieces, and storing the pieces."""

PLACEMENT_LIMIT = timedelta(minutes=10)
"""One model: seconds as a rule; the first time imports the solver. If budgets bind, a large model takes two searches,
each in a process with a hard limit."""

REPLAN_LIMIT = timedelta(minutes=25)
"""The whole fleet. The planner's process has a lower hard limit: at most 15 minutes of search and 4 of grace
(ipnext/settings.py), which leaves 6 to read and write some ten thousand models.
"""

REPLAN_PATIENCE = timedelta(hours=1)
"""All attempts at one replan: then it has failed, with a message. The plan in force stays."""

RUNNING_MOVES_PATIENCE = timedelta(minutes=10)
"""Longest wait of a requested replan for moves in progress. They continue in any case."""

SUPPLY_PATIENCE = timedelta(minutes=10)
"""Longest wait of a transition for supply that another one frees, before it is refused."""

MOST_REVERTS = 3
"""Runs that are started one after the other to revert a transition whose run is gone."""

TAKEOVER_LOOK_SOON = timedelta(seconds=1)
"""Until the next check of a transition that reverts by itself; then twice as long, and so on."""

TAKEOVER_LOOK = timedelta(seconds=15)

FOLLOWED_LOOK_SOON = timedelta(seconds=15)
"""Between two checks of a run that another entity started. It reports its end: the checks are for one that can't."""

FOLLOWED_LOOKS_SOON = 20

FOLLOWED_LOOK = timedelta(minutes=5)

MARKS_SOON = 20
"""Times that one run of an entity marks changes as superseded at once; then it does so once a minute."""

MARK_EVERY = timedelta(minutes=1)

LOOK_AGAIN = timedelta(minutes=2)
"""Until an entity that gave up on a change reads the open changes again: a bug is seldom fixed sooner."""

MOST_EVENTS = 10_000
"""Of one run of an entity; then it continues as new. The server ends a run with 51,200."""

MOST_UPDATES = 1_000
"""The same. The server refuses more than 2,000 to one run."""

DRAIN_LOOK = timedelta(seconds=1)
"""Between two checks of a region that is drained: a user waits for it."""

DRAIN_LOOKS_SOON = 120
"""Number of these checks; later ones are further apart."""

DRAIN_LOOK_LATER = timedelta(seconds=15)

RECONCILE_PATIENCE = timedelta(minutes=5)
"""All attempts at one step of a pass: the next pass retries."""

FIRST_PAUSE_SECONDS = 0.5
"""Between a wave's first two attempts at a step; then twice as long, and so on."""

RETRY_PAUSE_SECONDS = 5.0
"""The longest one after a failure: a region that answers again is noticed within this time."""

LOOK_PAUSE_SECONDS = 10.0
"""The longest one between two checks of replicas that are not ready yet."""

BUG_ATTEMPTS = 5
"""Of a wave at a step that fails by a bug."""

FEW_TRIES = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_attempts=3)
"""For steps that can be done in another way."""

ONE_ATTEMPT = RetryPolicy(maximum_attempts=1)
"""For a step that its workflow retries itself."""

URGENT = Priority(priority_key=1)
"""Of steps and runs that go first if a queue is full."""

USUAL = Priority(priority_key=3)
"""Of runs of changes that are not urgent: stated, since a child has the priority of its parent otherwise."""

URGENT_KINDS = frozenset({ChangeKind.ROLLBACK, ChangeKind.REPAIR})
"""Changes that restore a generation that has served before: their steps pass those of others. So do moves out of a lost
region."""


def priority_of(*, urgent: bool) -> Priority:
    """Return the priority of a run's workflow tasks, and of its steps that state none."""
    return URGENT if urgent else USUAL


FREEZE_LOOKS_EVERY = timedelta(hours=1)
"""A run that waits for a freeze is signalled when freezes change; this often it checks itself, in case a signal was
missed."""

FREEZE_LOOKS = 48
"""If that gives more checks than this many, they are further apart: this many in the time that is left. A wait of a
year is then some three hundred checks and four thousand events, a week some sixty checks.
"""

MOVER_LOOK_SOON = timedelta(milliseconds=300)
"""Between two checks of the models that move, while a replan is young: most are small."""

MOVER_LOOKS_SOON = 20

PAUSE_LOOK = timedelta(minutes=5)
"""A replan whose moves are paused is signalled when they resume; this often it checks itself, in case a signal was
missed."""

MOVER_LOOK = timedelta(seconds=1)
"""The same, later: one check costs the same for one model as for a whole window."""


@dataclass(frozen=True)
class ActivityStep(Generic[A]):
    """One activity: its name, its answer, its time limits and its retries.

    `one_attempt`: None for one unit of work in the store, whose limit is a setting, as is that of heartbeats
    (`ipnext.timing`). `busy`: it occupies the processor, so that heartbeats may come late. `total` bounds all attempts
    together. Without one, `unbounded` states the reason: the caller bounds it, or giving up is worse.
    """

    name: str
    answer: type[A]
    one_attempt: timedelta | None = None
    retry: RetryPolicy = field(default_factory=lambda: QUICK_RETRY)
    total: timedelta | None = None
    busy: bool = False
    queue: str | None = None
    urgent: bool = False
    unbounded: str = ""

    def once(self) -> "ActivityStep[A]":
        """Return the same step with one attempt: the workflow retries it, and counts (`workflows.attempts`)."""
        return replace(self, total=STEP_PATIENCE, retry=ONE_ATTEMPT)

    def passing(self, *, urgent: bool) -> "ActivityStep[A]":
        """Return the same step.

        An urgent one on the queue whose slots no wait takes, or first in its dedicated queue.
        """
        return replace(self, queue=self.queue or names.URGENT_QUEUE, urgent=True) if urgent else self


TIMING = "ipnext_timing"
"""Name of the function by which a worker passes its `Timing` to workflows (`workflows.time_limits`)."""

BY_THE_WAVE = "each call is bounded by the wave's deadline"
KEEPS_THE_RECORD = "an end that is never written leaves the record untrue: a late one is better"
LEVEL_TRIGGERED = (
    "a loop that looks at the store and does one thing: giving up would leave a region or a replan half moved"
)

BEGIN_CHANGE = ActivityStep("begin_change", ChangeBegun, total=STEP_PATIENCE, queue=names.URGENT_QUEUE)
PREPARE_CHANGE = ActivityStep(
    "prepare_change",
    PreparationResult,
    PLACEMENT_LIMIT,
    retry=FEW_TRIES,
    busy=True,
    total=STEP_PATIENCE,
)
RESOLVE_SNAPSHOTS = ActivityStep("resolve_snapshots", ResolutionResult, timedelta(minutes=2), total=STEP_PATIENCE)
VALIDATE_GENERATION = ActivityStep(
    "validate_generation",
    ValidationReport,
    VALIDATION_LIMIT,
    busy=True,
    total=STEP_PATIENCE,
)
OPTIMIZE_GENERATION = ActivityStep(
    "optimize_generation", OptimizationResult, OPTIMIZATION_LIMIT, busy=True, total=STEP_PATIENCE
)
BEGIN_STAGE = ActivityStep("begin_stage", StageRequest, total=STEP_PATIENCE)
RECORD_STAGE = ActivityStep("record_stage", StageJudged, total=STEP_PATIENCE)
KEEP_SHADOW = ActivityStep("keep_shadow", ShadowSeen, timedelta(minutes=2), retry=WAVE_RETRY, total=STEP_PATIENCE)
END_SHADOW = ActivityStep("end_shadow", Done, timedelta(minutes=2), retry=WAVE_RETRY, total=STEP_PATIENCE)
FREEZE_OF = ActivityStep("freeze_of", FreezeAnswer, total=STEP_PATIENCE)
PLACE_MODEL = ActivityStep(
    "place_model",
    PlanningResult,
    PLACEMENT_LIMIT,
    queue=names.PLANNER_QUEUE,
    busy=True,
    total=STEP_PATIENCE,
)
PLAN_TRANSITION = ActivityStep(
    "plan_transition",
    TransitionPlanned,
    timedelta(minutes=1),
    retry=SUPPLY_RETRY,
    unbounded="the workflow counts its attempts and pauses",
)
ENSURE_CAPACITY = ActivityStep(
    "ensure_capacity",
    WaveResult,
    timedelta(minutes=5),
    unbounded=BY_THE_WAVE,
)
SHIFT_TRAFFIC = ActivityStep("shift_traffic", WaveResult, timedelta(minutes=2), unbounded=BY_THE_WAVE)
TIME_REPLICAS = ActivityStep("time_replicas", WaveResult, timedelta(minutes=3), unbounded=BY_THE_WAVE)
CHECK_GATE = ActivityStep("check_gate", WaveResult, timedelta(minutes=1), unbounded=BY_THE_WAVE)
RELEASE_CAPACITY = ActivityStep("release_capacity", WaveResult, timedelta(minutes=2), unbounded=BY_THE_WAVE)
NOTE_HOLD = ActivityStep("note_hold", Done, total=timedelta(minutes=2), queue=names.URGENT_QUEUE)
FINISH_CHANGE = ActivityStep("finish_change", Done, unbounded=KEEPS_THE_RECORD, queue=names.URGENT_QUEUE)
OPEN_CHANGES = ActivityStep("open_changes", OpenChanges, unbounded=KEEPS_THE_RECORD, queue=names.URGENT_QUEUE)
LOOK_AT_CHANGE = ActivityStep("look_at_change", ChangeSeen, unbounded=LEVEL_TRIGGERED, queue=names.URGENT_QUEUE)
MAY_PASS = ActivityStep("may_pass", MayPass, unbounded=LEVEL_TRIGGERED, queue=names.URGENT_QUEUE)
TAKE_OVER = ActivityStep(
    "take_over", TakenOver, timedelta(minutes=1), unbounded=KEEPS_THE_RECORD, queue=names.URGENT_QUEUE
)
MARK_SUPERSEDED = ActivityStep("mark_superseded", Done, total=STEP_PATIENCE, queue=names.URGENT_QUEUE)
WITHDRAW_MODEL = ActivityStep("withdraw_model", Done, timedelta(minutes=2), retry=WAVE_RETRY, total=STEP_PATIENCE)
RELEASE_MODEL = ActivityStep("release_model", Done, timedelta(minutes=10), retry=WAVE_RETRY, unbounded=KEEPS_THE_RECORD)
REPLAN_FLEET = ActivityStep(
    "replan_fleet",
    ReplanComputed,
    REPLAN_LIMIT,
    total=REPLAN_PATIENCE,
    queue=names.URGENT_QUEUE,
    busy=True,
)
COLLECT_ARTIFACTS = ActivityStep("collect_artifacts", Done, COLLECTION_LIMIT, total=STEP_PATIENCE)
POLL_SOURCES = ActivityStep("poll_sources", PollResult, POLL_LIMIT, total=POLL_PATIENCE)
PICK_UP_VERSIONS = ActivityStep("pick_up_versions", PickUpResult, PICK_UP_LIMIT, busy=True, total=STEP_PATIENCE)
ASK_REPLAN = ActivityStep("ask_replan", Done, total=STEP_PATIENCE)
WAITING_REPLANS = ActivityStep("waiting_replans", ReplansWaiting, unbounded=KEEPS_THE_RECORD, queue=names.URGENT_QUEUE)
FINISH_REPLAN = ActivityStep("finish_replan", ReplansWaiting, unbounded=KEEPS_THE_RECORD, queue=names.URGENT_QUEUE)
MOVE_MODELS = ActivityStep(
    "move_models", MoveTurnResult, timedelta(minutes=2), unbounded=LEVEL_TRIGGERED, queue=names.URGENT_QUEUE
)
LOOK_AT_DRAIN = ActivityStep(
    "look_at_drain", DrainSeen, timedelta(minutes=1), unbounded=LEVEL_TRIGGERED, queue=names.URGENT_QUEUE
)
CHECK_DRAIN = ActivityStep(
    "check_drain", DrainSeen, REPLAN_LIMIT, queue=names.PLANNER_QUEUE, urgent=True, unbounded=LEVEL_TRIGGERED
)
ROUTE_AROUND = ActivityStep(
    "route_around",
    DrainSeen,
    timedelta(minutes=2),
    retry=WAVE_RETRY,
    unbounded=LEVEL_TRIGGERED,
    queue=names.URGENT_QUEUE,
)
RECORD_REPAIRS = ActivityStep("record_repairs", RepairsRecorded, timedelta(minutes=2), total=RECONCILE_PATIENCE)
RECONCILE_REGION = ActivityStep("reconcile_region", RegionReconciled, timedelta(minutes=2), total=RECONCILE_PATIENCE)
JUDGE_FRESHNESS = ActivityStep("judge_freshness", FreshnessJudged, timedelta(minutes=2), total=RECONCILE_PATIENCE)
RETURN_REGION = ActivityStep(
    "return_region",
    DrainSeen,
    timedelta(minutes=10),
    retry=WAVE_RETRY,
    unbounded=LEVEL_TRIGGERED,
    queue=names.URGENT_QUEUE,
)

STEPS: tuple[ActivityStep[Any], ...] = (
    BEGIN_CHANGE,
    PREPARE_CHANGE,
    RESOLVE_SNAPSHOTS,
    VALIDATE_GENERATION,
    OPTIMIZE_GENERATION,
    BEGIN_STAGE,
    RECORD_STAGE,
    KEEP_SHADOW,
    END_SHADOW,
    FREEZE_OF,
    PLACE_MODEL,
    PLAN_TRANSITION,
    ENSURE_CAPACITY,
    TIME_REPLICAS,
    SHIFT_TRAFFIC,
    CHECK_GATE,
    RELEASE_CAPACITY,
    NOTE_HOLD,
    FINISH_CHANGE,
    OPEN_CHANGES,
    LOOK_AT_CHANGE,
    MAY_PASS,
    TAKE_OVER,
    MARK_SUPERSEDED,
    WITHDRAW_MODEL,
    RELEASE_MODEL,
    REPLAN_FLEET,
    COLLECT_ARTIFACTS,
    POLL_SOURCES,
    PICK_UP_VERSIONS,
    ASK_REPLAN,
    WAITING_REPLANS,
    FINISH_REPLAN,
    MOVE_MODELS,
    LOOK_AT_DRAIN,
    CHECK_DRAIN,
    ROUTE_AROUND,
    RETURN_REGION,
    RECORD_REPAIRS,
    RECONCILE_REGION,
    JUDGE_FRESHNESS,
)


def timing_of() -> Timing:
    """Return the limits of the worker that runs this.

    Only commands may use them: no decision of a workflow may depend on them.
    """
    found = workflow.extern_functions().get(TIMING)
    return found() if found else Timing()


async def perform(step: ActivityStep[A], argument: Value, summary: str) -> A:
    """Run an activity by its step. Cancellation waits until it has really ended, so that no two touch one resource."""
    timing = timing_of()
    answer: A = await workflow.execute_activity(
        step.name,
        argument,
        result_type=step.answer,
        task_queue=step.queue,
        start_to_close_timeout=step.one_attempt or timing.record,
        schedule_to_close_timeout=step.total,
        heartbeat_timeout=timing.busy_heartbeat if step.busy else timing.heartbeat,
        retry_policy=step.retry,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=summary,
        priority=URGENT if step.urgent or step.queue == names.URGENT_QUEUE else Priority.default,
    )
    return answer
