"""Waiting inside an activity: heartbeats, the deadline over all attempts, and an end when it is cancelled."""

import math
import time
from collections.abc import Callable

from temporalio import activity
from temporalio.exceptions import CancelledError

from ipnext.errors import Unavailable

POLL_SECONDS = 0.2
"""Between two polls of a region that does not answer, or does not report changes."""

LONGEST_WAIT_SECONDS = 1.0
"""Of a wait for a region to change: a cancellation is detected within this time."""

LOOK_SECONDS = 2.0
"""Of all waits of one attempt: then the workflow sleeps and calls again, and the slot is free meanwhile."""


BEAT_SECONDS = 0.1
"""Between two heartbeats of code that sends them as often as it can: each one waits for the event loop of the
worker."""


class Deadline:
    """Deadline over all attempts. An attempt counts from its start: time in which no worker works is not counted."""

    def __init__(
        self,
        seconds: float,
        *,
        pause: Callable[[float], None] = time.sleep,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a deadline.

        `seconds` is the time that earlier polls left; this poll ends after `look_seconds` at the latest.
        """
        self._seconds, self._look_seconds = seconds, look_seconds
        self._clock = clock
        self._started = clock()
        self._pause = pause

    @property
    def is_over(self) -> bool:
        """True if no time is left."""
        return self.waited_seconds >= self._seconds

    @property
    def is_poll_over(self) -> bool:
        """True if this poll has lasted long enough."""
        return self.waited_seconds >= self._look_seconds

    @property
    def waited_seconds(self) -> float:
        """Seconds since the poll began."""
        return self._clock() - self._started

    def wait(self, what: str) -> None:
        """Heartbeat with `what`, then pause. Raises CancelledError if cancelled, Unavailable if the worker stops."""
        beat(what)
        self._pause(POLL_SECONDS)

    def wait_for(self, what: str, change: Callable[[float], None]) -> None:
        """Wait like `wait`, while `change` waits for an event: it receives the most seconds that it may take."""
        beat(what)
        left = min(self._seconds, self._look_seconds) - self.waited_seconds
        try:
            change(min(LONGEST_WAIT_SECONDS, max(left, 0.0)))
        except Unavailable:
            self._pause(POLL_SECONDS)


def throttle(
    say: Callable[[str], None], *, every_seconds: float = BEAT_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Callable[[str], None]:
    """Make a `beat` that may be called millions of times.

    It calls `say` once per period, and else only reads the clock.
    """
    last = -math.inf

    def beat(what: str) -> None:
        nonlocal last
        now = clock()
        if now - last >= every_seconds:
            last = now
            say(what)

    return beat


def beat(what: str) -> None:
    """Send a heartbeat; end the activity if it was cancelled or its worker stops (another attempt continues)."""
    activity.heartbeat(what)
    if activity.is_worker_shutdown():
        msg = "the worker stops; another one goes on"
        raise Unavailable(msg)
    if activity.is_cancelled():
        msg = f"cancelled while {what}"
        raise CancelledError(msg)
