"""Lease of an attempt: whether it may still write.

A worker that was paused may wake up while another one runs its activity. An activity whose heartbeats are missing is
retried elsewhere. The late attempt checks its clock before each write, because it learns Temporal's decision only after
the next heartbeat. It is a lease: the time between the check and the write stays unprotected (microseconds, or one more
pause at that moment). Route tables have revisions besides.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ipnext.errors import Unavailable

SENT_LATE_SECONDS = 0.5
"""The delay after which a heartbeat may be sent on: `workflows.worker` makes Temporal's client wait that long."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Also counts while the whole machine is suspended, if the system has such a clock."""


def seconds_now() -> float:
    """Return the seconds of a clock that is never set."""
    return time.clock_gettime(_CLOCK)


class ActivityHeartbeats:
    """One attempt's heartbeats. `limit_seconds` is the longest gap before another worker receives its work."""

    def __init__(self, limit_seconds: float, *, clock: Callable[[], float] = seconds_now) -> None:
        self._most = max(limit_seconds - SENT_LATE_SECONDS, SENT_LATE_SECONDS)
        self._clock = clock
        self._last = clock()
        self._overtaken = False

    def beat(self) -> None:
        """Record a heartbeat. One that comes too late does not restore the lease."""
        now = self._clock()
        self._overtaken = self._overtaken or now - self._last > self._most
        self._last = now

    @property
    def overtaken(self) -> bool:
        """True if another worker may have the work by now; it never becomes false again."""
        self._overtaken = self._overtaken or self._clock() - self._last > self._most
        return self._overtaken


_PULSE: ContextVar[ActivityHeartbeats | None] = ContextVar("pulse", default=None)


@contextmanager
def felt(pulse: ActivityHeartbeats) -> Iterator[None]:
    """Make the code inside, threads with a copy of this context included, the attempt of this pulse."""
    token = _PULSE.set(pulse)
    try:
        yield
    finally:
        _PULSE.reset(token)


def still_ours() -> None:
    """Check before each write to the infrastructure, or to the store about it.

    Raises Unavailable if another worker may run it.
    """
    pulse = _PULSE.get()
    if pulse is not None and pulse.overtaken:
        msg = "this worker stood still for longer than its heartbeats may stay out; another one may have its work"
        raise Unavailable(msg)
