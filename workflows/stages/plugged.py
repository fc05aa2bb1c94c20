"""Runs a stage of another distribution in a change's run: its request, the stage itself, the record of its answer.

The change's order names the stage with its limits (`ComposedStage.call`): nothing is looked up here. Whatever the stage
does, it ends: by an answer, an error after its attempts, its time limit, a cancellation or a newer change.
"""

import asyncio
import functools
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
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
    from ipnext.model.echoes import cut_text
    from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
    from ipnext.model.lifecycle.changes.stage_order import ComposedStage, StageCall
    from ipnext.model.lifecycle.stages import (
        LARGEST_ANSWER_BYTES,
        LONGEST_MESSAGE,
        PLACES_TAKEN,
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
MOST_PAUSES = 20
"""Of a stage that waits for a place in a worker, once its pauses have grown."""

NOT_REGISTERED = "NotFoundError"
"""Type of the SDK's error for an activity that a worker lacks."""

T = TypeVar("T")


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
        answer, failure = _read_answer(await _answered(superseded, request, call))
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


async def _answered(superseded: Callable[[], bool], request: StageRequest, call: StageCall) -> RawValue:
    """Run the stage and return its answer. Without a place in a worker it waits: that is no attempt.

    The pauses grow with the limit of the stage, so that a wait of days does not fill the history.
    """
    in_all = timedelta(seconds=call.schedule_to_close_seconds)
    ends, pause = workflow.now() + in_all, FIRST_PAUSE
    while True:
        left = ends - workflow.now()
        try:
            return await _unless(superseded, functools.partial(_called, request, call, left))
        except ActivityError as error:
            if not _lacks_place(error) or workflow.now() + pause >= ends:
                raise
        await _unless(superseded, functools.partial(_begin_pause, pause))
        pause = max(pause, min(pause * 2, in_all / MOST_PAUSES))


def _begin_pause(pause: timedelta) -> "asyncio.Future[None]":
    return asyncio.ensure_future(workflow.sleep(pause, summary="a worker has a place for the stage"))


def _lacks_place(error: ActivityError) -> bool:
    return isinstance(error.cause, ApplicationError) and error.cause.type == PLACES_TAKEN


async def _unless(superseded: Callable[[], bool], start: "Callable[[], asyncio.Future[T]]") -> T:
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


def _read_answer(raw: RawValue) -> tuple[Any, str]:
    """Return the answer as plain JSON, or why it is none. It may be anything, and goes into the input of the record."""
    size = len(raw.payload.data)
    if size > LARGEST_ANSWER_BYTES:
        return None, f"its answer has {size} bytes; allowed: {LARGEST_ANSWER_BYTES}"
    try:
        answer = workflow.payload_converter().from_payload(raw.payload)
    except Exception as error:  # noqa: BLE001 - each encoding has errors of its own, and none may end the run
        return None, f"its answer can't be read as JSON: {cut_text(str(error), LONGEST_MESSAGE)}"
    if isinstance(answer, bytes):
        return None, f"its answer is {size} bytes that are no JSON"
    return answer, ""


def _called(request: StageRequest, call: StageCall, in_all: timedelta) -> "asyncio.Future[RawValue]":
    """Start the stage. Its answer is not decoded: an error of that would be one of this run."""
    summary = f"stage {request.stage} of {call.source}"
    if call.runs == "workflow":
        return asyncio.ensure_future(_run_child(request, call, in_all, summary))
    return workflow.start_activity(
        activity_name(request.stage),
        request,
        result_type=RawValue,
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


async def _run_child(request: StageRequest, call: StageCall, in_all: timedelta, summary: str) -> RawValue:
    found: RawValue = await workflow.execute_child_workflow(
        activity_name(request.stage),
        request,
        result_type=RawValue,
        id=names.stage_workflow_id(request.model, request.change_id, request.stage),
        task_queue=call.queue or names.LIFECYCLE_QUEUE,
        execution_timeout=in_all,
        cancellation_type=workflow.ChildWorkflowCancellationType.TRY_CANCEL,
        parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
        task_timeout=workflow.info().task_timeout,
        static_summary=summary,
    )
    return found


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
        return f"{limit}; its last attempt: {last}" if last else f"{limit}: {_ask_why(call)}"
    if isinstance(cause, ApplicationError) and cause.type == PLACES_TAKEN:
        return f"no worker had a place for it within its {call.schedule_to_close_seconds:g} s: {cause.message}"
    if isinstance(cause, ApplicationError) and cause.type == NOT_REGISTERED:
        return f"no worker of the task queue {queue} has {call.runs} {activity_name(name)} of {call.source}"
    if isinstance(cause, ApplicationError):
        return f"{cause.message or cause.type} (after its attempts, at most {call.attempts})"
    return f"it was ended from outside: {cause}"


def _ask_why(call: StageCall) -> str:
    """Return what may have kept a stage from an answer. A workflow whose code raises is tried again until its limit."""
    there = f"is a worker of {call.source} there"
    return (
        f"{there}, and does its code return?" if call.runs == "activity" else f"{there}, and does its code not raise?"
    )
