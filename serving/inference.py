"""The queue before a host's inference threads: bounded, with deadlines, and work nobody waits for is skipped."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from ipnext.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")


class InferenceQueue:
    """Runs blocking calls on `threads` threads; at most `waiting` more may wait. Used from one event loop."""

    def __init__(self, *, threads: int = 1, waiting: int = 64) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inference")
        self._limit = threads + waiting
        self._pending = 0

    @property
    def pending(self) -> int:
        """Calls that run or wait."""
        return self._pending

    async def run(self, call: Callable[[], T], *, seconds: float, on_end: Callable[[], None]) -> T:
        """The result of `call`. Unavailable when the queue is full, DeadlineExceeded after `seconds`.

        `on_end` is called exactly once, in the event loop, when the call can no longer be running: also after a
        deadline or a cancellation, which leave a running call to finish and skip a waiting one.
        """
        if self._pending >= self._limit:
            on_end()
            msg = f"the queue is full ({self._pending} requests); try again"
            raise Unavailable(msg)
        work = _Work(call, on_end, self)
        self._pending += 1
        self._pool.submit(work)
        try:
            async with asyncio.timeout(seconds):
                return await work.future
        except TimeoutError as error:
            msg = f"the deadline of {seconds * 1000:.0f} ms passed while the request waited or ran"
            raise DeadlineExceeded(msg) from error

    async def idle(self) -> None:
        """Return once nothing runs or waits."""
        while self._pending:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        """Take no more calls; running ones finish in the background."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ended(self) -> None:
        """Note the end of one call."""
        self._pending -= 1


class _Work(Generic[T]):
    def __init__(self, call: Callable[[], T], on_end: Callable[[], None], queue: InferenceQueue) -> None:
        self._call = call
        self._on_end = on_end
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()

    def __call__(self) -> None:
        """Run in a pool thread."""
        result: T | None = None
        error: Exception | None = None
        if not self.future.cancelled():
            try:
                result = self._call()
            except Exception as raised:  # noqa: BLE001  # handed to the waiting request, which judges it
                error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: T | None, error: Exception | None) -> None:
        self._queue.ended()
        self._on_end()
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]  # None only where T allows it
