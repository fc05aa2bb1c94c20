"""Waiting inside an activity: heartbeats, the deadline over all attempts, and an end when it is cancelled."""

import time
from collections.abc import Callable

from temporalio import activity
from temporalio.exceptions import CancelledError

from ipnext.errors import Unavailable

POLL_SECONDS = 0.2
"""Between two looks at a region that does not answer, or does not tell when something changes."""

LONGEST_LOOK_SECONDS = 1.0
"""Of a wait for a region to change: a cancellation is heard so soon."""


class Deadline:
    """Counts from the first attempt, so that a worker's crash gives no new time. Made at the attempt's start."""

    def __init__(self, seconds: float, *, pause: Callable[[float], None] = time.sleep) -> None:
        info = activity.info()
        self._left_at_start = seconds - (info.started_time - info.scheduled_time).total_seconds()
        self._started = time.monotonic()
        self._pause = pause

    @property
    def passed(self) -> bool:
        """True where no time is left."""
        return time.monotonic() - self._started >= self._left_at_start

    def wait(self, what: str) -> None:
        """Heartbeat `what` is waited for and pause. CancelledError when cancelled, Unavailable when the worker stops."""
        beat(what)
        self._pause(POLL_SECONDS)

    def wait_for(self, what: str, change: Callable[[float], None]) -> None:
        """As `wait`, while `change` waits for something to happen: it gets the seconds that it may take at most."""
        beat(what)
        left = self._left_at_start - (time.monotonic() - self._started)
        try:
            change(min(LONGEST_LOOK_SECONDS, max(left, 0.0)))
        except Unavailable:
            self._pause(POLL_SECONDS)


def beat(what: str) -> None:
    """Heartbeat; ends the activity where it was cancelled or its worker stops (another attempt goes on)."""
    activity.heartbeat(what)
    if activity.is_worker_shutdown():
        msg = "the worker stops; another one goes on"
        raise Unavailable(msg)
    if activity.is_cancelled():
        msg = f"cancelled while {what}"
        raise CancelledError(msg)
