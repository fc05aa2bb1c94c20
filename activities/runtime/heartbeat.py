"""Heartbeats in the background for every activity: Temporal detects a dead worker within seconds, not at a time limit.

Each heartbeat repeats the details that the activity last reported. If heartbeats were late, the attempt has lost its
lease and writes nothing more (`activities.runtime.lease`).
"""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any

from temporalio import activity
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from activities.runtime.lease import SENT_LATE_SECONDS, ActivityHeartbeats, felt, seconds_now

BEATS = 4
"""Heartbeats within an activity's heartbeat timeout, which another worker's settings may have made shorter than this
worker's."""


class Alive(Interceptor):
    """Sends heartbeats while an activity runs: `every_seconds`, or more often if the activity's timeout is short."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See Interceptor."""
        return _BeatingActivity(next, self._every_seconds)


class _LastWords(ActivityOutboundInterceptor):
    """Remembers the activity's last details. In its first moments nothing is sent: most activities end before that."""

    def __init__(self, inner: ActivityOutboundInterceptor) -> None:
        super().__init__(inner)
        self.said: tuple[Any, ...] = ()
        self._began = seconds_now()

    def heartbeat(self, *details: Any) -> None:
        self.said = details
        if seconds_now() - self._began >= SENT_LATE_SECONDS:
            self.next.heartbeat(*details)


class _BeatingActivity(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, every_seconds: float) -> None:
        super().__init__(inner)
        self._every_seconds = every_seconds
        self._words: _LastWords | None = None

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        self._words = _LastWords(outbound)
        self.next.init(self._words)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        send = activity.heartbeat if is_asynchronous(input.fn) else _from_thread
        limit = activity.info().heartbeat_timeout
        seconds = limit.total_seconds() if limit else float("inf")
        pulse = ActivityHeartbeats(seconds)
        every_seconds = min(self._every_seconds, seconds / BEATS)
        beating: asyncio.Task[None] | None = None

        def begin() -> None:
            nonlocal beating
            beating = asyncio.create_task(self._beat(pulse, every_seconds, send))

        first = asyncio.get_running_loop().call_later(every_seconds, begin)  # most activities end before it
        try:
            with felt(pulse):
                return await self.next.execute_activity(input)
        finally:
            first.cancel()
            if beating is not None:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self, pulse: ActivityHeartbeats, every_seconds: float, send: Callable[..., Any]) -> None:
        while True:
            pulse.beat()
            sent = send(*(self._words.said if self._words else ()))
            if sent is not None:
                await sent
            await asyncio.sleep(every_seconds)


def _from_thread(*details: Any) -> Awaitable[None]:
    """Send a heartbeat of a synchronous activity: it waits for the event loop, so it can't be sent from there."""
    return asyncio.to_thread(activity.heartbeat, *details)


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Check whether an activity runs in the worker's event loop, as some of other distributions do."""
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - not whether it can be called
