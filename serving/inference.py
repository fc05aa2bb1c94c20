"""The queue before a host's inference threads: bounded, and work that nobody waits for any more is skipped."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

from ipnext.errors import Unavailable

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

    def submit(self, call: Callable[[], T], *, on_end: Callable[[], None]) -> asyncio.Future[T]:
        """The future result of `call`. Unavailable, and nothing done, when the queue is full.

        `on_end` is called once, in the event loop, when the call is over or skipped. Cancelling the future skips a
        call that waits; one that runs cannot be stopped and ends later.
        """
        if self._pending >= self._limit:
            msg = f"the queue is full with {self._pending} requests; try again"
            raise Unavailable(msg)
        self._pending += 1
        work = _Work(call, partial(self._ended, on_end))
        self._pool.submit(work)
        return work.future

    def close(self) -> None:
        """Take no more calls; running ones finish in the background."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, on_end: Callable[[], None]) -> None:
        self._pending -= 1
        on_end()


class _Work(Generic[T]):
    def __init__(self, call: Callable[[], T], on_end: Callable[[], None]) -> None:
        self._call = call
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self._loop.create_future()

    def __call__(self) -> None:
        """Run in a pool thread."""
        deliver: Callable[[], None] = self._on_end
        if not self.future.cancelled():
            deliver = self._outcome()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(deliver)

    def _outcome(self) -> Callable[[], None]:
        try:
            result = self._call()
        except Exception as error:  # noqa: BLE001  # handed to the request, which judges it
            failure = error
            return lambda: self._finish(lambda: self.future.set_exception(failure))
        return lambda: self._finish(lambda: self.future.set_result(result))

    def _finish(self, settle: Callable[[], None]) -> None:
        self._on_end()
        if not self.future.done():
            settle()
