"""A router's counters.

Traffic of each generation for the agent, statistics for V2 clients, and all of it for Prometheus.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ipnext.model.deployment.traffic import GenerationTraffic
from serving.metrics.generation_counts import ChosenCounts, GenerationCounts
from serving.metrics.in_flight import InFlight
from serving.metrics.prediction_sketches import SAMPLE_SECONDS, Sketches
from serving.metrics.refusals import RefusalCounts
from serving.metrics.tallies import CANCELLED, Histogram, StreamTally
from serving.routing.table import GenerationRoute

_FORGET_SECONDS: Final = 3600.0
"""Time without requests after which a generation that is no longer served is forgotten."""
_LABELS: Final = ("model", "generation", "region")
LATE: Final = 504
EARLY_FACTOR: Final = 2.0
"""Factor of the usual time: missing a shorter deadline does not count against a generation."""

Served = Callable[[], Iterable[GenerationRoute]]


class RouterMetrics(Collector):
    """Counters since the router started. `served` returns the generations in the current table.

    At most one answer of a generation per `sample_seconds` is sampled for its predictions; infinity: none.
    """

    def __init__(self, *, region: str, served: Served = tuple, sample_seconds: float = SAMPLE_SECONDS) -> None:
        self.region = region
        self._sample_seconds = sample_seconds
        self._served = served
        self._counts: dict[tuple[str, int | None], GenerationCounts] = {}
        self._of_model: defaultdict[str, list[GenerationCounts]] = defaultdict(list)
        self.refusals = RefusalCounts(region)
        """Requests refused by access control, which count nowhere else."""
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def in_flight(self, model: str, generation: int) -> InFlight:
        """Count a request until it ends."""
        return InFlight(self._of(model, generation))

    def note_answer(  # noqa: PLR0913 - the facts of a request's end
        self,
        model: str,
        generation: int | None,
        *,
        status: int,
        seconds: float,
        sizes: tuple[int, int] = (0, 0),
        chosen_by: str | None = None,
        non_finite: bool = False,
        streamed: bool = False,
    ) -> None:
        """Count an answer; `sizes` are the bytes of the request's body and of the answer's.

        If no generation was chosen, `generation` is None and the answer is counted in Prometheus only. Gates judge
        answers of generations that a gateway chose (`chosen_by`, see `note_chosen`). A missed deadline shorter than
        twice the usual time of the model's fastest generation counts as withdrawn. `non_finite`: the answer holds NaN
        or infinity, and its request had none; `streamed`: the answer had begun.
        """
        counts = self._of(model, generation)
        counts.note(status).note(seconds, *sizes)
        if status == 200:
            counts.latency.observe(seconds)
        counts.non_finite += non_finite
        chosen = counts.chosen_by(chosen_by)
        if chosen is not None:
            is_early = status == LATE and self._is_too_early(model, seconds)
            chosen.note(CANCELLED if is_early else status, seconds, non_finite=non_finite, streamed=streamed)

    def _is_too_early(self, model: str, seconds: float) -> bool:
        usual = [counts.usual_seconds for counts in self._of_model[model]]
        return seconds < EARLY_FACTOR * min((known for known in usual if known is not None), default=0.0)

    def under_way(self, model: str) -> int:
        """Return the requests of a model in flight, over all its generations."""
        return sum(counts.in_flight for (name, _), counts in self._counts.items() if name == model)

    def samples(self, model: str, generation: int) -> bool:
        """Whether the answer to the request that begins now is sketched."""
        return self._of(model, generation).predictions.wants(time.monotonic(), self._sample_seconds)

    def note_predictions(self, model: str, generation: int, sketches: Sketches) -> None:
        """Add the sketches of a sampled answer."""
        self._of(model, generation).predictions.add(sketches)

    def streams(self, model: str, generation: int) -> StreamTally:
        """Return the additional counters of streamed answers."""
        counts = self._of(model, generation)
        if counts.streams is None:
            counts.streams = StreamTally()
        return counts.streams

    def note_before(self, model: str, generation: int, seconds: float) -> None:
        """Record the time taken by the nodes before a generator."""
        counts = self._of(model, generation)
        if counts.before is None:
            counts.before = Histogram()
        counts.before.observe(seconds)

    def note_chosen(self, model: str, generation: int, gateway: str | None) -> ChosenCounts | None:
        """Count a request that begins, and whose generation a gateway chose; return the counters of its choices."""
        chosen = self._of(model, generation).chosen_by(gateway)
        if chosen is not None:
            chosen.begun += 1
        return chosen

    def note_substituted(self, model: str, generation: int) -> None:
        """Count an answer in which the sync policy allowed other snapshots."""
        self._of(model, generation).substituted += 1

    def note_retry(self, model: str, generation: int) -> None:
        """Count a request that is retried."""
        self._of(model, generation).retries += 1

    def note_prefill(self, model: str, generation: int, outcome: str) -> None:
        """Count a request of a model with a separate prefill engine, by the outcome of the prefill."""
        self._of(model, generation).prefills[outcome] += 1

    @property
    def generations(self) -> dict[tuple[str, int], GenerationCounts]:
        """The counts of each generation of each model."""
        return {(model, number): counts for (model, number), counts in self._counts.items() if number is not None}

    @property
    def traffic(self) -> tuple[GenerationTraffic, ...]:
        """The counters of each generation; those in the table with latencies and predictions."""
        self._drop_details()
        return tuple(counts.traffic(model, generation) for (model, generation), counts in self.generations.items())

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        self._forget()
        self._drop_details()
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by prometheus_client."""
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
        latency = HistogramMetricFamily(
            "ipnext_request_latency_seconds",
            "Time to answers with status 200, in the buckets of gates.",
            labels=_LABELS,
        )
        for (model, generation), counts in self.generations.items():
            labels = (model, str(generation), self.region)
            non_finite.add_metric(labels, counts.non_finite)
            retries.add_metric(labels, counts.retries)
            substituted.add_metric(labels, counts.substituted)
            in_flight.add_metric(labels, counts.in_flight)
            if counts.latency.count:
                counts.latency.add_to(latency, labels)
        yield from (non_finite, retries, substituted, in_flight, latency, self._snapshots())
        yield from self._predictions()
        yield from self._streams()
        yield self._prefills()
        yield from self.refusals.collect()

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
                values = (model, "none" if generation is None else str(generation), self.region, str(status))
                requests.add_metric(values, answers.seconds.count)
                answers.seconds.add_to(duration, values)
                bytes_in.add_metric(values, answers.bytes_in)
                bytes_out.add_metric(values, answers.bytes_out)
        yield from (requests, duration, bytes_in, bytes_out)

    def _streams(self) -> Iterator[Metric]:
        first = HistogramMetricFamily(
            "ipnext_first_byte_seconds", "Time to the first piece of answers that come in pieces.", labels=_LABELS
        )
        before = HistogramMetricFamily(
            "ipnext_before_generation_seconds", "Time of the nodes before one that generates.", labels=_LABELS
        )
        pieces = CounterMetricFamily("ipnext_stream_pieces", "Pieces of these answers.", labels=_LABELS)
        broken = CounterMetricFamily("ipnext_broken_streams", "Those whose engine went away first.", labels=_LABELS)
        for (model, generation), counts in self.generations.items():
            labels = (model, str(generation), self.region)
            if counts.before is not None:
                counts.before.add_to(before, labels)
            if counts.streams is not None:
                counts.streams.first_seconds.add_to(first, labels)
                pieces.add_metric(labels, counts.streams.pieces)
                broken.add_metric(labels, counts.streams.broken)
        yield from (before, first, pieces, broken)

    def _prefills(self) -> Metric:
        labels = (*_LABELS, "outcome")
        family = CounterMetricFamily(
            "ipnext_prefills", "Requests whose prompt another engine was to read first.", labels=labels
        )
        for (model, generation), counts in self.generations.items():
            for outcome, count in counts.prefills.items():
                family.add_metric((model, str(generation), self.region, outcome), count)
        return family

    def _predictions(self) -> Iterator[Metric]:
        labels = (*_LABELS, "output")
        answers = CounterMetricFamily("ipnext_sampled_answers", "Answers whose numbers were sampled.", labels=labels)
        values = CounterMetricFamily("ipnext_predictions", "Numbers of sampled answers.", labels=labels)
        total = GaugeMetricFamily("ipnext_prediction_sum", "Sum of these numbers.", labels=labels)
        squares = GaugeMetricFamily("ipnext_prediction_square_sum", "Sum of their squares.", labels=labels)
        for (model, generation), counts in self.generations.items():
            for output, sketch in counts.predictions.sketches.items():
                at = (model, str(generation), self.region, output)
                answers.add_metric(at, sketch.answers)
                values.add_metric(at, sketch.values)
                total.add_metric(at, sketch.total)
                squares.add_metric(at, sketch.squares)
        yield from (answers, values, total, squares)

    def _snapshots(self) -> Metric:
        """Return the snapshots of each part of each served generation: several if they differ by hardware.

        They are joined with other series by model and generation.
        """
        labels = (*_LABELS, "part", "snapshot")
        family = GaugeMetricFamily("ipnext_generation_snapshot", "1 for each part of a generation.", labels=labels)
        for route in self._served():
            for part, snapshot in sorted(route.own):
                family.add_metric((route.model, str(route.generation), self.region, part, str(snapshot)), 1)
        return family

    def _forget(self) -> None:
        served = {(route.model, route.generation) for route in self._served()}
        old = time.time() - _FORGET_SECONDS
        for key, counts in tuple(self._counts.items()):
            if key[1] is not None and key not in served and not counts.in_flight and counts.last_at < old:
                self._of_model[key[0]].remove(counts)
                del self._counts[key]

    def _drop_details(self) -> None:
        """Drop details of generations that are not served: if models are refreshed often, most generations are not."""
        served = {(route.model, route.generation) for route in self._served()}
        for key, counts in self.generations.items():
            if key not in served:
                counts.drop_details()

    def _of(self, model: str, generation: int | None) -> GenerationCounts:
        found = self._counts.get((model, generation))
        if found is None:
            found = self._counts[model, generation] = GenerationCounts()
            self._of_model[model].append(found)
        return found
