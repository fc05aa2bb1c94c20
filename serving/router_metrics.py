"""What a router counts: traffic of each generation for the agent, statistics for V2 clients, and all of it for Prometheus."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ipnext.model.deployment import GenerationTraffic
from serving.router_table import GenerationRoute
from serving.tallies import Answers

_FORGET_SECONDS: Final = 3600.0
"""A generation that is no longer served, and was not asked for so long, is forgotten."""
_LABELS: Final = ("model", "generation", "region")

Served = Callable[[], Iterable[GenerationRoute]]


@dataclass(slots=True)
class GenerationCounts:
    """The requests of one generation since the router started."""

    answers: dict[int, Answers] = field(default_factory=dict)
    """By HTTP status."""
    in_flight: int = 0
    non_finite: int = 0
    retries: int = 0
    substituted: int = 0
    last_at: float = 0.0
    """Unix time of the last answer."""

    def note(self, status: int) -> Answers:
        """Where an answer of this status is counted."""
        self.last_at = time.time()
        found = self.answers.get(status)
        if found is None:
            found = self.answers[status] = Answers()
        return found

    def requests(self, *, at_least: int = 0) -> int:
        """Answers whose status is `at_least` so high."""
        return sum(answers.seconds.count for status, answers in self.answers.items() if status >= at_least)


class RouterMetrics(Collector):
    """Counters since the router started. `served` tells the generations in the table now."""

    def __init__(self, *, region: str, served: Served = tuple) -> None:
        self._region = region
        self._served = served
        self._counts: dict[tuple[str, int | None], GenerationCounts] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    @contextmanager
    def in_flight(self, model: str, generation: int) -> Iterator[None]:
        """Count a request while it lasts."""
        counts = self._of(model, generation)
        counts.in_flight += 1
        try:
            yield
        finally:
            counts.in_flight -= 1

    def note_answer(
        self, model: str, generation: int | None, *, status: int, seconds: float, sizes: tuple[int, int] = (0, 0)
    ) -> None:
        """Count an answer; `sizes` are the bytes of its request's body and of its own.

        `generation` is None where none was chosen; that shows in Prometheus only.
        """
        self._of(model, generation).note(status).note(seconds, *sizes)

    def note_non_finite(self, model: str, generation: int) -> None:
        """Count an answer that held NaN or infinity."""
        self._of(model, generation).non_finite += 1

    def note_substituted(self, model: str, generation: int) -> None:
        """Count an answer that the sync policy let other snapshots take part in."""
        self._of(model, generation).substituted += 1

    def note_retry(self, model: str, generation: int) -> None:
        """Count a request that is tried again."""
        self._of(model, generation).retries += 1

    @property
    def generations(self) -> dict[tuple[str, int], GenerationCounts]:
        """The counts of each generation of each model."""
        return {(model, number): counts for (model, number), counts in self._counts.items() if number is not None}

    @property
    def traffic(self) -> tuple[GenerationTraffic, ...]:
        """The counters of each generation."""
        return tuple(
            GenerationTraffic(
                model=model,
                generation=generation,
                requests=counts.requests(),
                errors=counts.requests(at_least=500),
                non_finite=counts.non_finite,
                in_flight=counts.in_flight,
                latency_seconds_sum=sum(answers.seconds.total for answers in counts.answers.values()),
            )
            for (model, generation), counts in self.generations.items()
        )

    def text(self) -> bytes:
        """Prometheus' text format."""
        self._forget()
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks."""
        yield from self._answers()
        non_finite = CounterMetricFamily(
            "ipnext_non_finite_answers", "Answers that held NaN or infinity.", labels=_LABELS
        )
        retries = CounterMetricFamily("ipnext_request_retries", "Requests tried again as a whole.", labels=_LABELS)
        substituted = CounterMetricFamily(
            "ipnext_substituted_answers",
            "Answers in which another snapshot stood in for one of the generation's.",
            labels=_LABELS,
        )
        in_flight = GaugeMetricFamily("ipnext_requests_in_flight", "Requests under way.", labels=_LABELS)
        for (model, generation), counts in self.generations.items():
            labels = (model, str(generation), self._region)
            non_finite.add_metric(labels, counts.non_finite)
            retries.add_metric(labels, counts.retries)
            substituted.add_metric(labels, counts.substituted)
            in_flight.add_metric(labels, counts.in_flight)
        yield from (non_finite, retries, substituted, in_flight, self._snapshots())

    def _answers(self) -> Iterator[Metric]:
        labels = (*_LABELS, "code")
        requests = CounterMetricFamily("ipnext_requests", "Answers of the edge.", labels=labels)
        duration = HistogramMetricFamily(
            "ipnext_request_duration_seconds", "Time from a request's arrival to its answer.", labels=labels
        )
        bytes_in = CounterMetricFamily("ipnext_request_bytes", "Bytes of requests' bodies.", labels=labels)
        bytes_out = CounterMetricFamily("ipnext_answer_bytes", "Bytes of answers' bodies.", labels=labels)
        for (model, generation), counts in self._counts.items():
            for status, answers in counts.answers.items():
                values = (model, "none" if generation is None else str(generation), self._region, str(status))
                requests.add_metric(values, answers.seconds.count)
                answers.seconds.add_to(duration, values)
                bytes_in.add_metric(values, answers.bytes_in)
                bytes_out.add_metric(values, answers.bytes_out)
        yield from (requests, duration, bytes_in, bytes_out)

    def _snapshots(self) -> Metric:
        """The snapshot of each part of each served generation, to be joined with the others by model and generation."""
        labels = (*_LABELS, "part", "snapshot")
        family = GaugeMetricFamily("ipnext_generation_snapshot", "1 for each part of a generation.", labels=labels)
        for route in self._served():
            for part, snapshot in route.snapshots.items():
                family.add_metric((route.model, str(route.generation), self._region, part, str(snapshot)), 1)
        return family

    def _forget(self) -> None:
        served = {(route.model, route.generation) for route in self._served()}
        old = time.time() - _FORGET_SECONDS
        for key, counts in tuple(self._counts.items()):
            if key[1] is not None and key not in served and not counts.in_flight and counts.last_at < old:
                del self._counts[key]

    def _of(self, model: str, generation: int | None) -> GenerationCounts:
        found = self._counts.get((model, generation))
        if found is None:
            found = self._counts[model, generation] = GenerationCounts()
        return found
