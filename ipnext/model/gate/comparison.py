"""Two generations side by side: the counts of the regions for both, with the same mix.

Pure; used by gates and by the API.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ipnext.model.gate.distributions import Counts, Moments, moments
from ipnext.model.gate.gate import RegionTraffic
from ipnext.model.gate.sketch import PredictionSketch


@dataclass(frozen=True)
class Pair:
    """One region's counts of both generations over the same time, of requests that one gateway sent to it."""

    new: RegionTraffic
    old: RegionTraffic
    sketched: bool = True
    """Whether their predictions may be compared."""
    restarted: bool = False
    """Whether the region's router restarted in this time: the counts are those since its start."""


_NONE = Moments(0.0, 0.0)


@dataclass(frozen=True)
class ComparedSamples:
    """Two samples over the same mix of regions: the former generation's counts are weighted by the new one's.

    A canary's share may differ between regions, and their users differ too: without weights, a mere change of the mix
    would look like a change of the answers.
    """

    new: Counts = field(default_factory=dict)
    old: Counts = field(default_factory=dict)
    noise: float = 0.0
    """1/n + 1/m of their answers, with the same weights."""
    new_moments: Moments = _NONE
    old_moments: Moments = _NONE


def latencies(pairs: Iterable[Pair]) -> ComparedSamples | None:
    """Return the latency buckets over the regions in which both generations answered.

    None if there is no such region.
    """
    both = [pair for pair in pairs if pair.new.latency and pair.old.latency]
    counts = [(sum(pair.new.latency.values()), sum(pair.old.latency.values())) for pair in both]
    total = sum(new for new, _ in counts)
    if not total:
        return None
    scaled = [(pair.old.latency, new / old) for pair, (new, old) in zip(both, counts, strict=True)]
    return ComparedSamples(new=_sum_weighted((pair.new.latency, 1.0) for pair in both), old=_sum_weighted(scaled))


def predictions(pairs: Iterable[Pair]) -> dict[str, ComparedSamples]:
    """Return the predictions of each output over the same regions as `latencies`.

    If both generations answered in no region, as after a move to other regions, all regions count.
    """
    pairs = [pair for pair in pairs if pair.sketched]
    outputs = sorted({name for pair in pairs for name in pair.new.predictions})
    found = {
        name: _output([(p.new.predictions.get(name), p.old.predictions.get(name)) for p in pairs]) for name in outputs
    }
    return {name: compared for name, compared in found.items() if compared is not None}


def _output(sketches: Sequence[tuple[PredictionSketch | None, PredictionSketch | None]]) -> ComparedSamples | None:
    both = [(new, old) for new, old in sketches if new and old and new.values and old.values]
    if not both:
        both = [(_merge_sketches(new for new, _ in sketches), _merge_sketches(old for _, old in sketches))]
        both = [(new, old) for new, old in both if new.values and old.values]
    total = sum(new.values for new, _ in both)
    if not total:
        return None
    return _compare_weighted(both, total)


def _compare_weighted(both: list[tuple[PredictionSketch, PredictionSketch]], total: int) -> ComparedSamples:
    weights = [new.values / total for new, _ in both]
    answers = sum(new.answers for new, _ in both)
    noise = sum(weight * weight / old.answers for weight, (_, old) in zip(weights, both, strict=True))
    olds = sum(old.values for _, old in both)
    scaled = [(old.bins, weight * olds / old.values) for weight, (_, old) in zip(weights, both, strict=True)]
    return ComparedSamples(
        new=_sum_weighted((new.bins, 1.0) for new, _ in both),
        old=_sum_weighted(scaled),
        noise=1 / answers + noise,
        new_moments=moments((w, new.values, new.total, new.squares) for w, (new, _) in zip(weights, both, strict=True)),
        old_moments=moments((w, old.values, old.total, old.squares) for w, (_, old) in zip(weights, both, strict=True)),
    )


def _merge_sketches(sketches: Iterable[PredictionSketch | None]) -> PredictionSketch:
    """Return one sketch of the counts of several regions."""
    found = [sketch for sketch in sketches if sketch is not None]
    bins: Counter[int] = Counter()
    for sketch in found:
        bins.update(sketch.bins)
    return PredictionSketch(
        answers=sum(sketch.answers for sketch in found),
        values=sum(sketch.values for sketch in found),
        total=sum(sketch.total for sketch in found),
        squares=sum(sketch.squares for sketch in found),
        bins=dict(bins),
    )


def _sum_weighted(counts: Iterable[tuple[Mapping[int, int], float]]) -> dict[int, float]:
    total: dict[int, float] = {}
    for found, weight in counts:
        for bucket, count in found.items():
            total[bucket] = total.get(bucket, 0.0) + weight * count
    return total
