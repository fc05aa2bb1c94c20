"""Evidence of a gate that no client can make: bad answers of the new generation beyond those of the former one. Pure.

A gateway draws the generation of each request by weight. So a request that any generation answers badly comes to the
new one with a known probability, whatever its client does; only a surplus beyond that is the generation's own. Why:
docs/decisions/0072.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.gate.comparison import Pair
from ipnext.model.gate.distributions import UNLIKELY, at_least, chance
from ipnext.model.gate.gate import RegionTraffic

Shares = Mapping[str, Sequence[RouteShare]]
"""Region of a gateway -> its weights."""
Measure = Callable[[RegionTraffic], float]


@dataclass(frozen=True)
class Stratum:
    """Counts of requests that came to the new generation with one probability `weight`, else to the former one."""

    new: tuple[RegionTraffic, ...]
    old: tuple[RegionTraffic, ...]
    weight: float


@dataclass(frozen=True)
class Surplus:
    """Bad answers of the new generation beyond its part of all bad answers."""

    answers: float
    """Answers of the new generation that can be compared."""
    size: float
    chance: float
    """How likely chance makes as many."""

    def exceeds(self, allowed: float, *, early: bool, at_least_of: float = 0) -> bool:
        """Return whether the surplus is a larger fraction of the answers than `allowed`.

        `at_least_of`: of so many answers, if those are more. `early`: it has to be that almost certainly.
        """
        count = max(self.answers, at_least_of)
        if count <= 0 or self.size <= 0:
            return False
        return (at_least(self.size, count) if early else self.size / count) > allowed

    @property
    def is_sure(self) -> bool:
        """Whether chance is no explanation."""
        return self.chance <= UNLIKELY


def stratify(pairs: Iterable[Pair], shares: Sequence[Shares], new: int, former: int | None) -> tuple[Stratum, ...]:
    """Return the counts by gateway, without those of gateways that choose only one of both generations.

    `shares`: all weights that a gateway may have had; the largest counts. If a router restarted, and lost counts, the
    counts are those by gateway within each region, which lost those of both generations.
    """
    pairs = [pair for pair in pairs if pair.new.gateway is not None]
    within = any(pair.restarted for pair in pairs)
    grouped: dict[tuple[str, str | None], list[Pair]] = {}
    for pair in pairs:
        grouped.setdefault((pair.new.gateway or "", pair.new.region if within else None), []).append(pair)
    found = []
    for (gateway, region), group in sorted(grouped.items(), key=lambda item: (item[0][0], item[0][1] or "")):
        stratum = Stratum(tuple(pair.new for pair in group), tuple(pair.old for pair in group), 0.0)
        weights = [_weight(by.get(gateway, ()), region, new, former) for by in shares]
        weight = max([*weights, _least_weight(stratum)], default=0.0)
        if 0 < weight < 1 and min(weights, default=0.0) > 0:
            found.append(Stratum(stratum.new, stratum.old, weight))
    return tuple(found)


def _weight(shares: Sequence[RouteShare], region: str | None, new: int, former: int | None) -> float:
    """Return the probability of the new generation, given that it is one of both (and answers in `region`)."""
    of = {new: 0.0, former: 0.0}
    for share in shares:
        if share.generation in of and region in {None, share.to}:
            of[share.generation] += share.fraction
    return of[new] / sum(of.values()) if of[new] > 0 else 0.0


def _least_weight(stratum: Stratum) -> float:
    """Return the almost certain minimum of the probability by the requests: weights may be others than those stored."""
    new = sum(item.requests for item in stratum.new)
    return at_least(new, new + sum(item.requests + item.withdrawn + item.under_way for item in stratum.old))


def measure(strata: Sequence[Stratum], bad: Measure, *, unknown: Measure) -> Surplus:
    """Return the surplus of `bad` answers.

    `unknown`: the former generation's requests that may have been bad, had their clients waited. A client that knows
    which generation answers can end the others'. They count as bad for the chance.
    """
    size, sure = 0.0, []
    for stratum in strata:
        new, old = (sum(bad(item) for item in side) for side in (stratum.new, stratum.old))
        size += new - old * stratum.weight / (1 - stratum.weight)
        sure.append((new, old + sum(unknown(item) for item in stratum.old), stratum.weight))
    total = sum(item.requests for stratum in strata for item in stratum.new)
    return Surplus(answers=total, size=size, chance=chance(sure) if sure else 1.0)


def unanswered(item: RegionTraffic) -> float:
    """Count requests that may have failed at once: their clients did not wait, or still do, or they failed later."""
    return item.withdrawn + item.under_way + item.broken


def unfinished(item: RegionTraffic) -> float:
    """Count requests whose answers did not come to their end, for whatever cause."""
    return item.withdrawn + item.under_way + item.left + item.failed
