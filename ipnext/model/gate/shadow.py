"""The comparison of a shadow's answers with those that clients got, and the limits on it.

Routers count in fixed buckets, so that the counts of several routers and regions add up. A count has no number of a
request or of an answer in it, only the size of differences between two answers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeVar

from pydantic import Field, model_validator

from ipnext.model.value import Name, Value, WrittenValue

Kind = TypeVar("Kind", bound=str | int)

DIFFERENCE_BOUNDS: Final = tuple(10.0 ** (step / 10) for step in range(-90, 61))
"""Upper bounds of the buckets of a difference: 1e-9 to a million, each 26 % above the one before. The first bucket has
equal answers, too; the one after the last has differences of numbers that are not finite."""
OVERLAP_BOUNDS: Final = tuple(step / 10 for step in range(11))
"""Upper bounds of the buckets of an overlap, in tenths."""
MOST_OUTPUTS: Final = 16
"""Outputs that are counted apart; all further ones together under OTHER_OUTPUTS."""
OTHER_OUTPUTS: Final = "(others)"
SHADOW_REQUESTS: Final = 100
"""Compared answers that a verdict needs by default."""
MOST_SHADOW_REQUESTS: Final = 10**9
"""Most that a verdict may need."""

DropReason = Literal["queue", "memory", "size", "no_host", "unreadable"]
"""Why a chosen request was not mirrored: too many wait, their bodies take too much memory, its own bodies are too
large, a part of the shadow has no host, or the client's own answer cannot be decoded."""
Mismatch = Literal["name", "datatype", "shape", "text", "finite"]
"""How two answers differ in more than their numbers. `finite`: the shadow has NaN or infinity in place of a number."""


class OutputDifference(Value):
    """Differences of one output over the compared answers."""

    absolute: Mapping[int, int] = Field(default_factory=dict)
    """Bucket of DIFFERENCE_BOUNDS -> answers with that largest absolute difference of an element."""
    relative: Mapping[int, int] = Field(default_factory=dict)
    """The same for the largest difference divided by the larger of both magnitudes, at most 2."""
    overlap: Mapping[int, int] = Field(default_factory=dict)
    """Bucket of OVERLAP_BOUNDS -> answers with that share of common rows among the k best; of outputs that are scores
    of rows."""


class ShadowComparison(Value):
    """A router's comparison of one shadow with the generations that answer, since the shadow began there.

    Comparisons of the same model, generation and seed add up.
    """

    model: Name
    generation: int
    seed: int = 0
    """That of the shadow: another one begins another comparison."""
    chosen: int = Field(default=0, ge=0)
    """Successful predictions in the shadow's share."""
    compared: int = Field(default=0, ge=0)
    """Those of them whose two answers were compared."""
    mismatched: int = Field(default=0, ge=0)
    """Compared answers with a mismatch."""
    mismatches: Mapping[Mismatch, int] = Field(default_factory=dict)
    failures: Mapping[str, int] = Field(default_factory=dict)
    """Code of an error of `ipnext.errors` -> mirrored requests that the shadow failed so."""
    dropped: Mapping[DropReason, int] = Field(default_factory=dict)
    under_way: int = Field(default=0, ge=0)
    """Requests that wait, or that the shadow answers now."""
    outputs: Mapping[str, OutputDifference] = Field(default_factory=dict)
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Bucket of `ipnext.model.gate.sketch.LATENCY_SECONDS` -> compared requests, by the time of the client's answer."""
    shadow_latency: Mapping[int, int] = Field(default_factory=dict)
    """The same requests by the time of the shadow's answer."""

    @property
    def key(self) -> tuple[str, int, int]:
        """Model, generation and seed."""
        return self.model, self.generation, self.seed

    @property
    def failed(self) -> int:
        """Mirrored requests that the shadow failed."""
        return sum(self.failures.values())


def merge_comparisons(found: Iterable[ShadowComparison]) -> tuple[ShadowComparison, ...]:
    """Return one comparison for each model, generation and seed, ordered by these."""
    groups: dict[tuple[str, int, int], list[ShadowComparison]] = {}
    for one in found:
        groups.setdefault(one.key, []).append(one)
    return tuple(_merge(groups[key]) for key in sorted(groups))


def _merge(group: list[ShadowComparison]) -> ShadowComparison:
    first, *others = group
    if not others:
        return first
    numbers = {
        name: sum(getattr(one, name) for one in group) for name in ("chosen", "compared", "mismatched", "under_way")
    }
    counts = {
        name: _add(getattr(one, name) for one in group)
        for name in ("mismatches", "failures", "dropped", "latency", "shadow_latency")
    }
    return first.model_copy(update={**numbers, **counts, "outputs": _merge_outputs(group)})


def _merge_outputs(group: Iterable[ShadowComparison]) -> dict[str, OutputDifference]:
    outputs: dict[str, list[OutputDifference]] = {}
    for one in group:
        for name, difference in one.outputs.items():
            outputs.setdefault(name, []).append(difference)
    return {
        name: OutputDifference(
            absolute=_add(one.absolute for one in found),
            relative=_add(one.relative for one in found),
            overlap=_add(one.overlap for one in found),
        )
        for name, found in outputs.items()
    }


def _add(counts: Iterable[Mapping[Kind, int]]) -> dict[Kind, int]:
    total: Counter[Kind] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


class DifferenceLimit(WrittenValue):
    """The largest difference of an output that a fraction of answers may have."""

    quantile: float = Field(default=0.99, gt=0, le=1)
    """Fraction of answers that have to keep the limit; 1: all."""
    absolute: float | None = Field(default=None, ge=DIFFERENCE_BOUNDS[0], lt=DIFFERENCE_BOUNDS[-1])
    """Of an output's numbers."""
    relative: float | None = Field(default=None, ge=DIFFERENCE_BOUNDS[0], le=2)
    """Of the larger of both magnitudes."""

    @model_validator(mode="after")
    def _limits_something(self) -> "DifferenceLimit":
        if self.absolute is None and self.relative is None:
            msg = "give `absolute`, `relative` or both"
            raise ValueError(msg)
        return self


class LatencyRatios(WrittenValue):
    """Latency of the shadow divided by that of the clients' answers to the same requests."""

    p50: float | None = Field(default=None, gt=0)
    p99: float | None = Field(default=None, gt=0)


class ShadowLimits(WrittenValue):
    """Limits on a shadow's answers. What is left out is not judged, except errors."""

    min_requests: int = Field(default=SHADOW_REQUESTS, ge=1, le=MOST_SHADOW_REQUESTS)
    """Mirrored requests, answered or failed, that a verdict needs."""
    max_difference: DifferenceLimit | None = None
    min_overlap: float | None = Field(default=None, gt=0, le=1)
    """Mean share of common rows among the k best of each output that scores rows."""
    max_latency_ratio: LatencyRatios = LatencyRatios()
    max_errors: float = Field(default=0.01, ge=0, le=1)
    """Fraction of mirrored requests that the shadow may fail, or answer with other outputs, datatypes, shapes or
    texts."""
