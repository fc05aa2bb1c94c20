"""Counters of requests in plain numbers, exported when Prometheus scrapes. Used by the metrics of routers and hosts.

prometheus-client's own counters take a lock per step and a look-up of the labels, some microseconds per request in all.
Here one thread counts, so integers suffice, and the library's Collector interface exports them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from prometheus_client.core import HistogramMetricFamily

from ipnext.model.gate.sketch import LATENCY_SECONDS

CONTENT_TYPE: Final = "text/plain; version=0.0.4"
"""Content type of the text that `generate_latest` writes."""
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of a time, in seconds."""
SIZES: Final = tuple(float(1 << step) for step in range(13))
"""Upper bounds of the buckets of a number of rows: 1 to 4096."""
CANCELLED: Final = 499
"""Status that counts for a request whose client left first, as in nginx."""


class Histogram:
    """Number of values per bucket, and their sum."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def bounds(self) -> Sequence[float]:
        """Upper bounds of its buckets; one more bucket follows."""
        return self._bounds

    @property
    def count(self) -> int:
        """Number of values so far."""
        return sum(self._counts)

    @property
    def counts(self) -> dict[int, int]:
        """Bucket -> number of values, if any; bucket i ends at bound i, the last one is unbounded."""
        return {bucket: count for bucket, count in enumerate(self._counts) if count}

    @property
    def median(self) -> float:
        """Upper bound of the median's bucket; infinity beyond the last bound. There must be a value."""
        half, so_far = self.count / 2, 0
        for bound, count in zip(self._bounds, self._counts, strict=False):
            so_far += count
            if so_far >= half:
                return bound
        return float("inf")

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add it as one series of a family."""
        so_far = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            so_far += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(so_far)))
        family.add_metric(labels, buckets, self.total)


class Answers:
    """The answers with one status."""

    __slots__ = ("bytes_in", "bytes_out", "seconds")

    def __init__(self) -> None:
        self.seconds = Histogram()
        self.bytes_in = 0
        self.bytes_out = 0

    def note(self, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """Count one answer."""
        self.seconds.observe(seconds)
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out


class StreamTally:
    """The streamed answers of a generation."""

    def __init__(self) -> None:
        self.first_seconds = Histogram()
        """Time from a request's arrival to the first piece of its answer."""
        self.pieces = 0
        self.broken = 0
        self.drop_details()

    def note(
        self,
        first_seconds: float,
        pieces: int,
        *,
        seconds: float | None,
        broken: bool,
        chosen: tuple[Histogram, Histogram] | None = None,
    ) -> None:
        """Count an answer that ended `seconds` after its request arrived; None if its times must not be judged.

        `chosen`: further histograms of the times to the first piece, and between pieces.
        """
        self.first_seconds.observe(first_seconds)
        self.pieces += pieces
        self.broken += broken
        if seconds is None:
            return
        for first, between in ((self.first_token, self.token), *(() if chosen is None else (chosen,))):
            first.observe(first_seconds)
            if pieces > 1:
                between.observe((seconds - first_seconds) / (pieces - 1))

    def drop_details(self) -> None:
        """Drop the histograms for gates, which take the most memory."""
        self.first_token = Histogram(LATENCY_SECONDS)
        """Time from a request's arrival to the first piece of its answer, in the buckets of gates."""
        self.token = Histogram(LATENCY_SECONDS)
        """Mean time between two pieces of an answer."""


class HostTally:
    """A host's counters besides those of its snapshots."""

    def __init__(self) -> None:
        self.refusals: dict[str, int] = {}
        """Requests for which no snapshot was ready, by the code of the error."""
        self.walk_retries: dict[tuple[str, int], int] = {}
        """Graph executions that were repeated as a whole, by model and generation."""

    def note_refusal(self, code: str) -> None:
        """Count a refusal."""
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def note_retry(self, model: str, generation: int) -> None:
        """Count a repeated graph execution."""
        self.walk_retries[model, generation] = self.walk_retries.get((model, generation), 0) + 1


class PartTally:
    """The requests and passes of one loaded snapshot."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, int], Answers] = {}
        """By generation and HTTP status."""
        self.in_flight = 0
        self.non_finite = 0
        self.queued = Histogram()
        """Seconds from a request's arrival to its pass."""
        self.pass_seconds = Histogram()
        self.pass_requests = Histogram(SIZES)
        self.pass_rows = Histogram(SIZES)

    def note_pass(self, requests: int, rows: int, seconds: float) -> None:
        """Count a forward pass."""
        self.pass_seconds.observe(seconds)
        self.pass_requests.observe(requests)
        self.pass_rows.observe(rows)

    def note_answer(self, key: tuple[int, int], seconds: float, bytes_in: int, bytes_out: int) -> None:
        """Count an answer under its generation and status."""
        found = self.answers.get(key)
        if found is None:
            found = self.answers[key] = Answers()
        found.note(seconds, bytes_in, bytes_out)
