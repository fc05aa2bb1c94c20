"""Temporary replicas while a wave's gateways follow one by one: added with the wave, released after its traffic moved.

Called by `planner.transition.planner` for waves that are feasible before and after. If users of several regions
exchange places, a region may receive more on the way than at either end, even in the best order of the gateways
(`planner.transition.gateway_order`). The missing capacity is added if units are free in that wave; otherwise the wave
stays as it is.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ipnext.model.planning.transition import GenerationReplicas, RouteChange, Wave
from planner.transition.gateway_order import GatewayPlace, GatewayShift, order_gateways
from planner.transition.instance import SLACK, Floats, TransitionInstance
from planner.transition.model_state import ModelState, ReplicaKey, compute_loads, replica_row

PIECES = 8
"""Largest number of partial steps that the gateways are assumed to take; fewer if there are too many gateways."""
ROUNDING = 1e-9
"""A smaller change of a share counts as none."""
NONE_FREE = 1e6
"""Factor on the weight of a unit if none is free."""
Sent = dict[tuple[str, int], float]
"""Region that serves, generation -> share of the users of one region."""
ModelReplicaKey = tuple[str, ReplicaKey]
"""A model and one of its replica sets."""


@dataclass(frozen=True)
class GatewaySurge:
    """The waves with the additions, and their units of each row: wave -> (R,)."""

    waves: tuple[Wave, ...]
    units: Mapping[int, Floats] = field(default_factory=dict)


class _WaveCount(NamedTuple):
    """Replicas of a replica set in a wave that adds some: before it, until its traffic has moved, after it."""

    before: int
    up: int
    after: int


def add_surge(
    instance: TransitionInstance, origin: Mapping[str, ModelState], waves: Sequence[Wave], wave_units: Sequence[Floats]
) -> GatewaySurge:
    """Add temporary replicas to the waves from `origin` on.

    `wave_units` has the (R,) units of all models in each wave while its traffic moves.
    """
    fleet, units = _FleetReplay(instance, origin), dict[int, Floats]()
    added: list[dict[ModelReplicaKey, _WaveCount]] = []
    for number, wave in enumerate(waves):
        former = fleet.scale(wave.scale_up)
        more, taken = fleet.move_traffic(wave.route, instance.limits - wave_units[number])
        up = {key: fleet.count(key) for key in more}
        fleet.scale(wave.scale_down)
        added.append({o: _WaveCount(former.get(o, up[o]), up[o] + n, fleet.count(o)) for o, n in more.items()})
        if more:
            units[number] = taken
    return GatewaySurge(tuple(_rewrite_waves(waves, added)) if units else tuple(waves), units)


def _rewrite_waves(waves: Sequence[Wave], added: Sequence[Mapping[ModelReplicaKey, _WaveCount]]) -> Iterator[Wave]:
    """Yield the waves; replicas that the next wave adds again stay."""
    kept: dict[ModelReplicaKey, int] = {}
    for number, wave in enumerate(waves):
        here, further = added[number], added[number + 1] if number + 1 < len(waves) else {}
        stays = {o: max(c.after, min(c.up, further[o].up)) if o in further else c.after for o, c in here.items()}
        if here:
            scale_up = _replace_counts(wave.scale_up, {o: (kept.get(o, c.before), c.up) for o, c in here.items()})
            scale_down = _replace_counts(wave.scale_down, {o: (c.up, stays[o]) for o, c in here.items()})
            yield wave.model_copy(update={"scale_up": scale_up, "scale_down": scale_down})
        else:
            yield wave
        kept = stays


def _replace_counts(
    rows: Iterable[GenerationReplicas], changes: Mapping[ModelReplicaKey, tuple[int, int]]
) -> tuple[GenerationReplicas, ...]:
    """Return rows with other counts of some replica sets, unless these are unchanged."""
    counts = {_key_of(row): row.count for row in rows if _key_of(row) not in changes}
    counts.update({key: now for key, (before, now) in changes.items() if now != before})
    return tuple(replica_row(*key, count) for key, count in sorted(counts.items()))


def _key_of(row: GenerationReplicas) -> ModelReplicaKey:
    return row.model, (row.part, row.region, row.hardware, row.generation)


class _FleetReplay:
    """State of the models while the waves are replayed."""

    def __init__(self, instance: TransitionInstance, origin: Mapping[str, ModelState]) -> None:
        self.instance = instance
        self.counts = defaultdict[str, dict[ReplicaKey, int]](dict, {m: dict(s.counts) for m, s in origin.items()})
        self.shares: dict[str, dict[str, Sent]] = defaultdict(lambda: defaultdict(dict))
        for model, state in origin.items():
            for (users, to, generation), share in state.shares.items():
                self.shares[model][users][to, generation] = share

    def count(self, key: ModelReplicaKey) -> int:
        """Return the replicas of a replica set."""
        return self.counts[key[0]].get(key[1], 0)

    def scale(self, rows: Iterable[GenerationReplicas]) -> dict[ModelReplicaKey, int]:
        """Apply counts; return the former ones."""
        former = {}
        for row in rows:
            model, key = _key_of(row)
            former[model, key] = self.counts[model].get(key, 0)
            self.counts[model][key] = row.count
        return former

    def move_traffic(self, route: Iterable[RouteChange], free: Floats) -> tuple[dict[ModelReplicaKey, int], Floats]:
        """Move the traffic; return the replicas to add for the time, and their units of each row."""
        of_model: dict[str, dict[str, Sent]] = defaultdict(dict)
        for change in route:
            of_model[change.model][change.origin] = {(s.to, s.generation): s.fraction for s in change.shares}
        more, units = dict[ModelReplicaKey, int](), np.zeros_like(free)
        for model, then in of_model.items():
            found = self._list_missing(model, then, free - units) if self._is_crossing(model, then) else {}
            if found and (units + self._count_units(model, found) <= free + SLACK).all():
                more |= {(model, key): n for key, n in found.items()}
                units += self._count_units(model, found)
            self.shares[model].update(then)
        return more, units

    def _is_crossing(self, model: str, then: Mapping[str, Sent]) -> bool:
        """Return whether one gateway adds requests to a place from which another one removes some."""
        gains, losses = set[tuple[str, int] | str](), set[tuple[str, int] | str]()
        together = not self.instance.separates_generations(model)
        for users, sent in then.items():
            now, total = self.shares[model][users], defaultdict[str, float](float)
            changes = {place: sent.get(place, 0.0) - now.get(place, 0.0) for place in now.keys() | sent.keys()}
            for (region, _), more in changes.items():
                total[region] += more
            for place, more in (*changes.items(), *(total.items() if together else ())):
                if abs(more) > ROUNDING:
                    (gains if more > 0 else losses).add(place)
        return not gains.isdisjoint(losses)

    def _count_units(self, model: str, more: Mapping[ReplicaKey, int]) -> Floats:
        counts = self.counts[model]
        both = {**counts, **{key: counts[key] + n for key, n in more.items()}}
        return self.instance.used_units(model, both) - self.instance.used_units(model, counts)

    def _list_missing(self, model: str, then: Mapping[str, Sent], free: Floats) -> dict[ReplicaKey, int]:
        """Return the replicas to add while a model's gateways follow, in the order that takes the fewest units."""
        shifts = [GatewayShift(users, self._compute_change(model, users, sent)) for users, sent in then.items()]
        load, capacity = self._compute_load(model, self.shares[model]), self._compute_capacity(model, {})
        if order_gateways(load, shifts, capacity, max_pieces=PIECES).overload <= 0.0:
            return {}
        found = order_gateways(load, shifts, capacity, max_pieces=PIECES, price=self._list_prices(model, free))
        more: dict[ReplicaKey, int] = {}
        for place, qps in sorted(found.lacking.items(), key=lambda item: (item[0][2] is None, item[0][:2])):
            left = qps - (self._compute_capacity(model, more)[place] - capacity[place])
            key = self._find_cheapest(model, place, left, more, free) if left > 0 else None
            if key is not None:
                more[key] = more.get(key, 0) + self._count_replicas(model, key, left)
        return more

    def _compute_change(self, model: str, users: str, then: Sent) -> dict[GatewayPlace, float]:
        before, after = (
            self._compute_load(model, {users: self.shares[model][users]}),
            self._compute_load(model, {users: then}),
        )
        return {place: after.get(place, 0.0) - before.get(place, 0.0) for place in {**before, **after}}

    def _compute_load(self, model: str, shares: Mapping[str, Sent]) -> dict[GatewayPlace, float]:
        """Return QPS that shares of some users' regions put on each place."""
        instance = self.instance
        routes = {(users, *place): share for users, sent in shares.items() for place, share in sent.items()}
        of_generation = compute_loads(
            routes, instance.demand[model], instance.parts[model], instance.policy_of(model).calls
        )
        load: dict[GatewayPlace, float] = defaultdict(float)
        for (part, region, generation), qps in of_generation.items():
            load[part, region, generation] += qps
            if not instance.separates_generations(model):
                load[part, region, None] += qps
        return load

    def _compute_capacity(self, model: str, more: Mapping[ReplicaKey, int]) -> dict[GatewayPlace, float]:
        """Return the capacity of each place in QPS."""
        capacity: dict[GatewayPlace, float] = defaultdict(float)
        processes: dict[tuple[str, str, str], int] = defaultdict(int)
        for key, n in self.counts[model].items():
            part, region, hardware, generation = key
            count = n + more.get(key, 0)
            capacity[part, region, generation] += count * self._qps_of(model, key)
            processes[part, region, hardware] = max(processes[part, region, hardware], count)
        if not self.instance.separates_generations(model):
            for (part, region, hardware), count in processes.items():
                capacity[part, region, None] += count * self._qps_of(model, (part, region, hardware, 0))
        return capacity

    def _list_prices(self, model: str, free: Floats) -> dict[GatewayPlace, float]:
        """Return the units of one more request/s at a place; very many if no unit for it is free."""
        prices: dict[GatewayPlace, float] = {}
        for part, region, hardware, generation in (key for key, n in self.counts[model].items() if n > 0):
            option = self.instance.options[model][part, hardware]
            full = option.units > free[self.instance.row_of[region, hardware]] + SLACK
            price = option.units / option.qps * (NONE_FREE if full else 1.0)
            for place in ((part, region, generation), (part, region, None)):
                prices[place] = min(price, prices.get(place, price))
        return prices

    def _find_cheapest(
        self, model: str, place: GatewayPlace, qps: float, more: Mapping[ReplicaKey, int], free: Floats
    ) -> ReplicaKey | None:
        """Return the replica set that carries the additional load with the fewest units, preferably free ones.

        If processes hold several generations, it is one of the generation that they hold most.
        """
        part, region, generation = place
        counts = {c: n + more.get(c, 0) for c, n in self.counts[model].items() if n > 0 and c[:2] == (part, region)}
        if generation is None:
            most = {c[2]: max((n, other[3]) for other, n in counts.items() if other[2] == c[2]) for c in counts}
            counts = {c: n for c, n in counts.items() if most[c[2]] == (n, c[3])}
        else:
            counts = {c: n for c, n in counts.items() if c[3] == generation}
        units = {
            c: self._count_replicas(model, c, qps) * self.instance.options[model][part, c[2]].units for c in counts
        }
        return min(
            counts,
            key=lambda c: (units[c] > free[self.instance.row_of[region, c[2]]] + SLACK, units[c], c),
            default=None,
        )

    def _count_replicas(self, model: str, key: ReplicaKey, qps: float) -> int:
        return math.ceil(qps / self._qps_of(model, key) - SLACK)

    def _qps_of(self, model: str, key: ReplicaKey) -> float:
        return self.instance.options[model][key[0], key[2]].qps
