"""What a router counts of one generation. Used by serving.router_metrics."""

import time
from collections import Counter
from dataclasses import dataclass, field

from ipnext.model.deployment import GenerationTraffic
from ipnext.model.sketch import LATENCY_SECONDS
from serving.predictions import Predictions
from serving.tallies import Answers, Histogram, StreamTally


@dataclass(slots=True)
class GenerationCounts:
    """The requests of one generation since the router started."""

    answers: dict[int, Answers] = field(default_factory=dict)
    """By HTTP status."""
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_SECONDS))
    """Seconds of the answers with status 200."""
    predictions: Predictions = field(default_factory=Predictions)
    streams: StreamTally | None = None
    """None while no answer came in pieces."""
    before: Histogram | None = None
    """Seconds that the nodes before one that generates took; None while there were none."""
    in_flight: int = 0
    non_finite: int = 0
    retries: int = 0
    substituted: int = 0
    prefills: Counter[str] = field(default_factory=Counter)
    """Prompts read apart from their answers, by what came of it."""
    last_at: float = 0.0
    """Unix time of the last answer."""

    def note(self, status: int) -> Answers:
        """Where an answer of this status is counted."""
        self.last_at = time.time()
        found = self.answers.get(status)
        if found is None:
            found = self.answers[status] = Answers()
        return found

    def let_go(self) -> None:
        """Forget latencies and predictions, which take the most room."""
        self.latency = Histogram(LATENCY_SECONDS)
        self.predictions = Predictions()
        if self.streams is not None:
            self.streams.let_go()

    def requests(self, *, at_least: int = 0) -> int:
        """Answers whose status is `at_least` so high."""
        return sum(answers.seconds.count for status, answers in self.answers.items() if status >= at_least)

    def traffic(self, model: str, generation: int) -> GenerationTraffic:
        """What the agent is told."""
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
        )
