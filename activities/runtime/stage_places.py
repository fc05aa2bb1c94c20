"""Slots of a worker for stages of other distributions: a share of them, so that they hold up no work of the platform.

A thread can't be ended from outside. An attempt at a stage that hangs in a call ends for Temporal at its time limit,
but its thread runs on, and holds its slot until the worker ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from ipnext.model.lifecycle.stages import PLACES_TAKEN, activity_name

SHARE: Final = 4
"""Stages hold one of this many of a worker's slots, and at least one."""
_STAGE: Final = activity_name("")


class StagePlaces(Interceptor):
    """Bounds the attempts at stages that one worker runs, those that Temporal has given up included.

    A further one is refused, which is no attempt: the change's run asks again after a pause (`workflows.stages`).
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._taken = 0

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See Interceptor."""
        return _Placed(next, self)

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place. Raises ApplicationError of type PLACES_TAKEN. Called in the worker's event loop only."""
        most = max(1, self._slots // SHARE)
        if self._taken >= most:
            msg = f"{self._taken} attempts at stages run in this worker; allowed: {most} of its {self._slots} slots"
            raise ApplicationError(msg, type=PLACES_TAKEN, non_retryable=True)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class _Placed(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, places: StagePlaces) -> None:
        super().__init__(inner)
        self._places = places

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if not activity.info().activity_type.startswith(_STAGE):
            return await self.next.execute_activity(input)
        with self._places.take():
            return await self.next.execute_activity(input)
