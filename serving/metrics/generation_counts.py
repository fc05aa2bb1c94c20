"""A router's counters of one generation. Used by serving.routing.metrics."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from ipnext.model.deployment.traffic import ChosenTraffic, GenerationTraffic
from ipnext.model.gate.sketch import LATENCY_SECONDS
from serving.metrics.prediction_sketches import Predictions
from serving.metrics.tallies import CANCELLED, Answers, Histogram, StreamTally

ENOUGH_ANSWERS: Final = 20
"""Fewest answers for a meaningful median."""


MOST_GATEWAYS: Final = 256
"""Gateways whose choices are counted: a region has far fewer peers."""


class ChosenCounts:
    """Requests whose generation one gateway chose by weight; the other counters include them too."""

    def __init__(self) -> None:
        self.begun = 0
        self.requests = 0
        self.errors = 0
        self.non_finite = 0
        self.failed = 0
        self.broken = 0
        self.withdrawn = 0
        self.left = 0
        self.drop_details()

    def drop_details(self) -> None:
        """Drop the latencies."""
        self.latency = Histogram(LATENCY_SECONDS)
        self.first_token = Histogram(LATENCY_SECONDS)
        self.token = Histogram(LATENCY_SECONDS)

    def note(self, status: int, seconds: float, *, non_finite: bool, streamed: bool) -> None:
        """Count an answer. `streamed`: it has begun before, so that its client knows the generation."""
        if status == CANCELLED and not streamed:
            self.withdrawn += 1
            return
        is_error = status >= 500  # HTTP's server errors
        self.requests += 1
        self.errors += is_error
        self.non_finite += non_finite
        self.failed += (is_error and not streamed) or non_finite
        self.broken += is_error and streamed
        self.left += status == CANCELLED
        if status == 200:  # HTTP's OK
            self.latency.observe(seconds)

    @property
    def traffic(self) -> ChosenTraffic:
        """The counters in the report to the agent."""
        return ChosenTraffic(
            requests=self.requests,
            errors=self.errors,
            non_finite=self.non_finite,
            failed=self.failed,
            broken=self.broken,
            withdrawn=self.withdrawn,
            left=self.left,
            under_way=max(0, self.begun - self.requests - self.withdrawn),
            latency=self.latency.counts,
            first_token=self.first_token.counts,
            token=self.token.counts,
        )


@dataclass(slots=True, eq=False)
class GenerationCounts:
    """The requests of one generation since the router started."""

    answers: dict[int, Answers] = field(default_factory=dict)
    """By HTTP status."""
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_SECONDS))
    """Seconds of the answers with status 200."""
    predictions: Predictions = field(default_factory=Predictions)
    streams: StreamTally | None = None
    """None until an answer was streamed."""
    before: Histogram | None = None
    """Seconds of the nodes before the generator; None until there were any."""
    in_flight: int = 0
    non_finite: int = 0
    retries: int = 0
    substituted: int = 0
    prefills: Counter[str] = field(default_factory=Counter)
    """Disaggregated prefills, by their outcome."""
    chosen: dict[str, ChosenCounts] = field(default_factory=dict)
    """By the region of the gateway that chose."""
    last_at: float = 0.0
    """Unix time of the last answer."""

    def note(self, status: int) -> Answers:
        """Return the counters of answers with this status, and record the time."""
        self.last_at = time.time()
        found = self.answers.get(status)
        if found is None:
            found = self.answers[status] = Answers()
        return found

    def drop_details(self) -> None:
        """Drop latencies and predictions, which take the most memory."""
        self.latency = Histogram(LATENCY_SECONDS)
        self.predictions = Predictions()
        for chosen in self.chosen.values():
            chosen.drop_details()
        if self.streams is not None:
            self.streams.drop_details()

    def chosen_by(self, gateway: str | None) -> ChosenCounts | None:
        """Return the counters of a gateway's choices; None if no gateway chose, or they are too many."""
        if gateway is None or (gateway not in self.chosen and len(self.chosen) >= MOST_GATEWAYS):
            return None
        return self.chosen.setdefault(gateway, ChosenCounts())

    @property
    def usual_seconds(self) -> float | None:
        """Median time to the first byte of a good answer; None if there were too few."""
        times = self.latency if self.streams is None else self.streams.first_token
        return times.median if times.count >= ENOUGH_ANSWERS else None

    def requests(self, *, at_least: int = 0) -> int:
        """Count answers with a status of `at_least` or above."""
        return sum(answers.seconds.count for status, answers in self.answers.items() if status >= at_least)

    def traffic(self, model: str, generation: int) -> GenerationTraffic:
        """Return the report to the agent."""
        return GenerationTraffic(
            model=model,
            generation=generation,
            requests=self.requests(),
            errors=self.requests(at_least=500),
            non_finite=self.non_finite,
            in_flight=self.in_flight,
            latency_seconds_sum=sum(answers.seconds.total for answers in self.answers.values()),
            latency=self.latency.counts,
            first_token=self.streams.first_token.counts if self.streams else {},
            token=self.streams.token.counts if self.streams else {},
            predictions=self.predictions.sketches,
            chosen={gateway: counts.traffic for gateway, counts in self.chosen.items()},
        )
