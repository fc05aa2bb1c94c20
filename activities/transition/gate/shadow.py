"""The verdict on a shadow: whether its answers are near enough to those that clients got, by a manifest's limits. Pure.

The two answers of a comparison are to the same request, so that no mix of users or of times has to be taken out, as
`verdict` must. Figures count as they are.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ipnext.model.gate.distributions import quantile
from ipnext.model.gate.shadow import (
    DIFFERENCE_BOUNDS,
    OVERLAP_BOUNDS,
    OutputDifference,
    ShadowComparison,
    ShadowLimits,
    merge_comparisons,
)
from ipnext.model.gate.sketch import LATENCY_SECONDS

Outcome = Literal["passed", "refused", "too_few"]
_QUANTILES = (("p50", 0.5), ("p99", 0.99))


@dataclass(frozen=True)
class ShadowVerdict:
    """Verdict on a shadow, with its figures or each exceeded limit in words.

    `too_few`: nothing is wrong so far, and more requests have to be compared.
    """

    outcome: Outcome
    message: str


def judge_shadow(limits: ShadowLimits, comparisons: Iterable[ShadowComparison]) -> ShadowVerdict:
    """Judge the comparisons of one shadow, those of all routers and regions together.

    ValueError if they are of several shadows: another seed begins another comparison.
    """
    merged = merge_comparisons(comparisons)
    if len(merged) > 1:
        msg = f"comparisons of several shadows: {', '.join(map(str, (one.key for one in merged)))}"
        raise ValueError(msg)
    if not merged:
        return ShadowVerdict("too_few", f"no region compares yet; {limits.min_requests} requests are needed")
    answers = _Comparison(limits, merged[0])
    if answers.requests < limits.min_requests:
        certain = tuple(answers.errors(at_least_of=limits.min_requests))
        if certain:
            return ShadowVerdict("refused", "; ".join(certain))
        few = f"{answers.text}: too few to judge, {limits.min_requests} are needed"
        return ShadowVerdict("too_few", few)
    exceeded = tuple(answers.exceeded())
    return ShadowVerdict("refused" if exceeded else "passed", "; ".join(exceeded) or answers.text)


class _Comparison:
    """The figures of one comparison, and their description in words."""

    def __init__(self, limits: ShadowLimits, found: ShadowComparison) -> None:
        self._limits = limits
        self._found = found
        self.requests = found.compared + found.failed

    @property
    def text(self) -> str:
        """All figures."""
        found = self._found
        parts = [f"{found.compared} answers of generation {found.generation} compared, {self._bad_text}"]
        if found.dropped:
            parts.append(f"{sum(found.dropped.values())} requests not mirrored ({_counts(found.dropped.items())})")
        if found.compared:
            parts += [
                f"{name} {_ms(_latency(found.shadow_latency, share))} against {_ms(_latency(found.latency, share))}"
                for name, share in _QUANTILES
            ]
        parts += [self._output_text(name, difference) for name, difference in sorted(found.outputs.items())]
        return ", ".join(parts)

    def exceeded(self) -> Iterator[str]:
        """Yield each exceeded limit in words."""
        yield from self.errors()
        for name, difference in sorted(self._found.outputs.items()):
            yield from self._different(name, difference)
            yield from self._reordered(name, difference)
        yield from self._slower()

    def errors(self, *, at_least_of: int = 0) -> Iterator[str]:
        """Yield the exceeded rate of errors; with `at_least_of`, as if all requests missing from so many were good."""
        bad, requests = self._found.failed + self._found.mismatched, max(self.requests, at_least_of)
        allowed = self._limits.max_errors
        if requests and bad / requests > allowed:
            yield f"{self._bad_text} of {requests} requests: {bad / requests:.1%}, allowed {allowed:.1%}"

    @property
    def _bad_text(self) -> str:
        found = self._found
        failed = f"{found.failed} failed" + (f" ({_counts(found.failures.items())})" if found.failures else "")
        kinds = f" ({_counts(found.mismatches.items())})" if found.mismatches else ""
        return f"{failed} and {found.mismatched} mismatched{kinds}"

    def _different(self, name: str, difference: OutputDifference) -> Iterator[str]:
        limit = self._limits.max_difference
        if limit is None:
            return
        for kind, counts, allowed in (
            ("absolute", difference.absolute, limit.absolute),
            ("relative", difference.relative, limit.relative),
        ):
            size = quantile(counts, DIFFERENCE_BOUNDS, limit.quantile)
            if allowed is not None and size > allowed:
                answers = sum(counts.values())
                yield (
                    f"{kind} difference of output {name!r} {_size(size)} at quantile {limit.quantile:g}, "
                    f"allowed {allowed:g}; {answers} answers"
                )

    def _reordered(self, name: str, difference: OutputDifference) -> Iterator[str]:
        least = self._limits.min_overlap
        if least is not None and difference.overlap and (mean := _mean_overlap(difference.overlap)) < least:
            answers = sum(difference.overlap.values())
            yield f"{mean:.1%} of the best rows of output {name!r} in common, needed {least:.1%}; {answers} answers"

    def _slower(self) -> Iterator[str]:
        ratios = self._limits.max_latency_ratio
        for (name, share), allowed in zip(_QUANTILES, (ratios.p50, ratios.p99), strict=True):
            shadow, real = (_latency(counts, share) for counts in (self._found.shadow_latency, self._found.latency))
            if allowed is not None and real and shadow > allowed * real:
                yield (
                    f"{name} {_ms(shadow)} against {_ms(real)} of the clients' answers: ratio {shadow / real:.2f}, "
                    f"allowed {allowed:g}; {self._found.compared} answers"
                )

    def _output_text(self, name: str, difference: OutputDifference) -> str:
        share = self._limits.max_difference.quantile if self._limits.max_difference is not None else 0.99
        absolute, relative = (
            quantile(counts, DIFFERENCE_BOUNDS, share) for counts in (difference.absolute, difference.relative)
        )
        text = f"output {name!r} differs by {_size(absolute)}, relative {_size(relative)}, at quantile {share:g}"
        return f"{text}, overlap {_mean_overlap(difference.overlap):.1%}" if difference.overlap else text


def _mean_overlap(counts: Mapping[int, int]) -> float:
    """Return the mean of the buckets' upper bounds, which all overlaps are."""
    return sum(OVERLAP_BOUNDS[bucket] * count for bucket, count in counts.items()) / sum(counts.values())


def _size(difference: float) -> str:
    if difference <= DIFFERENCE_BOUNDS[0]:
        return "nothing"
    return f"{difference:.3g}" if difference < DIFFERENCE_BOUNDS[-1] else "a number that is not finite, or as much"


def _latency(counts: Mapping[int, int], share: float) -> float:
    return quantile(counts, LATENCY_SECONDS, share)


def _counts(found: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(found))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
