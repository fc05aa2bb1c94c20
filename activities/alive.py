"""Heartbeats for every activity, so that a worker that was killed is noticed within seconds, not at a time limit.

Activities that say themselves what they wait for are left alone: their words would be overwritten.
"""

import asyncio
from collections.abc import Collection
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

EVERY_SECONDS = 1.0

SPEAK_FOR_THEMSELVES = frozenset({"ensure_capacity", "replan_fleet", "move_model"})


class Alive(Interceptor):
    """Beats while an activity runs, unless it is one of `but`."""

    def __init__(self, *, but: Collection[str] = SPEAK_FOR_THEMSELVES) -> None:
        self._but = but

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See Interceptor."""
        return _BeatingActivity(next, self._but)


class _BeatingActivity(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, but: Collection[str]) -> None:
        super().__init__(inner)
        self._but = but

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if activity.info().activity_type in self._but:
            return await self.next.execute_activity(input)
        beating = asyncio.create_task(_beat())
        try:
            return await self.next.execute_activity(input)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


async def _beat() -> None:
    """From a thread: while a synchronous activity runs, its heartbeat waits for this very event loop."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        await asyncio.to_thread(activity.heartbeat)
