"""Polling of a state until it is reached."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ipnext.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")

POLL_SECONDS = 0.2


def poll(timeout_seconds: float) -> Iterator[None]:
    """Yield now and every POLL_SECONDS until the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(POLL_SECONDS, left))


def glance(look: Callable[[], T]) -> T | None:
    """Read a state; None if that fails for a moment, such as during a restart of the API."""
    try:
        return look()
    except (Unavailable, DeadlineExceeded):
        return None
