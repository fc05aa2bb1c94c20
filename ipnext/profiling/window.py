"""The figures of one concurrency: what arrived between two moments. No clock of its own: it is told when things were."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ipnext.model.profile import LoadStep


@dataclass
class Window:
    """Counts what arrives while it is open; latencies of requests that were sent while it was open."""

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
        """From here on it counts."""
        self.opened = now

    def close(self, now: float) -> None:
        """Nothing that arrives later counts, but the first tokens of what was sent before."""
        self.closed = now

    def first(self, sent: float, at: float, tokens: int) -> None:
        """The first piece of an answer: of any request that was sent meanwhile, however late it came."""
        if self._within(sent):
            self.ttft.append(at - sent)
        if self._within(at):
            self.tokens += tokens

    def next(self, before: float, at: float, tokens: int) -> None:
        """A later piece, of so many more tokens."""
        if self._within(at):
            self.tokens += tokens
            self.gaps.append(at - before)

    def ended(self, at: float, prompt_tokens: int | None) -> None:
        """An answer came to its end."""
        if self._within(at):
            self.requests += 1
        if prompt_tokens is not None:
            self.prompt_tokens.append(prompt_tokens)

    def saw_load(self, load: float | None, own: int) -> None:
        """Requests in the engine, beside those that are our own."""
        self.others = max(self.others, (load or 0.0) - own)

    def step(self, *, output_tokens: int) -> LoadStep:
        """The figures. `output_tokens` of a request; 0 where tokens are those of prompts."""
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
    """The smallest value that at least `share` of all do not exceed; 0 of none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
