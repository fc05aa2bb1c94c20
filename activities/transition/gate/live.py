"""The verdict on a live replica's latency and throughput against the serving generation's. Pure.

Both replicas got the same requests in turns, in rounds. A machine that is busy for a moment makes one round wrong, not
all: a limit is exceeded only if the median of the rounds' ratios exceeds it, and so do at least AGREEING of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, Final, Literal

from ipnext.model.gate.live import FEWEST_ANSWERS, JudgedRound, LiveLatencySpec, ReplicaTimes, RoundFigures

FEWEST_ROUNDS: Final = 3
"""Rounds with enough answers that a verdict needs."""
AGREEING: Final = 0.8
"""Fraction of the rounds that have to exceed a limit."""
MOST_FAILED: Final = 0.01
"""Fraction of requests that the new generation may fail beyond what the serving one fails."""


@dataclass(frozen=True)
class LiveVerdict:
    """Verdict on a part, with its figures or each exceeded limit in words."""

    outcome: Literal["passed", "refused"]
    message: str
    evidence: dict[str, Any]


def read_figures(times: ReplicaTimes, concurrency: int) -> RoundFigures:
    """Return the figures of one replica; without enough answers those of latency and throughput are 0."""
    enough = len(times.single) >= FEWEST_ANSWERS and len(times.together) >= FEWEST_ANSWERS
    return RoundFigures(
        p50=_quantile(times.single, 0.5) if enough else 0.0,
        p99=_quantile(times.single, 0.99) if enough else 0.0,
        throughput=concurrency / median(times.together) if enough and median(times.together) > 0 else 0.0,
        answered=len(times.single) + concurrency * len(times.together),
        failed=times.failed,
        error=times.error,
    )


def judge_live(limits: LiveLatencySpec, rounds: Sequence[JudgedRound]) -> LiveVerdict:
    """Judge all rounds of one part."""
    judge = _Rounds(limits, rounds)
    broken = tuple(judge.broken())
    message = "; ".join(broken or judge.figures())
    return LiveVerdict("refused" if broken else "passed", message, judge.evidence)


def count_answered(rounds: Iterable[JudgedRound]) -> int:
    """Count the rounds with enough answers of both generations."""
    return sum(_is_answered(each) for each in rounds)


def _is_answered(judged: JudgedRound) -> bool:
    return judged.new.p50 > 0 and judged.serving.p50 > 0


def _quantile(times: Sequence[float], share: float) -> float:
    """Return the smallest time that at least this share of all does not exceed."""
    return sorted(times)[max(0, ceil(share * len(times)) - 1)]


@dataclass(frozen=True)
class _Figure:
    """A figure of both replicas over the rounds, with its limit."""

    name: str
    new: tuple[float, ...]
    serving: tuple[float, ...]
    limit: float | None
    exceeds: Callable[[float, float], bool]
    unit: Callable[[float], str]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(new / old for new, old in zip(self.new, self.serving, strict=True))

    @property
    def is_broken(self) -> bool:
        if self.limit is None or not self.exceeds(median(self.ratios), self.limit):
            return False
        return sum(self.exceeds(ratio, self.limit) for ratio in self.ratios) >= AGREEING * len(self.ratios)

    @property
    def disagrees(self) -> bool:
        """True if the median exceeds the limit, and too few rounds do."""
        return self.limit is not None and self.exceeds(median(self.ratios), self.limit) and not self.is_broken

    @property
    def text(self) -> str:
        ratios = self.ratios
        span = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds"
        new, old = (self.unit(median(values)) for values in (self.new, self.serving))
        return f"{self.name} {new} against {old}: ratio {median(ratios):.2f} ({span})"


class _Rounds:
    """The rounds of one part."""

    def __init__(self, limits: LiveLatencySpec, rounds: Sequence[JudgedRound]) -> None:
        self._rounds = rounds
        self._counted = [each for each in rounds if _is_answered(each)]
        self._figures = tuple(self._read(limits)) if self._counted else ()

    def _read(self, limits: LiveLatencySpec) -> Iterator[_Figure]:
        for name, limit, exceeds, unit in (
            ("p50", limits.max_p50_ratio, _above, _ms),
            ("p99", limits.max_p99_ratio, _above, _ms),
            ("throughput", limits.min_throughput_ratio, _below, _rate),
        ):
            new, old = (tuple(getattr(getattr(each, side), name) for each in self._counted) for side in _SIDES)
            yield _Figure(name, new, old, limit, exceeds, unit)

    def broken(self) -> Iterator[str]:
        """Yield each exceeded limit in words, or why nothing can be judged."""
        failed, asked, error = self._failures("new")
        failed_before, asked_before, _ = self._failures("serving")
        if asked and failed / asked > (failed_before / asked_before if asked_before else 0.0) + MOST_FAILED:
            yield f"{failed} of {asked} requests to the new generation failed ({error})"
        elif len(self._counted) < FEWEST_ROUNDS:
            _, _, cause = self._failures("serving")
            why = f" ({cause or error})" if cause or error else ""
            told = f"{len(self._counted)} of {len(self._rounds)} rounds had enough answers of both generations"
            yield f"the limits can't be judged: {told}, needed: {FEWEST_ROUNDS}{why}"
        else:
            yield from (f"{found.text}, allowed {found.limit:g}" for found in self._figures if found.is_broken)

    def figures(self) -> Iterator[str]:
        """Yield all figures in words."""
        for found in self._figures:
            yield f"{found.text}, allowed {found.limit:g}, but the rounds disagree" if found.disagrees else found.text

    @property
    def evidence(self) -> dict[str, Any]:
        """The ratios of all counted rounds, and the figures of all rounds."""
        ratios = {found.name: [round(ratio, 4) for ratio in found.ratios] for found in self._figures}
        return {"ratios": ratios, "rounds": [each.model_dump(mode="json") for each in self._rounds]}

    def _failures(self, side: str) -> tuple[int, int, str]:
        """Return failed requests, all requests, and the first error."""
        found: list[RoundFigures] = [getattr(each, side) for each in self._rounds]
        failed = sum(one.failed for one in found)
        error = next((one.error for one in found if one.error), "")
        return failed, failed + sum(one.answered for one in found), error


_SIDES: Final = ("new", "serving")


def _above(ratio: float, limit: float) -> bool:
    return ratio > limit


def _below(ratio: float, limit: float) -> bool:
    return ratio < limit


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _rate(rate: float) -> str:
    return f"{rate:.3g}/s"
