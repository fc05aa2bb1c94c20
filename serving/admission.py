"""How many requests of one model a router takes on at once: what comes beyond is refused at the door, not queued."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from ipnext.errors import Unavailable

DEFAULT_MAX_IN_FLIGHT: Final = 1024


class Admission:
    """Requests under way by model. One model that is asked too much leaves the others their share of the router."""

    def __init__(self, limit: int = DEFAULT_MAX_IN_FLIGHT) -> None:
        self._limit = limit
        self._in_flight: dict[str, int] = {}

    @property
    def under_way(self) -> Collection[str]:
        """Models that have requests under way."""
        return self._in_flight.keys()

    @contextmanager
    def admitted(self, model: str) -> Iterator[None]:
        """Count a request while it lasts. Unavailable when the model has as many as it may."""
        count = self._in_flight.get(model, 0)
        if count >= self._limit:
            msg = (
                f"model {model} has {count} requests under way, the limit is {self._limit} (--max-in-flight); try again"
            )
            raise Unavailable(msg)
        self._in_flight[model] = count + 1
        try:
            yield
        finally:
            left = self._in_flight[model] - 1
            if left:
                self._in_flight[model] = left
            else:
                del self._in_flight[model]
