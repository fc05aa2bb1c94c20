"""Polling of a state until it is reached."""

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from ipnext.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")

POLL_SECONDS: Final = 0.2
"""The shortest pause between two looks, and that of a wait of a few seconds."""
RAREST_POLL_SECONDS: Final = 1.0
LATENESS: Final = 0.1
"""A look takes processor time of the API and the database, so a long wait looks less often: it ends later by this
part of its time, and by at most RAREST_POLL_SECONDS."""


def poll(timeout_seconds: float) -> Iterator[None]:
    """Yield now, and again and again until the time is over: the longer it lasts, the less often."""
    begun = time.monotonic()
    while True:
        yield
        waited = time.monotonic() - begun
        left = timeout_seconds - waited
        if left <= 0:
            return
        pause = max(POLL_SECONDS, min(RAREST_POLL_SECONDS, LATENESS * waited))
        time.sleep(min(pause, left))


def glance(look: Callable[[], T]) -> T | None:
    """Read a state; None if that fails for a moment, such as during a restart of the API."""
    try:
        return look()
    except (Unavailable, DeadlineExceeded):
        return None
