"""Streamed answers of models that need a credential: their callers are checked again while they stream.

A stream may last for hours. It ends within CHECK_SECONDS after an access list without its caller is in force.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

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
        self._timer = None
        try:
            for cut, (request, model) in tuple(self._open.items()):
                if not self._is_admitted(request, model):
                    self._open.pop(cut, None)
                    _cut(cut)
        finally:
            if self._open:
                self._wait()

    def _is_admitted(self, request: Request, model: str) -> bool:
        try:
            return self._guard.is_still_admitted(request, model)
        except Exception:  # noqa: BLE001 - whatever it is, the other streams are checked, and this one fails closed
            structlog.get_logger().exception("a stream could not be checked, and is cut", model=model)
            return False


def _cut(cut: Callable[[], None]) -> None:
    try:
        cut()
    except Exception:  # noqa: BLE001 - as above
        structlog.get_logger().exception("a stream could not be cut")
