"""Requests for sources, sent to the workflow engine: a source was applied, resumed, pushed to or asked to poll.

The store has what is to be sent, so that a request is not lost with this process; a watch that is gone is started again
by `ipnext.api.workflow_engine.resubmission`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from ipnext.api.workflow_engine.port import Lifecycle
from ipnext.errors import IPnextError
from ipnext.store.store import Store

INTERVAL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0
"""Between two attempts while the engine or the store does not answer."""
AT_ONCE = 32
"""Systems whose requests are sent at a time."""


class SourceWakes:
    """Sends what is recorded every second, at once if woken."""

    def __init__(self, store: Store, lifecycle: Lifecycle) -> None:
        self._store, self._lifecycle = store, lifecycle
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in the background while the context is open."""
        self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(self._run(), name="source wakes")
        try:
            yield
        finally:
            self._loop = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def wake(self) -> None:
        """Send soon. May be called from any thread."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._woken.set)

    async def send_pending(self) -> bool:
        """Send what is recorded. False if anything failed."""
        upstreams = await asyncio.to_thread(self._pending)
        turns = asyncio.Semaphore(AT_ONCE)
        return all(await asyncio.gather(*(self._send(kind, upstream, turns) for kind, upstream in upstreams)))

    async def _run(self) -> None:
        pause = INTERVAL_SECONDS
        while True:
            try:
                sent = await self.send_pending()
            except IPnextError as error:
                structlog.get_logger().warning("sources_not_read", code=error.code, error=error.message)
                sent = False
            pause = INTERVAL_SECONDS if sent else min(2 * pause, LONGEST_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            self._woken.clear()

    def _pending(self) -> tuple[tuple[str, str], ...]:
        with self._store.read() as unit:
            return unit.unsent_upstreams()

    async def _send(self, kind: str, upstream: str, turns: asyncio.Semaphore) -> bool:
        """Send one system's requests. They are marked first: one that is recorded meanwhile is sent again."""
        async with turns:
            await asyncio.to_thread(self._mark, kind, upstream, sent=True)
            try:
                await self._lifecycle.wake_watch(kind, upstream)
            except (IPnextError, TimeoutError) as error:
                await asyncio.to_thread(self._mark, kind, upstream, sent=False)
                log = structlog.get_logger().bind(kind=kind, upstream=upstream)
                log.warning("watch_not_woken_yet", error=str(error) or "timed out")
                return False
            return True

    def _mark(self, kind: str, upstream: str, *, sent: bool) -> None:
        with self._store.begin_free(()) as unit:
            if sent:
                unit.mark_sent(kind, upstream)
            else:
                unit.mark_unsent(kind, upstream)
