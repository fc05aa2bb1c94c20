"""Failover of lost regions' traffic to the remaining ones: a pure function of shares and capacity."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ipnext.model.deployment.route_table import RouteShare

Shares = tuple[RouteShare, ...]

NONE = 1e-12
"""A share or a capacity below this counts as none."""


@dataclass(frozen=True)
class Survivor:
    """A region that holds a whole generation; `qps` is the throughput of its slowest part there."""

    region: str
    generation: int
    qps: float


@dataclass(frozen=True)
class Nearness:
    """Reachability: `rtt_ms` by users' region and serving region, and the model's latency tolerance."""

    rtt_ms: Mapping[tuple[str, str], float] = field(default_factory=dict)
    tolerance_ms: float = float("inf")

    def near(self, origin: str, region: str) -> bool:
        """Check whether the region answers the origin's users in time."""
        return self.rtt_ms.get((origin, region), 0.0) <= self.tolerance_ms


def without_regions(
    shares: Mapping[str, Shares],
    lost: Collection[str],
    survivors: Sequence[Survivor],
    *,
    demand: Mapping[str, float],
    nearness: Nearness | None = None,
    serving: int | None = None,
) -> dict[str, Shares]:
    """Return shares by users' region with nothing sent to lost regions.

    The lost shares go to survivors by their free capacity: first to those near enough, then to all; the excess over all
    free capacity goes by their whole capacity. A generation is answered by itself if a survivor holds it, else by the
    one that is `serving`, else by one that receives traffic already, else by the one with the most capacity: a
    generation that users were rolled back from may still be held. `demand` is in requests/s by users' region. The sum
    of each origin's shares stays the same; without any survivor the lost shares are dropped, so that requests fail at
    once instead of hanging.
    """
    if not any(share.to in lost for found in shares.values() for share in found):
        return dict(shares)
    able = [found for found in survivors if found.region not in lost and found.qps > NONE]
    room = _Room(able, shares, lost, demand, serving)
    nearness = nearness or Nearness()
    return {origin: _fail_over(origin, shares[origin], lost, room, nearness) for origin in sorted(shares)}


class _Room:
    """Free capacity of each survivor. Generations of one region share its processes, so all its traffic counts."""

    def __init__(
        self,
        survivors: Sequence[Survivor],
        shares: Mapping[str, Shares],
        lost: Collection[str],
        demand: Mapping[str, float],
        serving: int | None,
    ) -> None:
        self.demand = demand
        self._serving = serving
        self._sent_to = {share.generation for found in shares.values() for share in found if share.fraction > NONE}
        self.survivors = sorted(survivors, key=lambda found: (found.region, found.generation))
        sent: dict[str, float] = {}
        for origin, found in shares.items():
            for share in found:
                if share.to not in lost:
                    sent[share.to] = sent.get(share.to, 0.0) + share.fraction * demand.get(origin, 0.0)
        self._sent = sent

    def free(self, survivor: Survivor) -> float:
        """Return the requests/s that a survivor can still take."""
        return max(0.0, survivor.qps - self._sent.get(survivor.region, 0.0))

    def take(self, survivor: Survivor, qps: float) -> None:
        """Add load to a survivor."""
        self._sent[survivor.region] = self._sent.get(survivor.region, 0.0) + qps

    def holding(self, generation: int) -> list[Survivor]:
        """Return survivors with this generation, else with its replacement."""
        able: dict[int, float] = {}
        for survivor in self.survivors:
            able[survivor.generation] = able.get(survivor.generation, 0.0) + survivor.qps
        if not able:
            return []
        answers = generation if generation in able else max(able, key=lambda number: self._rank(number, able[number]))
        return [survivor for survivor in self.survivors if survivor.generation == answers]

    def _rank(self, generation: int, qps: float) -> tuple[bool, bool, float, int]:
        return generation == self._serving, generation in self._sent_to, qps, generation


def _fail_over(origin: str, shares: Shares, lost: Collection[str], room: _Room, nearness: Nearness) -> Shares:
    kept = {(share.to, share.generation): share.fraction for share in shares if share.to not in lost}
    for share in shares:
        if share.to in lost and share.fraction > 0:
            for survivor, fraction in _spread(origin, share, room, nearness):
                place = (survivor.region, survivor.generation)
                kept[place] = kept.get(place, 0.0) + fraction
    return tuple(
        RouteShare(to=to, generation=generation, fraction=min(1.0, round(fraction, 12)))
        for (to, generation), fraction in sorted(kept.items())
        if fraction > NONE or (to, generation) in {(s.to, s.generation) for s in shares if s.to not in lost}
    )


def _spread(origin: str, share: RouteShare, room: _Room, nearness: Nearness) -> list[tuple[Survivor, float]]:
    """Distribute one lost share over the survivors."""
    able = room.holding(share.generation)
    near = [survivor for survivor in able if nearness.near(origin, survivor.region)]
    left, found = share.fraction, list[tuple[Survivor, float]]()
    for tier in (near, able):
        given = _by_weight(tier, [room.free(survivor) for survivor in tier], _fits(tier, left, origin, room))
        found += _reserve(given, origin, room)
        left -= sum(fraction for _, fraction in given)
        if left <= NONE:
            return found
    rest = near or able
    return found + _reserve(_by_weight(rest, [survivor.qps for survivor in rest], left), origin, room)


def _fits(tier: Sequence[Survivor], left: float, origin: str, room: _Room) -> float:
    """Return the part of a share that a tier has room for."""
    free, qps = sum(room.free(survivor) for survivor in tier), room.demand.get(origin, 0.0)
    if free <= NONE:
        return 0.0
    return left if qps <= 0 else min(left, free / qps)


def _by_weight(tier: Sequence[Survivor], weights: Sequence[float], fraction: float) -> list[tuple[Survivor, float]]:
    total = sum(weights)
    if total <= NONE or fraction <= NONE:
        return []
    return [(survivor, fraction * weight / total) for survivor, weight in zip(tier, weights, strict=True) if weight > 0]


def _reserve(given: Sequence[tuple[Survivor, float]], origin: str, room: _Room) -> list[tuple[Survivor, float]]:
    for survivor, fraction in given:
        room.take(survivor, fraction * room.demand.get(origin, 0.0))
    return list(given)
