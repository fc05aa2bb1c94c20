"""Gate of a wave: whether a new generation answers well enough, by its counts against the manifest's limits. Pure.

Errors and non-finite answers count only as far as the former generation does better on the same requests
(`activities.transition.gate.evidence`): else clients could fail a gate by what they send. Before the bake time ends, a
limit trips only if the figure is beyond it almost certainly; at its end the figures count as they are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from activities.transition.gate.evidence import Measure, Shares, Surplus, measure, stratify, unanswered, unfinished
from ipnext.model.gate.comparison import Pair, latencies, predictions
from ipnext.model.gate.distributions import (
    Counts,
    SampleDistance,
    above,
    at_least,
    mean_shift,
    quantile,
    stability_index,
)
from ipnext.model.gate.gate import GateSpec, RegionTraffic
from ipnext.model.gate.sketch import LATENCY_SECONDS

EARLY_REQUESTS = 20
"""If fewer answers were counted, a wave never ends before its bake time does, and none fails without a comparison."""
AGAIN_SECONDS = 2.0
"""Least time between two evaluations of a gate that waits for answers; longer waits have about MOST_LOOKS
evaluations."""
MOST_LOOKS = 30
_P99 = 0.99
_P50 = 0.5


@dataclass(frozen=True)
class GateInput:
    """Inputs of a gate: limits, the errors that the rollout allows, and the progress of the wave."""

    gate: GateSpec
    max_error_rate: float
    early: bool = False
    """True while the bake time lasts."""
    wait_left: float = 0.0
    """Seconds until too few answers become final."""
    generation: int = 0
    """The new one."""
    former: int | None = None
    """The generation to compare with; None if none answers beside the new one in this wave."""
    shares: tuple[Shares, ...] = ()
    """All weights that gateways may have had since the wave's traffic moved."""

    @property
    def compares(self) -> bool:
        """True if there is a generation to compare with, and a limit to compare by."""
        return self.former is not None and self.gate.compares

    @property
    def error_rate(self) -> float:
        """The allowed fraction of errors and non-finite answers."""
        return self.max_error_rate if self.gate.max_error_rate is None else self.gate.max_error_rate


@dataclass(frozen=True)
class GateVerdict:
    """Verdict of a gate.

    If it is `ok` with `again_seconds` above 0, nothing is wrong so far: evaluate again after that time.
    """

    ok: bool
    message: str
    again_seconds: float = 0.0


def errors_only(asked: GateInput) -> GateInput:
    """Return inputs for a rollback: of the limits only those on errors, and no wait for answers."""
    gate = asked.gate
    limits = GateSpec(max_error_rate=gate.max_error_rate, max_non_finite_rate=gate.max_non_finite_rate)
    return replace(asked, gate=limits, wait_left=0.0)


def judge(asked: GateInput, pairs: Sequence[Pair]) -> GateVerdict:
    """Judge the counts of the new generation, and of the former one beside it."""
    answers = _Answers(asked, pairs)
    needed = asked.gate.needed_answers
    if asked.early:
        trips = tuple(answers.trips()) if answers.requests >= max(needed, EARLY_REQUESTS) else ()
        return GateVerdict(ok=not trips, message="; ".join(trips) or answers.text)
    if answers.fewest < needed:
        return _too_few(asked, answers)
    trips = tuple(answers.trips())
    if not trips and answers.doubts and asked.wait_left > 0:
        return _wait(asked, answers)
    return GateVerdict(ok=not trips, message="; ".join(trips or (answers.text, *answers.doubts, *answers.uncompared)))


def _wait(asked: GateInput, answers: "_Answers") -> GateVerdict:
    pause = max(AGAIN_SECONDS, asked.gate.wait_seconds / MOST_LOOKS)
    message = "; ".join((answers.text, *answers.doubts))
    return GateVerdict(ok=True, message=message, again_seconds=min(asked.wait_left, pause))


def _too_few(asked: GateInput, answers: "_Answers") -> GateVerdict:
    """Fail at once if the errors are too many whatever still arrives.

    Otherwise wait for more answers while there is time.
    """
    certain = tuple(answers.errors(at_least_of=asked.gate.needed_answers))
    if certain:
        return GateVerdict(ok=False, message="; ".join(certain))
    if asked.wait_left > 0:
        return _wait(asked, answers)
    few = f"{answers.text}: too few to judge, {asked.gate.needed_answers} are needed"
    return GateVerdict(ok=asked.gate.on_too_few == "pass", message=f"{few}; onTooFew is {asked.gate.on_too_few}")


def _failed(item: RegionTraffic) -> float:
    return item.failed


def _broken(item: RegionTraffic) -> float:
    return item.broken


def _non_finite(item: RegionTraffic) -> float:
    return item.non_finite


class _Answers:
    """The figures of one window, and their description in words."""

    def __init__(self, asked: GateInput, pairs: Sequence[Pair]) -> None:
        self._asked = asked
        self._gate = asked.gate
        self._strata = stratify(pairs, asked.shares, asked.generation, asked.former)
        self.requests = sum(pair.new.requests for pair in pairs)
        self._errors = sum(pair.new.errors for pair in pairs)
        self._non_finite = sum(pair.new.non_finite for pair in pairs)
        self._bad = sum(pair.new.failed + pair.new.broken for pair in pairs)
        self._former_requests = sum(pair.old.requests for pair in pairs)
        self._latency = _sum_histograms(pair.new.latency for pair in pairs)
        self._first_token = _sum_histograms(pair.new.first_token for pair in pairs)
        self._token = _sum_histograms(pair.new.token for pair in pairs)
        self._latencies = latencies(pairs) if asked.compares else None
        self._predictions = predictions(pairs) if asked.compares else {}
        self.doubts: list[str] = []
        """Figures beyond a limit that chance may explain, in words, as the next one; known once `trips` has run."""
        self.uncompared: list[str] = []
        """Those that the requests may explain, because no generation answers beside the new one."""

    @property
    def fewest(self) -> int:
        """Answers of whichever compared generation has fewer."""
        return min(self.requests, self._former_requests) if self._asked.compares else self.requests

    @property
    def text(self) -> str:
        """Summary of a window without a fault."""
        parts = [f"{self.requests} answers, {self._errors} errors"]
        if self._non_finite:
            parts.append(f"{self._non_finite} non-finite answers")
        if self._latency:
            parts.append(f"p50 {_ms(_quantile(self._latency, _P50))}, p99 {_ms(_quantile(self._latency, _P99))}")
        if self._first_token:
            parts.append(f"first token p50 {_ms(_quantile(self._first_token, _P50))}")
        parts += [words for words, _ in self._comparisons()]
        return ", ".join(parts)

    def trips(self) -> Iterator[str]:
        """Yield each exceeded limit in words."""
        yield from self.errors()
        yield from self._slow()
        yield from self._slower()
        yield from (words + limit for words, limit in self._comparisons() if limit)

    def errors(self, *, at_least_of: int = 0) -> Iterator[str]:
        """Yield the exceeded rates.

        With `at_least_of`, assume that so many answers were counted and the missing ones are good. A generation alone
        that has given no good answer does not get them.
        """
        bad = self._bad
        counts = f"{self._errors} errors and {self._non_finite} non-finite answers of {self.requests}"
        limit = self._asked.error_rate
        if self.requests and bad / self.requests > limit:
            text = f"{counts}: {bad / self.requests:.1%}, allowed {limit:.1%}"
            if self._answers_nothing:
                yield f"{text}; no other generation answers the same clients, and none of them got a good answer"
                return
            failed = self._measure(_failed, unanswered)
            broken = self._measure(_broken, unfinished)
            yield from self._judge(text, limit, failed, broken, at_least_of=at_least_of)
        most = self._gate.max_non_finite_rate
        if most is not None and self.requests and self._non_finite / self.requests > most:
            share = self._non_finite / self.requests
            text = f"{self._non_finite} non-finite answers of {self.requests}: {share:.1%}, allowed {most:.1%}"
            yield from self._judge(text, most, self._measure(_non_finite, unanswered), at_least_of=at_least_of)

    @property
    def _answers_nothing(self) -> bool:
        """Return whether nothing compares, and no request at all was answered well.

        Clients with good requests prevent that, whatever others send.
        """
        alone = not self._strata and not self._former_requests
        return alone and self.requests >= EARLY_REQUESTS and self._bad >= self.requests

    def _judge(self, text: str, allowed: float, *found: Surplus, at_least_of: float = 0) -> Iterator[str]:
        """Yield the words for a figure beyond its limit if the new generation is the cause; else keep it as a doubt."""
        over = [one for one in found if one.exceeds(allowed, early=self._asked.early, at_least_of=at_least_of)]
        if any(one.is_sure for one in over):
            yield text
        elif over:
            self.doubts.append(f"{text}, which chance may make beside generation {self._asked.former}")
        elif not self._strata:
            self.uncompared.append(f"{text}, and no other generation answers the same clients")

    def _measure(self, bad: Measure, unknown: Measure) -> Surplus:
        return measure(self._strata, bad, unknown=unknown)

    def _slow(self) -> Iterator[str]:
        gate = self._gate
        for what, counts, limits in (
            ("", self._latency, gate.max_latency_ms),
            ("first token ", self._first_token, gate.max_first_token_ms),
            ("between tokens ", self._token, gate.max_token_ms),
        ):
            answers = f"{sum(counts.values()) if what else self.requests:g} answers"
            for name, share, limit in (("p50", _P50, limits.p50), ("p99", _P99, limits.p99)):
                if limit is not None and self._is_slow(counts, share, limit / 1000):
                    yield f"{what}{name} {_ms(_quantile(counts, share))}, allowed {limit:g} ms; {answers}"

    def _slower(self) -> Iterator[str]:
        allowed, both = self._gate.max_latency_ratio, self._latencies
        if allowed is None or both is None or not self._enough_of_former:
            return
        new, old = (quantile(counts, LATENCY_SECONDS, _P99) for counts in (both.new, both.old))
        if self._is_slow(both.new, _P99, allowed * old):
            yield (
                f"p99 {_ms(new)} against {_ms(old)} of generation {self._asked.former}: ratio {new / old:.2f}, "
                f"allowed {allowed:g}; {self.requests} answers"
            )

    def _is_slow(self, counts: Counts, share: float, limit: float) -> bool:
        """Return whether the quantile is beyond the limit, whatever the former generation does.

        Both share hosts: a slow new generation makes the former one slow.
        """
        total = sum(counts.values())
        if not total:
            return False
        if self._asked.early:
            return at_least(above(counts, LATENCY_SECONDS, limit), total) > 1 - share
        return quantile(counts, LATENCY_SECONDS, share) > limit

    def _comparisons(self) -> Iterator[tuple[str, str]]:
        """Yield a description of each output's comparison, and the rest of the sentence if a limit is exceeded."""
        gate = self._gate
        for name, both in self._predictions.items():
            if not gate.judges_drift or (gate.outputs and name not in gate.outputs):
                continue
            drift = stability_index(both.new, both.old, noise=both.noise)
            shift = mean_shift(both.new_moments, both.old_moments, noise=both.noise)
            means = f"mean {both.new_moments.mean:.4g} against {both.old_moments.mean:.4g}"
            against = f"of generation {self._asked.former}"
            if gate.max_drift is not None:
                words = f"drift of output {name!r} {drift.size:.2f} ({means} {against})"
                yield words, self._beyond(drift, gate.max_drift)
            if gate.max_mean_shift is not None:
                words = f"mean of output {name!r} shifted by {shift.size:.2f} deviations ({means} {against})"
                yield words, self._beyond(shift, gate.max_mean_shift)

    def _beyond(self, found: SampleDistance, allowed: float) -> str:
        if found.sure <= allowed or not self._enough_of_former:
            return ""
        return f", allowed {allowed:g} beside the {found.chance:.2f} that chance may make; {self.requests} answers"

    @property
    def _enough_of_former(self) -> bool:
        return self._former_requests >= self._gate.needed_answers


def _sum_histograms(parts: Iterable[Mapping[int, int]]) -> dict[int, float]:
    found: dict[int, float] = {}
    for counts in parts:
        for bucket, count in counts.items():
            found[bucket] = found.get(bucket, 0.0) + count
    return found


def _quantile(counts: Counts, share: float) -> float:
    return quantile(counts, LATENCY_SECONDS, share)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
