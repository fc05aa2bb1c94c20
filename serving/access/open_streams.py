"""Streamed answers of models that need a credential: their callers are checked again while they stream.

A stream may last for hours. It ends within CHECK_SECONDS after an access list without its caller is in force.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from serving.access.guard import AccessGuard
from serving.http.messages import Request

CHECK_SECONDS: Final = 2.0
"""Interval of the checks."""


class OpenStreams:
    """The streams of a router. Use it in one event loop."""

    def __init__(self, guard: AccessGuard) -> None:
        self._guard = guard
        self._open: dict[Callable[[], None], tuple[Request, str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request: Request, model: str, cut: Callable[[], None]) -> Callable[[], None]:
        """Check an admitted request until the returned function is called; `cut` ends its answer."""
        self._open[cut] = Request(request.method, request.path, request.headers), model
        if self._timer is None:
            self._wait()
        return lambda: self._remove(cut)

    def close(self) -> None:
        """Check no stream any more."""
        self._open.clear()
        self._stop()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _remove(self, cut: Callable[[], None]) -> None:
        self._open.pop(cut, None)
        if not self._open:
            self._stop()

    def _check(self) -> None:
        """Check each stream in a callback of its own: the event loop reports an error, and the others are checked."""
        loop = asyncio.get_running_loop()
        for cut in self._open:
            loop.call_soon(self._check_one, cut)
        self._wait()

    def _check_one(self, cut: Callable[[], None]) -> None:
        if cut not in self._open:
            return
        is_admitted = False  # also if it can't be told
        try:
            is_admitted = self._guard.is_still_admitted(*self._open[cut])
        finally:
            if not is_admitted:
                self._remove(cut)
                cut()
