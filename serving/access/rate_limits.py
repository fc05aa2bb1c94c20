"""Token buckets: a caller that exceeds its steady rate learns how long to wait. The only clock is the one given.

One limiter counts for one process. Any hashable value names a bucket, such as a key and a model, or an owner.
"""

import heapq
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

MOST_BUCKETS: Final = 65_536
"""Buckets that are kept; full ones are forgotten first, which changes nothing, then those that lack least."""
FORGOTTEN_AT_ONCE: Final = 16
"""At least one bucket in so many is forgotten at once: each time looks at all of them."""


class Rate(NamedTuple):
    """The rate of a bucket: `per_second` steadily, `burst` at once after a quiet time."""

    per_second: float
    burst: float


class _Bucket:
    __slots__ = ("at", "rate", "tokens")

    def __init__(self, rate: Rate, at: float) -> None:
        self.rate, self.tokens, self.at = rate, rate.burst, at

    def fill(self, rate: Rate, now: float) -> None:
        """Add the tokens since the last call.

        If the rate has changed, the bucket keeps its tokens up to the new burst.
        """
        self.tokens = min(rate.burst, self.tokens + max(0.0, now - self.at) * rate.per_second)
        self.rate, self.at = rate, now

    def lacks(self, now: float) -> float:
        """Return the fraction of the burst that is taken; 0 or less if the bucket is full."""
        return 1.0 - (self.tokens + (now - self.at) * self.rate.per_second) / self.rate.burst


class RateLimiter:
    """Buckets by name. Not thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, most: int = MOST_BUCKETS) -> None:
        """`clock`: monotonic seconds."""
        self._clock, self._most = clock, most
        self._buckets: dict[Hashable, _Bucket] = {}

    def take(self, wanted: Sequence[tuple[Hashable, Rate]]) -> float:
        """Take one token from each of these buckets, or none from any.

        Returns 0 if they were taken, else the seconds after which they can be, if no other caller takes from them
        first.
        """
        now = self._clock()
        buckets = [self._bucket(name, rate, now) for name, rate in wanted]
        missing = max(((1.0 - one.tokens) / one.rate.per_second for one in buckets), default=0.0)
        if missing > 0.0:
            return missing
        for one in buckets:
            one.tokens -= 1.0
        return 0.0

    def __len__(self) -> int:
        """Return the number of buckets that are kept."""
        return len(self._buckets)

    def _bucket(self, name: Hashable, rate: Rate, now: float) -> _Bucket:
        found = self._buckets.get(name)
        if found is None:
            if len(self._buckets) >= self._most:
                self._forget(now)
            found = _Bucket(rate, now)
        self._buckets[name] = found
        found.fill(rate, now)
        return found

    def _forget(self, now: float) -> None:
        lack = {name: bucket.lacks(now) for name, bucket in self._buckets.items()}
        full = [name for name, lacking in lack.items() if lacking <= 0.0]
        least = max(1, self._most // FORGOTTEN_AT_ONCE)
        for name in full if len(full) >= least else heapq.nsmallest(least, lack, key=lack.__getitem__):
            del self._buckets[name]
