"""Order in which gateways follow one by one, and number of partial steps, so that no place is overloaded on the way.

A place is the replicas of a part in a region that hold a generation; it carries its load by itself. It may receive its
capacity, or its load before or after all shifts, whichever is the most. Called by the activities that apply route
tables, and by the planner of transitions, which also adds the capacity that is missing even in the best order.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
GatewayPlace = tuple[str, str, int | None]
"""Part, region, generation; None: all of the processes, if one holds several generations."""

PIECES = (2, 4, 8, 16)
"""Partial steps that the shifts are divided into if they can't be made whole, the fewest first."""
MAX_STEPS = 32
"""Total steps of all gateways up to which shifts are divided further: each takes a call to a region, and a write."""
MAX_LOOKED = 5000
"""Sets of moved gateways that are evaluated; up to twelve gateways that is all of them. Then the best step is taken."""
TOLERANCE = 1e-9
"""Of the limit of a place: a smaller excess is rounding."""


class GatewayShift(NamedTuple):
    """Change of one gateway's load on each place, in requests/s."""

    gateway: str
    change: Mapping[GatewayPlace, float]


class GatewayStep(NamedTuple):
    """A gateway has completed this fraction of its shift."""

    gateway: str
    done: float


@dataclass(frozen=True)
class GatewayOrder:
    """The steps in their order, and their overload."""

    steps: tuple[GatewayStep, ...]
    overload: float = 0.0
    """Requests/s beyond the limits, over all places by their price, at the worst moment."""
    lacking: Mapping[GatewayPlace, float] = field(default_factory=dict)
    """Place -> requests/s of additional capacity that would avoid any overload."""


def order_gateways(
    load: Mapping[GatewayPlace, float],
    shifts: Sequence[GatewayShift],
    capacity: Mapping[GatewayPlace, float],
    *,
    max_pieces: int = PIECES[-1],
    price: Mapping[GatewayPlace, float] | None = None,
) -> GatewayOrder:
    """Return the steps with the least overload, in the fewest pieces that achieve it.

    `load` is the load of every place now, by these gateways and all others, `capacity` what it carries, in requests/s.
    `price` is the weight of a request/s of overload at a place, 1 by default. Among equal orders the first by the order
    of `shifts` is taken. Exact for up to twelve gateways, among orders of that many pieces.
    """
    crossing = _Crossing(load, shifts, capacity, price or {})
    straight = tuple(GatewayStep(shift.gateway, 1.0) for n, shift in enumerate(shifts) if n not in crossing.gateways)
    best = crossing.order_shifts(1)
    for pieces in PIECES:
        if best.overload <= 0.0 or pieces > max_pieces or pieces * len(crossing.gateways) > MAX_STEPS:
            break
        best = min(best, crossing.order_shifts(pieces), key=lambda found: found.overload)
    return GatewayOrder((*straight, *best.steps), best.overload, best.lacking)


class _Crossing:
    """P places that some gateways add requests to and others remove them from, so that N shifts may overload them."""

    def __init__(
        self,
        load: Mapping[GatewayPlace, float],
        shifts: Sequence[GatewayShift],
        capacity: Mapping[GatewayPlace, float],
        price: Mapping[GatewayPlace, float],
    ) -> None:
        self.shifts = shifts
        self.places = list(_find_overloaded(load, shifts, capacity))
        change = np.array([[shift.change.get(place, 0.0) for place in self.places] for shift in shifts])
        change = change.reshape(len(shifts), len(self.places))
        self.gateways = [n for n in range(len(shifts)) if change[n].any()]
        self.change: Floats = change[self.gateways]
        self.start: Floats = np.array([load.get(place, 0.0) for place in self.places])
        able = np.array([capacity.get(place, 0.0) for place in self.places])
        self.limit: Floats = np.maximum(np.maximum(able, self.start), self.start + self.change.sum(axis=0))
        self.price: Floats = np.array([price.get(place, 1.0) for place in self.places])
        self.slack: Floats = TOLERANCE * np.maximum(1.0, self.limit)

    def order_shifts(self, pieces: int) -> GatewayOrder:
        """Make all shifts in this many rounds, each by its best order."""
        steps: list[GatewayStep] = []
        worst, lacking, change = 0.0, np.zeros(len(self.places)), self.change / pieces
        for number in range(pieces):
            at = self.start + number * self.change.sum(axis=0) / pieces
            for n in self._find_order(at, change):
                at = at + change[n]
                over = self._over(at)
                worst, lacking = max(worst, float(over @ self.price)), np.maximum(lacking, over)
                steps.append(GatewayStep(self.shifts[self.gateways[n]].gateway, (number + 1) / pieces))
        found = zip(self.places, lacking, strict=True)
        return GatewayOrder(tuple(steps), worst, {place: float(qps) for place, qps in found if qps > 0})

    def _over(self, at: Floats) -> Floats:
        """Return (P,) or (N, P) requests/s beyond the limits of the places."""
        over: Floats = at - self.limit
        return np.where(over > self.slack, over, 0.0)

    def _find_order(self, start: Floats, change: Floats) -> tuple[int, ...]:
        """Return the order with the least overload at its worst moment: expand the best, largest set so far."""
        every, looked = range(len(change)), 0
        heap: list[tuple[float, int, tuple[int, ...]]] = [(0.0, len(change), ())]
        seen: set[frozenset[int]] = set()
        while True:
            worst, left, order = heapq.heappop(heap)
            done = frozenset(order)
            if left == 0 or looked >= MAX_LOOKED:
                return self._greedily(start, change, order)
            if done in seen:
                continue
            seen.add(done)
            looked += 1
            further = [n for n in every if n not in done]
            at = start + change[list(order)].sum(axis=0)
            over = self._over(at + change[further]) @ self.price
            relief = next((k for k, n in enumerate(further) if (change[n] <= 0.0).all()), None)
            for k in range(len(further)) if relief is None else (relief,):
                heapq.heappush(heap, (max(worst, float(over[k])), left - 1, (*order, further[k])))

    def _greedily(self, start: Floats, change: Floats, order: tuple[int, ...]) -> tuple[int, ...]:
        while len(order) < len(change):
            further = [n for n in range(len(change)) if n not in order]
            over = self._over(start + change[list(order)].sum(axis=0) + change[further]) @ self.price
            order = (*order, further[int(np.argmin(over))])
        return order


def _find_overloaded(
    load: Mapping[GatewayPlace, float], shifts: Sequence[GatewayShift], capacity: Mapping[GatewayPlace, float]
) -> Iterator[GatewayPlace]:
    """Yield places that would be overloaded if all shifts that add requests came before those that remove them."""
    for place in dict.fromkeys(place for shift in shifts for place in shift.change):
        changes = [shift.change.get(place, 0.0) for shift in shifts]
        more, before = sum(c for c in changes if c > 0), load.get(place, 0.0)
        limit = max(capacity.get(place, 0.0), before, before + sum(changes))
        if before + more > limit + TOLERANCE * max(1.0, limit):
            yield place
