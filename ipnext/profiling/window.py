"""The figures of one concurrency between two moments. It has no clock: callers pass the times."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ipnext.model.registry.profile import LoadStep


@dataclass
class MeasuringWindow:
    """Counts arrivals while it is open, and latencies of requests that were sent while it was open."""

    concurrency: int
    opened: float | None = None
    closed: float | None = None
    tokens: int = 0
    requests: int = 0
    prompt_tokens: list[int] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    others: float = 0.0
    cpu_seconds: float = 0.0

    def open(self, now: float) -> None:
        """Begin to count."""
        self.opened = now

    def close(self, now: float) -> None:
        """Stop counting, except first tokens of requests that were sent before."""
        self.closed = now

    def first(self, sent: float, at: float, tokens: int) -> None:
        """Record the first piece of an answer.

        It counts for any request that was sent while the window was open, however late it comes.
        """
        if self._within(sent):
            self.ttft.append(at - sent)
        if self._within(at):
            self.tokens += tokens

    def next(self, before: float, at: float, tokens: int) -> None:
        """Record a later piece, of so many more tokens."""
        if self._within(at):
            self.tokens += tokens
            self.gaps.append(at - before)

    def note_end(self, at: float, prompt_tokens: int | None) -> None:
        """Record the end of an answer."""
        if self._within(at):
            self.requests += 1
        if prompt_tokens is not None:
            self.prompt_tokens.append(prompt_tokens)

    def saw_load(self, load: float | None, own: int) -> None:
        """Record the engine's requests of other clients: its load without `own`."""
        self.others = max(self.others, (load or 0.0) - own)

    def step(self, *, output_tokens: int) -> LoadStep:
        """Return the figures. `output_tokens` are those of a request; 0 if tokens are those of prompts."""
        opened, closed = self.opened or 0.0, self.closed or 0.0
        seconds = max(closed - opened, 1e-9)
        a_second = self.tokens / seconds
        return LoadStep(
            concurrency=self.concurrency,
            requests=len(self.ttft),
            seconds=seconds,
            tokens_per_second=a_second,
            requests_per_second=a_second / output_tokens if output_tokens else self.requests / seconds,
            ttft_p50_ms=1000 * percentile(self.ttft, 0.5),
            ttft_p99_ms=1000 * percentile(self.ttft, 0.99),
            itl_p50_ms=1000 * percentile(self.gaps, 0.5) if self.gaps else None,
            itl_p99_ms=1000 * percentile(self.gaps, 0.99) if self.gaps else None,
            others_running=self.others,
            client_busy=self.cpu_seconds / seconds,
        )

    def _within(self, at: float) -> bool:
        return self.opened is not None and self.opened <= at and (self.closed is None or at <= self.closed)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all do not exceed; 0 if there are none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
