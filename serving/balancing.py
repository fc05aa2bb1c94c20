"""Which endpoint a call goes to: the one with the fewest calls in flight, and none that just failed."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

COOL_OFF_SECONDS: Final = 1.0
"""How long an endpoint that failed is passed over while another one is there."""


def choose(endpoints: Sequence[str], *, in_flight: Mapping[str, int], avoid: Collection[str], turn: int) -> str:
    """The least loaded endpoint outside `avoid`, or of all where none is outside; `turn` rotates among equals."""
    candidates = [url for url in endpoints if url not in avoid] or list(endpoints)
    least = min(in_flight.get(url, 0) for url in candidates)
    equals = [url for url in candidates if in_flight.get(url, 0) == least]
    return equals[turn % len(equals)]


class EndpointLoads:
    """Calls in flight and recent failures of each endpoint, as one router sees them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._cool_until: dict[str, float] = {}
        self._turn = 0

    def choose(self, endpoints: Sequence[str], *, tried: Collection[str]) -> str:
        """The endpoint for the next call. `tried` are those that this request already had no luck with."""
        self._turn += 1
        untried = [url for url in endpoints if url not in tried] or endpoints
        return choose(untried, in_flight=self._in_flight, avoid=self.cooling, turn=self._turn)

    @property
    def cooling(self) -> frozenset[str]:
        """Endpoints that failed a moment ago."""
        if not self._cool_until:
            return frozenset()
        now = self._clock()
        self._cool_until = {url: until for url, until in self._cool_until.items() if until > now}
        return frozenset(self._cool_until)

    @contextmanager
    def calling(self, url: str) -> Iterator[None]:
        """Count a call while it lasts."""
        self._in_flight[url] = self._in_flight.get(url, 0) + 1
        try:
            yield
        finally:
            left = self._in_flight[url] - 1
            if left:
                self._in_flight[url] = left
            else:
                del self._in_flight[url]

    def busy(self, url: str) -> bool:
        """Whether a call to the endpoint is under way."""
        return url in self._in_flight

    def note_failure(self, url: str) -> None:
        """Pass the endpoint over for a moment."""
        self._cool_until[url] = self._clock() + COOL_OFF_SECONDS
