"""Whether an attempt may still write: a worker that stood still wakes up beside the one that was given its work.

An activity whose heartbeats stay out is tried again elsewhere. The late one asks its own clock before each write, for what
the engine thinks of it is heard only after the next heartbeat. It is a lease: what lies between the question and the write
stays open (microseconds, or one more standstill just there). Route tables have revisions besides.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ipnext.errors import Unavailable

SENT_LATE_SECONDS = 0.5
"""A heartbeat may be sent on so much later than it is given: `workflows.worker` has the engine's client wait so long."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Counts while the whole machine is suspended, too, where the system has such a clock."""


def seconds_now() -> float:
    """Of a clock that nobody sets."""
    return time.clock_gettime(_CLOCK)


class Pulse:
    """One attempt's heartbeats. `limit_seconds` is how long they may stay out before another worker is given its work."""

    def __init__(self, limit_seconds: float, *, clock: Callable[[], float] = seconds_now) -> None:
        self._most = max(limit_seconds - SENT_LATE_SECONDS, SENT_LATE_SECONDS)
        self._clock = clock
        self._last = clock()
        self._overtaken = False

    def beat(self) -> None:
        """A heartbeat is given. One that comes too late does not bring the attempt back."""
        now = self._clock()
        self._overtaken = self._overtaken or now - self._last > self._most
        self._last = now

    @property
    def overtaken(self) -> bool:
        """Whether another worker may have its work by now. Once so, always so."""
        self._overtaken = self._overtaken or self._clock() - self._last > self._most
        return self._overtaken


_PULSE: ContextVar[Pulse | None] = ContextVar("pulse", default=None)


@contextmanager
def felt(pulse: Pulse) -> Iterator[None]:
    """What runs inside, threads with a copy of this context included, is the attempt of this pulse."""
    token = _PULSE.set(pulse)
    try:
        yield
    finally:
        _PULSE.reset(token)


def still_ours() -> None:
    """Before each write to the infrastructure, and to the store about it. Unavailable where another worker may be at it."""
    pulse = _PULSE.get()
    if pulse is not None and pulse.overtaken:
        msg = "this worker stood still for longer than its heartbeats may stay out; another one may have its work"
        raise Unavailable(msg)
