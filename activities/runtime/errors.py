"""Errors of activities for their workflows: typed by their code, and retried only if a retry helps.

Every worker runs its activities inside `TypedFailures`, so that no activity names Temporal's errors itself.
"""

import time
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, CancelledError, TemporalError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from ipnext.errors import Conflict, IPnextError, Unavailable

BUG_ATTEMPTS = 5
"""Attempts for an unforeseen error: a retry seldom fixes a bug, but sometimes a faulty machine."""


class TypedFailures(Interceptor):
    """Turns every error of an activity into an ApplicationError with the error's code as type. Its detail: the attempt's seconds."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See Interceptor."""
        return _TypedActivity(next)


class _TypedActivity(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        began = time.monotonic()
        try:
            return await self.next.execute_activity(input)
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
            lasting = activity.info().attempt >= BUG_ATTEMPTS
            text = f"{type(error).__name__}: {error}"
            raise ApplicationError(text, type=IPnextError.code, non_retryable=lasting) from error
