"""Reading failures, and finishing what must be finished although the run was cancelled."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, RetryState, TimeoutType
from temporalio.exceptions import TimeoutError as TemporalTimeout

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.errors import FenceLost
    from ipnext.model.lifecycle import ChangeState, LifecycleResult
    from ipnext.model.status import Reason, reason_of

A = TypeVar("A")

FENCE_LOST = FenceLost.code

STOPPED_OUTSIDE = "its run was stopped from outside the platform"
"""The reason of a stop for which none was given."""


_PASSED_ON = re.compile(r"Cancel requested by workflow with run id \S+ with reason: ")
"""What the SDK writes before the reason of a run that another one stops, unless it is its child."""


class Explained(NamedTuple):
    """A failure in the words of the status."""

    reason: Reason
    message: str


def explained(error: ActivityError | ChildWorkflowError) -> Explained:
    """Why an activity or a child workflow failed: what its last attempt said, before that its time was over."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, ApplicationError | TemporalTimeout):
        cause = cause.__cause__
    if isinstance(cause, TemporalTimeout) and isinstance(cause.cause, ApplicationError) and cause.cause.type:
        last = cause.cause
        return Explained(reason_of(last.type), f"{last.message}; {_subject(error)} was tried until its time was over")
    if isinstance(cause, TemporalTimeout):
        return Explained(Reason.DEADLINE_EXCEEDED, f"{_subject(error)} did not end in time")
    code = cause.type if isinstance(cause, ApplicationError) else None
    message = cause.message if isinstance(cause, ApplicationError) else str(cause)
    return Explained(reason_of(code), message)


def fence_lost(error: ActivityError) -> ApplicationError | None:
    """The failure of an activity whose run is no longer the one that moves its model; None for any other."""
    cause = error.cause
    return cause if isinstance(cause, ApplicationError) and cause.type == FENCE_LOST else None


def last_words(error: ActivityError) -> str | None:
    """What the last attempt said of an activity whose attempts together took too long; None for any other failure."""
    said = error.cause
    if isinstance(said, TemporalTimeout) and said.type is TimeoutType.SCHEDULE_TO_CLOSE:
        said = said.cause
    elif error.retry_state is not RetryState.TIMEOUT:
        return None
    return said.message if isinstance(said, ApplicationError) else None


def stopped(generation: int | None, why: str | None, *, moving: bool) -> LifecycleResult:
    """How a change ends whose run was told to end, before its traffic moved or once it was `moving`. `why`: None where nobody said."""
    why = why or STOPPED_OUTSIDE
    if why.startswith(names.ABORTED):
        state = ChangeState.ROLLED_BACK if moving else ChangeState.REFUSED
        return LifecycleResult(state=state, generation=generation, reason=Reason.ABORTED, message=why)
    state = ChangeState.ROLLED_BACK if moving else ChangeState.SUPERSEDED
    reason = Reason.ROLLED_BACK if moving else Reason.SUPERSEDED
    return LifecycleResult(state=state, generation=generation, reason=reason, message=f"stopped: {why}")


def stop_reason() -> str | None:
    """Return why this run was told to end, in the words of the component that asked; None if it was not told."""
    why = workflow.cancellation_reason()
    return None if why is None else _PASSED_ON.sub("", why, count=1)


def end_if_told() -> None:
    """Raise CancelledError if this run was told to end. Call it before each wait of a run that may be told.

    A stop that comes while an activity runs ends nothing else if that activity ends well, so the wait would begin all the same.
    """
    if workflow.cancellation_reason() is not None:
        raise asyncio.CancelledError


async def to_the_end(work: Coroutine[Any, Any, A]) -> A:
    """Wait for `work` although this run is cancelled meanwhile, however often."""
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
