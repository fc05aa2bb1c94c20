"""Times of the last use of API keys, which the control plane reads now and then.

In memory only: lost when the router ends.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

EVERY_SECONDS: Final = 60.0
"""Interval at which the time of a key in constant use is updated, so that its reader has little to write."""
MOST: Final = 100_000
"""Keys that are remembered; beyond that all are forgotten, as after a restart of the router."""


class KeyUses:
    """Key id -> Unix time of its last use, to the minute."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time in seconds."""
        self._clock = clock
        self._last: dict[str, float] = {}

    def note(self, key_id: str) -> None:
        """Record a use. It runs for each request: one look-up in a dict."""
        now, last = self._clock(), self._last.get(key_id)
        if last is not None and 0 <= now - last < EVERY_SECONDS:
            return
        if len(self._last) >= MOST:
            self._last.clear()
        self._last[key_id] = now

    @property
    def last(self) -> Mapping[str, float]:
        """All recorded uses."""
        return dict(self._last)
