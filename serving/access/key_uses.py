"""When API keys proved somebody last, for the control plane to read now and then. In memory only: a router that ends takes it along."""

import time
from collections.abc import Callable, Mapping
from typing import Final

EVERY_SECONDS: Final = 60.0
"""A key that is used all the time gets a new time so often, so that what reads it has little to write."""
MOST: Final = 100_000
"""Keys that are remembered; beyond that all are forgotten, as they would be if the router started again."""


class KeyUses:
    """Key id -> Unix time of its last use, to the minute."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time in seconds."""
        self._clock = clock
        self._last: dict[str, float] = {}

    def note(self, key_id: str) -> None:
        """Note a use. It is on the path of each request: one look into a dict."""
        now, last = self._clock(), self._last.get(key_id)
        if last is not None and 0 <= now - last < EVERY_SECONDS:
            return
        if len(self._last) >= MOST:
            self._last.clear()
        self._last[key_id] = now

    @property
    def last(self) -> Mapping[str, float]:
        """All that were noted."""
        return dict(self._last)
