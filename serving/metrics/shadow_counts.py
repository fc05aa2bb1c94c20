"""A router's counters of one shadow, and their form for the agent and for Prometheus."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ipnext.model.gate.shadow import (
    DIFFERENCE_BOUNDS,
    MOST_OUTPUTS,
    OTHER_OUTPUTS,
    OVERLAP_BOUNDS,
    DropReason,
    Mismatch,
    OutputDifference,
    ShadowComparison,
)
from ipnext.model.gate.sketch import LATENCY_SECONDS
from serving.metrics.answer_differences import AnswerDifference, TensorDifference
from serving.metrics.tallies import Histogram

_LABELS: Final = ("model", "generation", "region")
_DECADE: Final = 10
"""Buckets of a difference that are one in Prometheus."""
_ROUNDING: Final = 1e-9
"""Below a bucket's bound: an overlap of 0.7 is computed as a little more or less."""


class _OutputCounts:
    """The differences of one output."""

    def __init__(self) -> None:
        self.absolute = Histogram(DIFFERENCE_BOUNDS)
        self.relative = Histogram(DIFFERENCE_BOUNDS)
        self.overlap = Histogram(OVERLAP_BOUNDS)

    def note(self, found: TensorDifference) -> None:
        self.absolute.observe(found.absolute)
        self.relative.observe(found.relative)
        if found.overlap is not None:
            self.overlap.observe(found.overlap - _ROUNDING)

    @property
    def difference(self) -> OutputDifference:
        return OutputDifference(
            absolute=self.absolute.counts, relative=self.relative.counts, overlap=self.overlap.counts
        )


class ShadowCounts:
    """What became of the requests of a shadow's share since it began in this router."""

    def __init__(self, model: str, generation: int, seed: int) -> None:
        self._model = model
        self._generation = generation
        self._seed = seed
        self.chosen = 0
        self.under_way = 0
        self.failures: Counter[str] = Counter()
        self.dropped: Counter[DropReason] = Counter()
        self._compared = 0
        self._mismatched = 0
        self._mismatches: Counter[Mismatch] = Counter()
        self._outputs: dict[str, _OutputCounts] = {}
        self._latency = Histogram(LATENCY_SECONDS)
        self._shadow_latency = Histogram(LATENCY_SECONDS)

    def note_compared(self, found: AnswerDifference, *, seconds: float, shadow_seconds: float) -> None:
        """Count two compared answers, with the time that each took."""
        self._compared += 1
        self._mismatched += bool(found.mismatches)
        self._mismatches.update(found.mismatches)
        self._latency.observe(seconds)
        self._shadow_latency.observe(shadow_seconds)
        for name, difference in found.outputs.items():
            self._output(name).note(difference)

    def _output(self, name: str) -> _OutputCounts:
        known = name if name in self._outputs or len(self._outputs) < MOST_OUTPUTS else OTHER_OUTPUTS
        return self._outputs.setdefault(known, _OutputCounts())

    @property
    def comparison(self) -> ShadowComparison:
        """The report to the agent."""
        return ShadowComparison(
            model=self._model,
            generation=self._generation,
            seed=self._seed,
            chosen=self.chosen,
            compared=self._compared,
            mismatched=self._mismatched,
            mismatches=dict(self._mismatches),
            failures=dict(self.failures),
            dropped=dict(self.dropped),
            under_way=self.under_way,
            outputs={name: counts.difference for name, counts in self._outputs.items()},
            latency=self._latency.counts,
            shadow_latency=self._shadow_latency.counts,
        )

    def add_to(self, families: "ShadowFamilies", region: str) -> None:
        """Add its series to the families of a scrape."""
        labels = (self._model, str(self._generation), region)
        outcomes: Counter[str] = Counter({"compared": self._compared - self._mismatched})
        outcomes["mismatched"] = self._mismatched
        outcomes["failed"] = self.failures.total()
        outcomes.update({f"dropped_{reason}": count for reason, count in self.dropped.items()})
        for outcome, count in outcomes.items():
            families.requests.add_metric((*labels, outcome), count)
        families.in_flight.add_metric(labels, self.under_way)
        self._latency.add_to(families.duration, (*labels, "client"))
        self._shadow_latency.add_to(families.duration, (*labels, "shadow"))
        for name, counts in self._outputs.items():
            for kind, histogram in (("absolute", counts.absolute), ("relative", counts.relative)):
                families.difference.add_metric((*labels, name, kind), _decades(histogram), None)
            if counts.overlap.count:
                families.overlap.add_metric((*labels, name), _cumulative(counts.overlap, OVERLAP_BOUNDS), None)


class ShadowFamilies:
    """The metrics of all shadows of a router, built for each scrape."""

    def __init__(self) -> None:
        self.requests = CounterMetricFamily(
            "ipnext_shadow_requests", "Requests of a shadow's share, by outcome.", labels=(*_LABELS, "outcome")
        )
        self.in_flight = GaugeMetricFamily(
            "ipnext_shadow_requests_in_flight", "Mirrored requests that wait or are under way.", labels=_LABELS
        )
        self.duration = HistogramMetricFamily(
            "ipnext_shadow_duration_seconds",
            "Time to the client's answer and to the shadow's, of compared requests.",
            labels=(*_LABELS, "answer"),
        )
        self.difference = HistogramMetricFamily(
            "ipnext_shadow_difference",
            "Largest difference of an output's elements between the two answers.",
            labels=(*_LABELS, "output", "kind"),
        )
        self.overlap = HistogramMetricFamily(
            "ipnext_shadow_overlap", "Share of common rows among the best.", labels=(*_LABELS, "output")
        )

    def __iter__(self) -> Iterator[Metric]:
        """Yield the families."""
        yield from (self.requests, self.in_flight, self.duration, self.difference, self.overlap)


def _decades(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the cumulative counts at each power of ten."""
    return _cumulative(histogram, DIFFERENCE_BOUNDS[::_DECADE])


def _cumulative(histogram: Histogram, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    counts = histogram.counts
    found = [
        (repr(bound), float(sum(n for bucket, n in counts.items() if bucket <= _bucket(histogram, bound))))
        for bound in bounds
    ]
    return [*found, ("+Inf", float(histogram.count))]


def _bucket(histogram: Histogram, bound: float) -> int:
    return bisect_left(histogram.bounds, bound)
