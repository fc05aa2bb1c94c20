"""Runs a stage of another distribution in a change's run: its request, the stage itself, the record of its answer.

The change's order names the stage with its limits (`ComposedStage.call`): nothing is looked up here. Whatever the stage
does, it ends: by an answer, an error after its attempts, its time limit, a cancellation or a newer change.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.exceptions import TimeoutError as TemporalTimeout

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.messages import StageInput
    from ipnext.model.lifecycle.stage_order import ComposedStage, StageCall
    from ipnext.model.lifecycle.stages import (
        StageAsked,
        StageEnded,
        StageJudged,
        StageRequest,
        activity_name,
    )
    from workflows import policies
    from workflows.errors import raise_if_cancelled
    from workflows.policies import perform, timing_of

FIRST_PAUSE = timedelta(seconds=1)
"""Between the first two attempts at a stage; then twice as long, and so on."""
LONGEST_PAUSE = timedelta(minutes=1)

NOT_REGISTERED = "NotFoundError"
"""Type of the SDK's error for an activity that a worker lacks."""


class Superseded(Exception):
    """A newer change ended the stage."""


async def run_stage(stage: StageInput, name: str, call: StageCall, superseded: Callable[[], bool]) -> StageJudged:
    """Run a stage and return its result, which is recorded.

    Raises:
        Superseded: `superseded` became true before it ended.
        asyncio.CancelledError: the run was cancelled.
    """
    asked = StageAsked(**dict(stage), name=name, settings=call.settings)
    request = await perform(policies.BEGIN_STAGE, asked, f"stage {name}: read what it is given")
    began = workflow.now()
    answer, failure = None, ""
    try:
        answer = await _unless(superseded, lambda: _called(request, call))
    except (ActivityError, ChildWorkflowError) as error:
        if is_cancelled_exception(error) and workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError from error
        failure = _explain(name, call, error)
    except WorkflowAlreadyStartedError:
        failure = "a run of it that an earlier run of the change started has not ended"
    ended = StageEnded(
        **dict(stage),
        name=name,
        source=call.source,
        answer=answer,
        failure=failure,
        duration_seconds=(workflow.now() - began).total_seconds(),
    )
    return await perform(policies.RECORD_STAGE, ended, f"stage {name}: record its answer")


async def record_lacking(stage: StageInput, lacking: ComposedStage) -> StageJudged:
    """Record that a stage can't be run, since no worker that began the change has it."""
    ended = StageEnded(**dict(stage), name=lacking.name, failure=lacking.lacking)
    return await perform(policies.RECORD_STAGE, ended, f"stage {lacking.name}: record that it is lacking")


async def _unless(superseded: Callable[[], bool], start: "Callable[[], asyncio.Future[Any]]") -> Any:
    """Start work and return what it gives; it is cancelled if this run is, or if `superseded` becomes true first."""
    raise_if_cancelled()
    work = start()
    try:
        await workflow.wait_condition(lambda: work.done() or superseded())
    except asyncio.CancelledError:
        work.cancel()
        with suppress(FailureError, asyncio.CancelledError):
            await work
        raise
    if work.done():
        return work.result()
    work.cancel()
    with suppress(FailureError, asyncio.CancelledError):
        await work
    raise Superseded


def _called(request: StageRequest, call: StageCall) -> "asyncio.Future[Any]":
    """Start the stage. Its answer is not decoded: that of another distribution may be anything."""
    summary = f"stage {request.stage} of {call.source}"
    in_all = timedelta(seconds=call.schedule_to_close_seconds)
    if call.runs == "workflow":
        return asyncio.ensure_future(_run_child(request, call, in_all, summary))
    return workflow.start_activity(
        activity_name(request.stage),
        request,
        task_queue=call.queue or names.LIFECYCLE_QUEUE,
        schedule_to_close_timeout=in_all,
        start_to_close_timeout=timedelta(seconds=call.start_to_close_seconds or call.schedule_to_close_seconds),
        heartbeat_timeout=_heartbeat(call),
        retry_policy=RetryPolicy(
            initial_interval=FIRST_PAUSE, maximum_interval=LONGEST_PAUSE, maximum_attempts=call.attempts
        ),
        cancellation_type=workflow.ActivityCancellationType.TRY_CANCEL,
        summary=summary,
    )


async def _run_child(request: StageRequest, call: StageCall, in_all: timedelta, summary: str) -> Any:
    return await workflow.execute_child_workflow(
        activity_name(request.stage),
        request,
        id=names.stage_workflow_id(request.model, request.change_id, request.stage),
        task_queue=call.queue or names.LIFECYCLE_QUEUE,
        execution_timeout=in_all,
        cancellation_type=workflow.ChildWorkflowCancellationType.TRY_CANCEL,
        parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
        task_timeout=workflow.info().task_timeout,
        static_summary=summary,
    )


def _heartbeat(call: StageCall) -> timedelta | None:
    """Return the limit of heartbeats. A worker of the lifecycle queue sends them by itself."""
    if call.heartbeat_seconds is not None:
        return timedelta(seconds=call.heartbeat_seconds)
    return timing_of().busy_heartbeat if call.queue is None else None


def _explain(name: str, call: StageCall, error: ActivityError | ChildWorkflowError) -> str:
    """Explain why a stage gave no answer."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, ApplicationError | TemporalTimeout):
        cause = cause.__cause__
    queue = call.queue or names.LIFECYCLE_QUEUE
    if isinstance(cause, TemporalTimeout):
        last = cause.cause.message if isinstance(cause.cause, ApplicationError) else ""
        limit = f"it gave no answer within its {call.schedule_to_close_seconds:g} s on the task queue {queue}"
        return f"{limit}; its last attempt: {last}" if last else f"{limit}: is a worker of {call.source} there?"
    if isinstance(cause, ApplicationError) and cause.type == NOT_REGISTERED:
        return f"no worker of the task queue {queue} has {call.runs} {activity_name(name)} of {call.source}"
    if isinstance(cause, ApplicationError):
        return f"{cause.message or cause.type} (after its attempts, at most {call.attempts})"
    return f"it was ended from outside: {cause}"
