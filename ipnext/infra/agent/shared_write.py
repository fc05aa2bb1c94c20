"""One write of a file for all callers that wait for it; used for the files of a region's router and of its Envoy."""

import asyncio
from collections.abc import Awaitable, Callable

HEAD_START_SECONDS = 2.0
"""Longest time for which a write is put off until the former one is confirmed: a program that does not answer holds up
no file."""
GATHERING_SHARE = 0.25
"""Share of the former write's time for which one that follows at once waits for more callers ..."""
MOST_GATHERING_SECONDS = 0.1
"""... and at most this long."""


class SharedWrite:
    """Callers that come while a write is under way share the next one. Call all methods in one event loop.

    A write is under way until its reader confirms it, so that a slow reader gets fewer files and not a queue of them.
    """

    def __init__(self, write: Callable[[], int], confirmed: Callable[[int], Awaitable[None]]) -> None:
        """`write` writes the present desired state and returns its version.

        `confirmed` returns once that is in force.
        """
        self._write = write
        self._confirmed = confirmed
        self._under_way: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._took_seconds = 0.0
        self._ended_at = float("-inf")

    async def done(self) -> None:
        """Return once the desired state of this moment, or a later one, is written and confirmed.

        An error of the write, or of its confirmation, is raised to all callers that share it, and to no other. A
        caller that is cancelled stops no write.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._under_way), name="write for all that wait")
            self._next.add_done_callback(_retrieve_error)
        await asyncio.shield(self._next)

    async def _after(self, former: asyncio.Task[None] | None) -> None:
        if former is not None:
            await asyncio.wait([former], timeout=HEAD_START_SECONDS)
        await asyncio.sleep(self._gathering_seconds)
        self._under_way, self._next = self._next, None
        now = asyncio.get_running_loop().time
        began = now()
        try:
            await self._confirmed(self._write())
        finally:
            self._ended_at = now()
            self._took_seconds = self._ended_at - began

    @property
    def _gathering_seconds(self) -> float:
        """Time to wait for more callers, as those of the former write may come again; 0 if it was long ago."""
        if asyncio.get_running_loop().time() - self._ended_at > self._took_seconds:
            return 0.0
        return min(GATHERING_SHARE * self._took_seconds, MOST_GATHERING_SECONDS)


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Take note of its error: all callers may have been cancelled."""
    if not task.cancelled():
        task.exception()
