"""A step of a wave, tried and asked again until it has ended, within the deadline of the wave.

The deadline counts time in which a worker answered: what attempts took that ended, and the pauses between them. While no worker works
it stands still, so that a rollout goes on when workers are back. Between two attempts no activity slot is taken.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeout

with workflow.unsafe.imports_passed_through():
    from ipnext.errors import IPnextError
    from ipnext.model.lifecycle import WaveInput, WaveResult
    from workflows import policies
    from workflows.policies import Step, perform


async def within_deadline(
    step: Step[WaveResult], wave: WaveInput, summary: str, *, stopping: Callable[[], bool] = lambda: False
) -> WaveResult:
    """What the step comes to. The ActivityError of its last attempt where the deadline is over, or trying again is no use.

    Where `stopping` says so between two attempts, CancelledError is raised.
    """
    spent, pause, bugs = 0.0, policies.FIRST_PAUSE_SECONDS, 0
    while True:
        try:
            result = await perform(step.once(), wave.model_copy(update={"waited_seconds": spent}), summary)
        except ActivityError as error:
            bugs += _is_bug(error)
            spent += _took(error, step)
            if not _heals(error) or bugs >= policies.BUG_ATTEMPTS or spent >= wave.deadline_seconds:
                raise
            most = policies.RETRY_PAUSE_SECONDS
        else:
            if result.ok or result.again_seconds <= 0:
                return result
            spent += result.waited_seconds
            most = policies.LOOK_PAUSE_SECONDS
        if stopping():
            raise asyncio.CancelledError
        wait = min(pause, most, max(wave.deadline_seconds - spent, policies.FIRST_PAUSE_SECONDS))
        await workflow.sleep(timedelta(seconds=wait), summary=f"{summary}: look again")
        spent, pause = spent + wait, 2 * pause


def _heals(error: ActivityError) -> bool:
    cause = error.cause
    if is_cancelled_exception(error):
        return False
    if isinstance(cause, ApplicationError):
        return not cause.non_retryable
    return isinstance(cause, TemporalTimeout) and cause.type is not TimeoutType.SCHEDULE_TO_CLOSE


def _is_bug(error: ActivityError) -> bool:
    """A bug seldom heals."""
    return isinstance(error.cause, ApplicationError) and error.cause.type == IPnextError.code


def _took(error: ActivityError, step: Step[WaveResult]) -> float:
    """Seconds of the attempt, as its worker counted them. An attempt whose worker went took none that count."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return next((float(told) for told in cause.details if isinstance(told, int | float)), 0.0)
    hung = isinstance(cause, TemporalTimeout) and cause.type is TimeoutType.START_TO_CLOSE
    return step.one_attempt.total_seconds() if hung and step.one_attempt else 0.0
