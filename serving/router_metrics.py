"""What a router counts: traffic of each generation for the agent, and the same for Prometheus."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ipnext.model.deployment import GenerationTraffic

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    errors: int = 0
    non_finite: int = 0
    in_flight: int = 0
    latency_seconds_sum: float = 0.0


class RouterMetrics:
    """Counters since the router started."""

    def __init__(self, *, region: str) -> None:
        self._region = region
        self._counts: dict[tuple[str, int], _Counts] = {}
        self.registry = CollectorRegistry()
        labels = ("model", "generation", "region")
        self._requests = Counter("ipnext_requests", "Answers of the edge.", (*labels, "code"), registry=self.registry)
        self._duration = Histogram(
            "ipnext_request_duration_seconds",
            "Time from a request's arrival to its answer.",
            (*labels, "code"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._non_finite = Counter(
            "ipnext_non_finite_answers", "Answers that held NaN or infinity.", labels, registry=self.registry
        )
        self._in_flight = Gauge("ipnext_requests_in_flight", "Requests under way.", labels, registry=self.registry)
        self._substituted = Counter(
            "ipnext_substituted_answers",
            "Answers in which another snapshot stood in for one of the generation's.",
            labels,
            registry=self.registry,
        )
        self._retries = Counter(
            "ipnext_request_retries", "Requests tried again as a whole.", labels, registry=self.registry
        )

    @contextmanager
    def in_flight(self, model: str, generation: int) -> Iterator[None]:
        """Count a request while it lasts."""
        counts = self._of(model, generation)
        gauge = self._in_flight.labels(model, generation, self._region)
        counts.in_flight += 1
        gauge.inc()
        try:
            yield
        finally:
            counts.in_flight -= 1
            gauge.dec()

    def note_answer(self, model: str, generation: int | None, *, status: int, seconds: float) -> None:
        """Count an answer. `generation` is None where none was chosen; that shows in Prometheus only."""
        labels = (model, "none" if generation is None else str(generation), self._region, str(status))
        self._requests.labels(*labels).inc()
        self._duration.labels(*labels).observe(seconds)
        if generation is not None:
            counts = self._of(model, generation)
            counts.requests += 1
            counts.errors += status >= 500
            counts.latency_seconds_sum += seconds

    def note_non_finite(self, model: str, generation: int) -> None:
        """Count an answer that held NaN or infinity."""
        self._of(model, generation).non_finite += 1
        self._non_finite.labels(model, generation, self._region).inc()

    def note_substituted(self, model: str, generation: int) -> None:
        """Count an answer that the sync policy let other snapshots take part in."""
        self._substituted.labels(model, generation, self._region).inc()

    def note_retry(self, model: str, generation: int) -> None:
        """Count a request that is tried again."""
        self._retries.labels(model, generation, self._region).inc()

    @property
    def traffic(self) -> tuple[GenerationTraffic, ...]:
        """The counters of each generation."""
        return tuple(
            GenerationTraffic(
                model=model,
                generation=generation,
                requests=counts.requests,
                errors=counts.errors,
                non_finite=counts.non_finite,
                in_flight=counts.in_flight,
                latency_seconds_sum=counts.latency_seconds_sum,
            )
            for (model, generation), counts in self._counts.items()
        )

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def _of(self, model: str, generation: int) -> _Counts:
        return self._counts.setdefault((model, generation), _Counts())
