"""The difference of two distributions by their bucket counts, and the difference that chance explains. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

GROUPS = 10
"""Groups of about equal weight in a population stability index."""
_Z = 3.09
"""Normal quantile of 99.9 %: chance seldom explains more."""

Counts = Mapping[int, float]
"""Bucket -> count; whole or weighted numbers."""


def quantile(counts: Counts, bounds: Sequence[float], share: float) -> float:
    """Return the quantile of the fraction `share`; 0 if there are no values.

    Counts are spread evenly within a bucket; beyond the last bound the result is that bound. Bucket i lies between
    bounds[i-1] (0 for the first) and bounds[i], as in Prometheus' histogram_quantile.
    """
    wanted = share * sum(counts.values())
    below = 0.0
    for bucket in sorted(counts):
        if below + counts[bucket] >= wanted and counts[bucket] > 0:
            low, high = _ends(bucket, bounds)
            return low + (high - low) * (wanted - below) / counts[bucket]
        below += counts[bucket]
    return 0.0


def above(counts: Counts, bounds: Sequence[float], limit: float) -> float:
    """Return the count above `limit`: spread evenly within its bucket, in agreement with `quantile`."""
    found = 0.0
    for bucket, count in counts.items():
        low, high = _ends(bucket, bounds)
        if limit <= low:
            found += count
        elif limit < high:
            found += count * (high - limit) / (high - low)
    return found


def _ends(bucket: int, bounds: Sequence[float]) -> tuple[float, float]:
    high = bounds[min(bucket, len(bounds) - 1)]
    return (bounds[bucket - 1] if bucket else 0.0), high


def at_least(bad: float, count: float) -> float:
    """Return the almost certain minimum of the rate behind `bad` of `count`.

    Lower end of Wilson's interval (1927) at z = 3.09.
    """
    if count <= 0 or bad <= 0:
        return 0.0
    rate, z2 = min(1.0, bad / count), _Z * _Z
    middle = rate + z2 / (2 * count)
    spread = _Z * math.sqrt(rate * (1 - rate) / count + z2 / (4 * count * count))
    return max(0.0, (middle - spread) / (1 + z2 / count))


UNLIKELY: Final = 0.001
"""Probability below which chance does not explain that more bad answers are of the new generation."""
_ODDS: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
"""Alternatives of `chance`: how many times as often a bad answer is of the new generation as the weights say."""


def chance(strata: Iterable[tuple[float, float, float]]) -> float:
    """Return how likely chance has ever made that many bad answers those of the new generation, or more.

    A stratum has the bad answers of the new generation, those of the former one, and the probability with which a
    request comes to the new one of the two. If answers are bad for the requests' sake, the likelihood ratio against any
    other odds is a martingale, and so is the mean of several; the probability that it ever reaches c is at most 1 / c
    (Ville, 1939). So the result holds for any number of looks, and if a client stops as soon as the counts suit it.
    """
    found = tuple(strata)
    logs = [
        sum(new * math.log(odds) - (new + old) * math.log1p(weight * (odds - 1)) for new, old, weight in found)
        for odds in _ODDS
    ]
    largest = max(logs)
    mean = largest + math.log(sum(math.exp(log - largest) for log in logs) / len(logs))
    return math.exp(-mean) if mean > 0 else 1.0


@dataclass(frozen=True, slots=True)
class SampleDistance:
    """A measure of the distance of two samples, and the part of it that chance may explain."""

    size: float
    chance: float

    @property
    def sure(self) -> float:
        """The difference beyond chance."""
        return max(0.0, self.size - self.chance)


def stability_index(new: Counts, old: Counts, *, noise: float) -> SampleDistance:
    """Return the population stability index of two samples: sum of (p - q) ln(p / q) over groups of buckets.

    Groups have about a tenth of both samples together; half a value is added to each, so that none is empty. `noise` is
    1/n + 1/m for n and m independent answers: for samples of one distribution the index is chi-square with one degree
    less than groups, times that (Yurdakul, Statistical Properties of Population Stability Index, 2018).
    """
    groups = _group_buckets(new, old)
    new_total, old_total = (sum(column) + len(groups) / 2 for column in zip(*groups, strict=True))
    size = 0.0
    for in_new, in_old in groups:
        p, q = (in_new + 0.5) / new_total, (in_old + 0.5) / old_total
        size += (p - q) * math.log(p / q)
    return SampleDistance(size, _chi_square(len(groups) - 1) * noise)


def _group_buckets(new: Counts, old: Counts) -> list[tuple[float, float]]:
    """Return counts of both in neighbouring buckets, joined until they reach a tenth.

    A bucket that reaches it alone stays alone.
    """
    new_total, old_total = sum(new.values()) or 1.0, sum(old.values()) or 1.0
    groups: list[tuple[float, float]] = []
    weight = 2.0
    for bucket in sorted(new.keys() | old.keys()):
        found = new.get(bucket, 0.0), old.get(bucket, 0.0)
        more = found[0] / new_total + found[1] / old_total
        if groups and weight < 2 / GROUPS and more < 2 / GROUPS:
            groups[-1] = (groups[-1][0] + found[0], groups[-1][1] + found[1])
            weight += more
        else:
            groups.append(found)
            weight = more
    return groups or [(0.0, 0.0)]


def _chi_square(degrees: int) -> float:
    """Return the 99.9 % quantile, by Wilson and Hilferty (1931)."""
    if degrees < 1:
        return 0.0
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + _Z * math.sqrt(spread)) ** 3


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance."""

    mean: float
    variance: float


def mean_shift(new: Moments, old: Moments, *, noise: float) -> SampleDistance:
    """Return the standardised mean difference: that of the means over the root of the mean variance.

    `noise` is as in `stability_index`. A millionth of the mean is the least deviation, so that constant outputs may
    differ in their last bits.
    """
    least = 1e-6 * max(abs(new.mean), abs(old.mean))
    deviation = math.sqrt((new.variance + old.variance) / 2 + least * least)
    size = abs(new.mean - old.mean) / deviation if deviation else 0.0
    return SampleDistance(size, _Z * math.sqrt(noise))


def moments(parts: Iterable[tuple[float, float, float, float]]) -> Moments:
    """Return the moments of weighted samples: each a weight, a count, a sum and a sum of squares.

    Weights add up to 1.
    """
    found = tuple(parts)
    mean = sum(weight * total / count for weight, count, total, _ in found)
    square = sum(weight * squares / count for weight, count, _, squares in found)
    return Moments(mean, max(0.0, square - mean * mean))
