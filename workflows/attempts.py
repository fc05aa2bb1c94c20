"""Attempts at a step, repeated until it has ended, within a deadline.

A deadline counts time in which a worker answered: the seconds of attempts that ended, and the pauses between them.
While no worker works it does not advance, so that a rollout continues when workers are back. Between two attempts no
activity slot is taken.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeout

with workflow.unsafe.imports_passed_through():
    from ipnext.errors import IPnextError
    from ipnext.model.lifecycle.changes.transition_run import WaveInput, WaveResult
    from ipnext.model.value import Value
    from workflows import policies
    from workflows.errors import explain_error, raise_if_cancelled
    from workflows.policies import ActivityStep, perform

A = TypeVar("A", bound=Value)
B = TypeVar("B", bound=Value)

PAUSES_OF_A_WAIT = 100
"""If a wait has lasted for more than this many of a step's longest pauses, its next pause is this fraction of it. A
wait of a year is then some 1,100 attempts and 12,000 events of the 51,200 that a run may have."""


async def within_deadline(
    step: ActivityStep[WaveResult], wave: WaveInput, summary: str, *, stopping: Callable[[], bool] = lambda: False
) -> WaveResult:
    """Return the step's result.

    Raises the ActivityError of its last attempt if the deadline is over, or a retry is useless. Raises CancelledError
    if `stopping` is true between two attempts.
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
        wait = min(pause, longest_after(spent, most), max(wave.deadline_seconds - spent, policies.FIRST_PAUSE_SECONDS))
        await workflow.sleep(timedelta(seconds=wait), summary=f"{summary}: look again")
        spent, pause = spent + wait, 2 * pause


class PatienceOver(Exception):
    """A step was tried until its time was over. The message is that of its last attempt."""


@dataclass(frozen=True)
class Interruption(Generic[B]):
    """What may end or hold up a wait, although the step could be tried again."""

    woken: Callable[[], bool]
    """True if the pause between two attempts is cut short."""
    end: Callable[[], Awaitable[B | None]]
    """Called before each further attempt. A result ends the wait; its own time counts for no patience."""


async def within_patience(
    step: ActivityStep[A], argument: Value, summary: str, *, seconds: float, interruption: Interruption[B]
) -> A | B:
    """Return the step's result, or that of the interruption; the step's retry policy gives the pauses.

    Raises:
        ActivityError: that of an attempt after which a retry is useless.
        PatienceOver: the attempts and the pauses between them took that long together.
    """
    spent, pause, bugs = 0.0, step.retry.initial_interval.total_seconds(), 0
    most = (step.retry.maximum_interval or step.retry.initial_interval).total_seconds()
    while True:
        try:
            return await perform(step.once(), argument, summary)
        except ActivityError as error:
            bugs += _is_bug(error)
            spent += _took(error, step)
            if not _heals(error) or bugs >= policies.BUG_ATTEMPTS:
                raise
            if spent >= seconds:
                raise PatienceOver(explain_error(error).message) from error
        raise_if_cancelled()
        wait = min(pause, longest_after(spent, most), max(seconds - spent, step.retry.initial_interval.total_seconds()))
        with suppress(asyncio.TimeoutError):
            await workflow.wait_condition(
                interruption.woken, timeout=timedelta(seconds=wait), timeout_summary=f"{summary}: try again"
            )
        if (ended := await interruption.end()) is not None:
            return ended
        spent, pause = spent + wait, step.retry.backoff_coefficient * pause


def longest_after(spent: float, most: float) -> float:
    """Return the longest pause after a wait of `spent` seconds: a fixed share of it, at least `most`."""
    return max(spent / PAUSES_OF_A_WAIT, most)


def _heals(error: ActivityError) -> bool:
    cause = error.cause
    if is_cancelled_exception(error):
        return False
    if isinstance(cause, ApplicationError):
        return not cause.non_retryable
    return isinstance(cause, TemporalTimeout) and cause.type is not TimeoutType.SCHEDULE_TO_CLOSE


def _is_bug(error: ActivityError) -> bool:
    """Check whether the error is a bug, which a retry seldom fixes."""
    return isinstance(error.cause, ApplicationError) and error.cause.type == IPnextError.code


def _took(error: ActivityError, step: ActivityStep[Any]) -> float:
    """Return the attempt's seconds, as its worker counted them. An attempt whose worker died counts as 0."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return next((float(told) for told in cause.details if isinstance(told, int | float)), 0.0)
    hung = isinstance(cause, TemporalTimeout) and cause.type is TimeoutType.START_TO_CLOSE
    return step.one_attempt.total_seconds() if hung and step.one_attempt else 0.0
