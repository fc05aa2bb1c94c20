"""Prometheus counters of a host: requests and passes of each loaded snapshot.

The series of a snapshot end when it is unloaded.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.host.served_part import ServedPart
from serving.metrics.tallies import HostTally, PartTally
from serving.snapshots.held_snapshots import HeldSnapshots

_LABELS: Final = ("model", "part", "snapshot", "region")
_ANSWER_LABELS: Final = (*_LABELS, "generation", "code")

Tallies = Sequence[tuple[tuple[str, ...], PartTally]]
"""Tallies of parts, each with its values of _LABELS."""


class HostMetrics(Collector):
    """The counters of one host: those of its loaded snapshots, and those in `tally`."""

    def __init__(self, held: HeldSnapshots[ServedPart], tally: HostTally, *, region: str) -> None:
        self._held = held
        self._tally = tally
        self._region = region
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by prometheus_client."""
        tallies = [
            ((hold.model, hold.part, str(hold.snapshot), self._region), served.tally)
            for hold, served in self._held.values
        ]
        yield from _answers(tallies)
        yield from _passes(tallies)
        yield from self._host()

    def _host(self) -> Iterator[Metric]:
        refusals = CounterMetricFamily(
            "ipnext_part_refusals", "Requests for a snapshot that is not here.", labels=("region", "code")
        )
        for code, count in self._tally.refusals.items():
            refusals.add_metric((self._region, code), count)
        retries = CounterMetricFamily(
            "ipnext_walk_retries", "Walks made again as a whole.", labels=("model", "generation", "region")
        )
        for (model, generation), count in self._tally.walk_retries.items():
            retries.add_metric((model, str(generation), self._region), count)
        yield from (refusals, retries)


def _answers(tallies: Tallies) -> Iterator[Metric]:
    requests = CounterMetricFamily("ipnext_part_requests", "Answers of a snapshot.", labels=_ANSWER_LABELS)
    duration = HistogramMetricFamily(
        "ipnext_part_request_duration_seconds", "Time from a request's arrival to its answer.", labels=_ANSWER_LABELS
    )
    bytes_in = CounterMetricFamily("ipnext_part_request_bytes", "Bytes of requests' bodies.", labels=_ANSWER_LABELS)
    bytes_out = CounterMetricFamily("ipnext_part_answer_bytes", "Bytes of answers' bodies.", labels=_ANSWER_LABELS)
    for labels, tally in tallies:
        for (generation, status), answers in tally.answers.items():
            values = (*labels, str(generation), str(status))
            requests.add_metric(values, answers.seconds.count)
            answers.seconds.add_to(duration, values)
            bytes_in.add_metric(values, answers.bytes_in)
            bytes_out.add_metric(values, answers.bytes_out)
    yield from (requests, duration, bytes_in, bytes_out)


def _passes(tallies: Tallies) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily("ipnext_part_requests_in_flight", "Requests that run or wait.", labels=_LABELS)
    non_finite = CounterMetricFamily(
        "ipnext_part_non_finite_answers", "Whole models' answers that held NaN or infinity.", labels=_LABELS
    )
    queued = HistogramMetricFamily("ipnext_part_queue_seconds", "Time from arrival to the pass.", labels=_LABELS)
    seconds = HistogramMetricFamily("ipnext_part_pass_duration_seconds", "Time of a forward pass.", labels=_LABELS)
    requests = HistogramMetricFamily("ipnext_part_pass_requests", "Requests answered by one pass.", labels=_LABELS)
    rows = HistogramMetricFamily("ipnext_part_pass_rows", "Rows of one pass.", labels=_LABELS)
    for labels, tally in tallies:
        in_flight.add_metric(labels, tally.in_flight)
        non_finite.add_metric(labels, tally.non_finite)
        tally.queued.add_to(queued, labels)
        tally.pass_seconds.add_to(seconds, labels)
        tally.pass_requests.add_to(requests, labels)
        tally.pass_rows.add_to(rows, labels)
    yield from (in_flight, non_finite, queued, seconds, requests, rows)
