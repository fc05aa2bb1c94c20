"""Every timeout and retry policy, named once, and every activity by its name, answer and policy.

Workflow files call activities through `perform` and never import them: importing the store inside the sandbox costs
seconds. A test holds that each name here is registered by the worker.
"""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model import lifecycle as wire
    from ipnext.model.value import Value

A = TypeVar("A", bound=Value)

BUGS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What a bug in workflow code raises: the run fails and says so, instead of hanging for ever. Nondeterminism is not
among them: that run waits for the right code. The entity names none: its queue must survive a bug until it is fixed."""

QUICK_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10))
"""For what mostly fails because something restarts: soon again, then every ten seconds."""

WAVE_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=5))
"""For regions that can't be reached: a region back again is noticed within five seconds."""

SUPPLY_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=1.5, maximum_interval=timedelta(seconds=15)
)
"""For supply that another model's transition is about to free."""

RECORD_LIMIT = timedelta(seconds=20)
"""One unit of work in the store, with the wait for its turn."""

HEARTBEAT_LIMIT = timedelta(seconds=6)
"""A worker that dies is noticed so soon: every activity beats once a second (activities/alive.py)."""

VALIDATION_LIMIT = timedelta(hours=2)
"""Reading some hundred gigabytes twice from an object store."""

OPTIMIZATION_LIMIT = timedelta(hours=2)
"""Fetching a model, cutting it, running it whole and in pieces, and storing the pieces."""

PLACEMENT_LIMIT = timedelta(minutes=5)
"""One model: seconds as a rule; the first time imports the solver."""

REPLAN_LIMIT = timedelta(minutes=25)
"""The whole fleet. The planner's process has its own hard limit below this: at most 15 minutes of search and 4 of grace
(ipnext/settings.py), which leaves 6 to read and write some ten thousand models."""

REPLAN_PATIENCE = timedelta(hours=1)
"""All attempts at one replan: then it has failed, and says so. The plan in force stays."""

RUNNING_MOVES_PATIENCE = timedelta(minutes=10)
"""How long a replan that is asked for waits for moves that are under way. They go on in any case."""

SUPPLY_PATIENCE = timedelta(minutes=10)
"""How long a transition may wait for supply that another one frees, before it is refused."""

MOVE_LIMIT = timedelta(hours=24)
"""One model's move with all its holds, behind what its entity has queued before."""

DEADLINE_GRACE = timedelta(seconds=30)
"""An activity keeps its deadline itself and says what was missing; only a hanging one runs into this."""

RUNNING_MOVES = 4
"""Models of a replan that move at the same time."""


@dataclass(frozen=True)
class Step(Generic[A]):
    """One activity: its name, what it answers, how long it may take and how it is tried again.

    `total` bounds all attempts together; none: until it succeeds or is refused.
    """

    name: str
    answer: type[A]
    one_attempt: timedelta
    retry: RetryPolicy = field(default_factory=lambda: QUICK_RETRY)
    total: timedelta | None = None
    heartbeat: timedelta = HEARTBEAT_LIMIT
    queue: str | None = None
    keeps_deadline: bool = False
    """The activity ends itself at its deadline and says what was missing."""

    def within(self, seconds: float) -> "Step[A]":
        """The same step, with all attempts ended after so many seconds; one that keeps them itself has a grace."""
        limit = timedelta(seconds=seconds)
        if self.keeps_deadline:
            return replace(self, total=limit + DEADLINE_GRACE, one_attempt=limit + DEADLINE_GRACE)
        return replace(self, total=limit, one_attempt=min(limit, self.one_attempt))


BEGIN_CHANGE = Step("begin_change", wire.ChangeBegun, RECORD_LIMIT)
RESOLVE_SNAPSHOTS = Step("resolve_snapshots", wire.Resolved, timedelta(minutes=2))
VALIDATE_GENERATION = Step("validate_generation", wire.ValidationReport, VALIDATION_LIMIT)
OPTIMIZE_GENERATION = Step("optimize_generation", wire.Optimized, OPTIMIZATION_LIMIT)
PLACE_MODEL = Step("place_model", wire.Planned, PLACEMENT_LIMIT, queue=names.PLANNER_QUEUE)
PLAN_TRANSITION = Step(
    "plan_transition", wire.TransitionPlanned, timedelta(minutes=1), retry=SUPPLY_RETRY, total=SUPPLY_PATIENCE
)
ENSURE_CAPACITY = Step(
    "ensure_capacity",
    wire.WaveResult,
    timedelta(hours=1),
    retry=WAVE_RETRY,
    keeps_deadline=True,
)
SHIFT_TRAFFIC = Step("shift_traffic", wire.WaveResult, timedelta(minutes=2), retry=WAVE_RETRY)
CHECK_GATE = Step("check_gate", wire.WaveResult, timedelta(minutes=1), retry=WAVE_RETRY)
RELEASE_CAPACITY = Step("release_capacity", wire.WaveResult, timedelta(minutes=2), retry=WAVE_RETRY)
FINISH_CHANGE = Step("finish_change", wire.Done, RECORD_LIMIT)
MARK_SUPERSEDED = Step("mark_superseded", wire.Done, RECORD_LIMIT)
WITHDRAW_MODEL = Step("withdraw_model", wire.Done, timedelta(minutes=2), retry=WAVE_RETRY)
RELEASE_MODEL = Step("release_model", wire.Done, timedelta(minutes=10), retry=WAVE_RETRY)
REPLAN_FLEET = Step("replan_fleet", wire.ReplanComputed, REPLAN_LIMIT, total=REPLAN_PATIENCE, queue=names.PLANNER_QUEUE)
ASK_REPLAN = Step("ask_replan", wire.Done, RECORD_LIMIT)
WAITING_REPLANS = Step("waiting_replans", wire.ReplansWaiting, RECORD_LIMIT)
FINISH_REPLAN = Step("finish_replan", wire.ReplansWaiting, RECORD_LIMIT)
MOVE_MODEL = Step("move_model", wire.Moved, MOVE_LIMIT)

STEPS: tuple[Step[Any], ...] = (
    BEGIN_CHANGE,
    RESOLVE_SNAPSHOTS,
    VALIDATE_GENERATION,
    OPTIMIZE_GENERATION,
    PLACE_MODEL,
    PLAN_TRANSITION,
    ENSURE_CAPACITY,
    SHIFT_TRAFFIC,
    CHECK_GATE,
    RELEASE_CAPACITY,
    FINISH_CHANGE,
    MARK_SUPERSEDED,
    WITHDRAW_MODEL,
    RELEASE_MODEL,
    REPLAN_FLEET,
    ASK_REPLAN,
    WAITING_REPLANS,
    FINISH_REPLAN,
    MOVE_MODEL,
)


async def perform(step: Step[A], argument: Value, summary: str) -> A:
    """Run an activity by its step. Cancelling waits until it has really ended, so that no two touch one thing."""
    answer: A = await workflow.execute_activity(
        step.name,
        argument,
        result_type=step.answer,
        task_queue=step.queue,
        start_to_close_timeout=step.one_attempt,
        schedule_to_close_timeout=step.total,
        heartbeat_timeout=step.heartbeat,
        retry_policy=step.retry,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=summary,
    )
    return answer
