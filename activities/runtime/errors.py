"""Errors of activities for their workflows: typed by their code, and retried only if a retry helps.

Every worker runs its activities inside `TypedFailures`, so that no activity names Temporal's errors itself.
"""

import time
from collections import OrderedDict
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, CancelledError, TemporalError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from ipnext.errors import Conflict, IPnextError, Unavailable
from ipnext.model.echoes import MESSAGE_CHARACTERS, cut_text

BUG_ATTEMPTS = 5
"""Attempts of an activity that end by an unforeseen error: a retry seldom fixes a bug, but sometimes a faulty
machine."""

MOST_COUNTED = 10_000
"""Activities whose unforeseen errors a worker counts; the one that failed first is forgotten first."""


class UnforeseenErrors:
    """Counts the unforeseen errors of each activity in this worker.

    Attempts that end otherwise, as in an outage, don't count.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str | None, str], int] = OrderedDict()

    def add(self, info: activity.Info) -> bool:
        """Count one more. Returns True if the activity is retried no more."""
        key = _key(info)
        count = self._found.pop(key, 0) + 1
        if count >= BUG_ATTEMPTS:
            return True
        self._found[key] = count
        if len(self._found) > MOST_COUNTED:
            self._found.popitem(last=False)
        return False

    def forget(self, info: activity.Info) -> None:
        """Drop the count of an activity that has ended."""
        self._found.pop(_key(info), None)


def _key(info: activity.Info) -> tuple[str | None, str]:
    return info.workflow_run_id, info.activity_id


class TypedFailures(Interceptor):
    """Turns every error of an activity into an ApplicationError with the error's code as type.

    Its detail: the attempt's seconds.
    """

    def __init__(self) -> None:
        self._unforeseen = UnforeseenErrors()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See Interceptor."""
        return _TypedActivity(next, self._unforeseen)


class _TypedActivity(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, unforeseen: UnforeseenErrors) -> None:
        super().__init__(inner)
        self._unforeseen = unforeseen

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        began = time.monotonic()
        try:
            result = await self.next.execute_activity(input)
        except (TemporalError, CancelledError):
            raise
        except IPnextError as error:
            lasting = not (error.retryable or isinstance(error, Conflict))
            took = time.monotonic() - began
            raise ApplicationError(error.message, took, type=error.code, non_retryable=lasting) from error
        except OSError as error:
            raise ApplicationError(str(error), time.monotonic() - began, type=Unavailable.code) from error
        except (
            Exception,
            SystemExit,
        ) as error:  # third-party code may call sys.exit; that ends the attempt, not the worker
            lasting = self._unforeseen.add(activity.info())
            text = f"{type(error).__name__}: {error}"
            failure = ApplicationError(cut_text(text), type=IPnextError.code, non_retryable=lasting)
            if len(text) > MESSAGE_CHARACTERS:  # Temporal takes no failure of megabytes, causes included
                raise failure from None
            raise failure from error
        self._unforeseen.forget(activity.info())
        return result


def public_text(error: Exception) -> str:
    """Return an error's text without what only operators may see; the type's name, too, of one that is not ours."""
    if not isinstance(error, IPnextError):
        return f"{type(error).__name__}: {error}"
    message: str = getattr(error, "public", error).message
    return message
