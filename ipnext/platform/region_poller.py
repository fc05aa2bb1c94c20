"""Work that is repeated in the background for every region.

One thread looks, and a pool makes the calls, which may take long.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import structlog

from ipnext.errors import IPnextError

P = ParamSpec("P")
R = TypeVar("R")


class RegionPoller:
    """Calls `look` at an interval while it runs.

    An error of `look` is logged, once until it succeeds, and it is called again.
    """

    def __init__(self, name: str, look: Callable[[], object], *, every_seconds: float, threads: int) -> None:
        """`name` is that of the threads and of the log events; `threads` bounds the simultaneous calls to regions."""
        self._name, self._look, self._every_seconds = name, look, every_seconds
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look in the background while the context is open."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
            self.close()

    def submit(self, call: Callable[P, R], /, *arguments: P.args, **options: P.kwargs) -> Future[R]:
        """Begin a call in the pool."""
        return self._pool.submit(call, *arguments, **options)

    def close(self) -> None:
        """Begin no call any more; calls to regions that do not answer are not awaited."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        is_failing = False
        while not self._ended.wait(self._every_seconds):
            try:
                self._look()
                is_failing = False
            except IPnextError as error:
                if not is_failing:
                    structlog.get_logger().warning("look_failed", work=self._name, error=error.message)
                is_failing = True
            except Exception:  # noqa: BLE001 - the edge of the thread: logged, and tried again
                structlog.get_logger().exception("look_failed", work=self._name)
