"""Interpretation of failures, and completion of work that must finish even if the run is cancelled."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError
from temporalio.exceptions import TimeoutError as TemporalTimeout

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.errors import FenceLost
    from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
    from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
    from ipnext.model.lifecycle.status import Reason, reason_of

A = TypeVar("A")

FENCE_LOST = FenceLost.code

STOPPED_OUTSIDE = "its run was stopped from outside the platform"
"""Reason of a stop without a stated one."""


_PREEMPTED = re.compile(rf"(?:{'|'.join(ChangeKind)}) (.+){re.escape(names.PREEMPTS)}", re.DOTALL)

_PASSED_ON = re.compile(r"Cancel requested by workflow with run id \S+ with reason: ")
"""Prefix that the SDK writes before the reason if another run, which is not the parent, cancels this one."""


class FailureReason(NamedTuple):
    """A failure as a reason and message of the status."""

    reason: Reason
    message: str


def explain_error(error: ActivityError | ChildWorkflowError) -> FailureReason:
    """Explain why an activity or a child workflow failed: by its last attempt, else by its time-out."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, ApplicationError | TemporalTimeout):
        cause = cause.__cause__
    if isinstance(cause, TemporalTimeout) and isinstance(cause.cause, ApplicationError) and cause.cause.type:
        last = cause.cause
        return FailureReason(
            reason_of(last.type), f"{last.message}; {_subject(error)} was tried until its time was over"
        )
    if isinstance(cause, TemporalTimeout):
        return FailureReason(Reason.DEADLINE_EXCEEDED, f"{_subject(error)} did not end in time")
    code = cause.type if isinstance(cause, ApplicationError) else None
    message = cause.message if isinstance(cause, ApplicationError) else str(cause)
    return FailureReason(reason_of(code), message)


def fence_lost(error: ActivityError) -> ApplicationError | None:
    """Return the failure of an activity whose run no longer owns its model's transition; None for any other."""
    cause = error.cause
    return cause if isinstance(cause, ApplicationError) and cause.type == FENCE_LOST else None


def make_stopped(generation: int | None, why: str | None, *, moving: bool) -> LifecycleResult:
    """Return the end of a change whose run was cancelled, before or while it was `moving` traffic.

    `why` is None if unstated.
    """
    why = why or STOPPED_OUTSIDE
    if why.startswith(names.ABORTED):
        state = ChangeState.ROLLED_BACK if moving else ChangeState.REFUSED
        return LifecycleResult(state=state, generation=generation, reason=Reason.ABORTED, message=why)
    state = ChangeState.ROLLED_BACK if moving else ChangeState.SUPERSEDED
    reason = Reason.ROLLED_BACK if moving else Reason.SUPERSEDED
    return LifecycleResult(state=state, generation=generation, reason=reason, message=f"stopped: {why}")


def stop_reason() -> str | None:
    """Return the reason why this run was cancelled, as its requester stated it; None if it was not."""
    why = workflow.cancellation_reason()
    return None if why is None else _PASSED_ON.sub("", why, count=1)


def describe_preemption(kind: ChangeKind, change_id: str) -> str:
    """Return the reason of a run's cancellation if a newer change preempts it."""
    return f"{kind} {change_id}{names.PREEMPTS}"


def name_preempting(result: LifecycleResult, why: str | None) -> LifecycleResult:
    """Name the change that stopped a run in its result, unless it is done. `why` is the reason of the cancellation."""
    found = _PREEMPTED.fullmatch(why) if why is not None and result.state is not ChangeState.DONE else None
    return result if found is None else result.model_copy(update={"stopped_by": found[1]})


def raise_if_cancelled() -> None:
    """Raise CancelledError if this run was cancelled. Call it before each wait of a run that may be.

    If a cancellation arrives while an activity runs and the activity succeeds, nothing is raised, so the wait would
    begin.
    """
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


async def to_the_end(work: Coroutine[Any, Any, A]) -> A:
    """Run `work` to completion even if the workflow is cancelled.

    Repeated cancellations are ignored until it finishes.
    """
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
    return task.result()


def _subject(error: ActivityError | ChildWorkflowError) -> str:
    return error.activity_type if isinstance(error, ActivityError) else f"workflow {error.workflow_type}"
