"""Sequence of route tables when traffic moves, as a pure function of the gateways' shares and the replicas' capacity.

Called by `activities.transition.traffic_shift`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from activities.state.wave_state import route_share
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteShare
from planner.transition.gateway_order import GatewayPlace, GatewayShift, order_gateways

Shares = tuple[RouteShare, ...]


class RouteUpdates(NamedTuple):
    """Tables for the gateways in order, and the most requests/s beyond the carried ones that this causes."""

    tables: tuple[tuple[str, Shares], ...]
    beyond: float = 0.0


def follow_routes(
    now: Mapping[str, Shares],
    then: Mapping[str, Shares],
    deployments: Iterable[Deployment],
    *,
    demand: Mapping[str, float],
    parts: Mapping[int, Sequence[str]],
) -> RouteUpdates:
    """Return (users' region, shares) in the order to apply them, until all in `then` have theirs.

    `now`: the shares of all gateways that answer users, also of those that stay as they are. `demand` is in requests/s
    by users' region; `parts` lists the parts that a request to a generation calls. The order, and if that is not enough
    the number of partial steps, is chosen so that no replicas receive more on the way than they carry, or than at its
    ends. If no order achieves that, the excess is as small as possible.
    """
    moving = [region for region in then if then[region] != now.get(region, ())]
    if len(moving) < 2:
        return RouteUpdates(tuple((region, then[region]) for region in moving))
    load, able = _Load(demand, parts), _able(deployments)
    shifts = [GatewayShift(region, load.change(region, now.get(region, ()), then[region], able)) for region in moving]
    found = order_gateways(load.total(now, able), shifts, able)
    tables = ((gateway, between(now.get(gateway, ()), then[gateway], done)) for gateway, done in found.steps)
    return RouteUpdates(tuple(tables), found.overload)


def between(now: Shares, then: Shares, done: float) -> Shares:
    """Interpolate shares: the fraction `done` of the way from `now` to `then`."""
    if done >= 1.0:
        return then
    fractions: dict[tuple[str, int], float] = defaultdict(float)
    for shares, weight in ((now, 1.0 - done), (then, done)):
        for share in shares:
            fractions[share.to, share.generation] += share.fraction * weight
    found = ((place, round(fraction, 12)) for place, fraction in sorted(fractions.items()))
    return tuple(route_share(*place, fraction) for place, fraction in found if fraction > 0)


class _Load:
    """Load that shares put on places."""

    def __init__(self, demand: Mapping[str, float], parts: Mapping[int, Sequence[str]]) -> None:
        self._demand, self._parts = demand, parts

    def total(self, shares: Mapping[str, Shares], able: Mapping[GatewayPlace, float]) -> dict[GatewayPlace, float]:
        """Return the load of all gateways."""
        total: dict[GatewayPlace, float] = defaultdict(float)
        for region, found in shares.items():
            for place, qps in self._spread_demand(region, found, able):
                total[place] += qps
        return total

    def change(
        self, region: str, now: Shares, then: Shares, able: Mapping[GatewayPlace, float]
    ) -> dict[GatewayPlace, float]:
        """Return the change in load when one gateway moves."""
        change: dict[GatewayPlace, float] = defaultdict(float)
        for shares, sign in ((now, -1.0), (then, 1.0)):
            for place, qps in self._spread_demand(region, shares, able):
                change[place] += sign * qps
        return change

    def _spread_demand(
        self, region: str, shares: Shares, able: Mapping[GatewayPlace, float]
    ) -> Iterator[tuple[GatewayPlace, float]]:
        for share in shares:
            qps = share.fraction * self._demand.get(region, 0.0)
            for part in self._parts.get(share.generation, ()):
                yield (part, share.to, share.generation), qps
                if (part, share.to, None) in able:
                    yield (part, share.to, None), qps


def _able(deployments: Iterable[Deployment]) -> dict[GatewayPlace, float]:
    """Return the replicas' capacity in requests/s, also by process if one holds several generations."""
    able: dict[GatewayPlace, float] = defaultdict(float)
    for found in deployments:
        region, part = found.key.region, found.key.part
        if not found.own:
            able[part, region, None] += found.clients_replicas * found.qps
        for generation in found.generations:
            able[part, region, generation] += found.replicas_of(generation) * found.qps
    return able
