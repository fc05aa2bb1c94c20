"""Reasons of unmet demand: the rules that leave no room to serve more of it, by names such as `supply us-east/l4`.

Called by `planner.solve` on every plan with unmet demand. A rule is named if, with everything else of the plan
unchanged, it blocks the replicas that one more request/s would need. With all the named rules lifted, more of the
demand could be served.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from ipnext.model.planning.plan import ModelProblem, PartProblem
from planner.core.index import Index, Key
from planner.core.solution import SMALLEST_UNMET, Holding

EPSILON = 1e-6

Cell = tuple[str, str]
"""Region, hardware."""


def explain(
    index: Index, holding: Holding, *, kept: Collection[str] = (), otherwise: str = "gap"
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the rules that bind for each (model, region) with unmet demand, sorted; never empty.

    Rules: `supply r/h`, `budget model m`, `budget owner o`, `moves`, `latency r` (a region beyond the tolerance has
    room), `survive r`, and `unmet_cost` if serving would cost more than leaving unmet. If none blocks it: `kept` for a
    model of `kept`, else `otherwise`.
    """
    missing = unmet_of(index, holding.shares)
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    if not missing:
        return found
    room = _Room(index, holding, {model for model, _ in missing})
    for model in index.problem.models:
        growth = _Growth(room, model)
        for demand in model.demand:
            fraction = missing.get((model.model, demand.region), 0.0)
            if fraction:
                rules = growth.rules(demand.region, fraction * demand.qps, otherwise)
                spared = {"kept"} if model.model in kept else rules & {"unmet_cost", otherwise}
                named = (rules - {"unmet_cost", otherwise}) | (spared if rules & {"unmet_cost", otherwise} else set())
                found[model.model, demand.region] = tuple(sorted(named))
    return found


def unmet_of(index: Index, shares: Mapping[tuple[str, str, str], float]) -> dict[tuple[str, str], float]:
    """Return the fraction of each demand above zero that no share serves, above rounding."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for (model, origin, _), fraction in shares.items():
        sums[model, origin] += fraction
    keys = [(model.model, item.region) for model in index.problem.models for item in model.demand if item.qps > 0]
    return {key: 1.0 - sums[key] for key in keys if 1.0 - sums[key] > SMALLEST_UNMET}


class _Room:
    """Residual of every limit in a plan, and the traffic of the models in question by target."""

    def __init__(self, index: Index, holding: Holding, models: Collection[str]) -> None:
        self.index = index
        self.counts = holding.counts
        self.weights = index.problem.objective
        self.offered = {cell for cell, units in index.supply.items() if units > 0}
        self._take(holding.counts)
        qps = {(m.model, d.region): d.qps for m in index.problem.models if m.model in models for d in m.demand}
        self.sent: dict[tuple[str, str], float] = defaultdict(float)
        for (model, origin, to), fraction in holding.shares.items():
            if model in models:
                self.sent[model, to] += fraction * qps.get((model, origin), 0.0)

    def _take(self, counts: Mapping[Key, int]) -> None:
        """Set units left by cell, $/h left by model and owner with a budget, and replicas that may still be started."""
        problem, unit_cost, current = self.index.problem, self.index.unit_cost, self.index.current
        units = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
        owner = {model.model: model.owner for model in problem.models}
        self.units: dict[Cell, float] = defaultdict(float, self.index.supply)
        spent: dict[str, float] = defaultdict(float)
        paid: dict[str, float] = defaultdict(float)
        started = 0
        for key, count in counts.items():
            taken = count * units[key[0], key[1], key[3]]
            self.units[key[2:]] -= taken
            spent[key[0]] += taken * unit_cost.get(key[2:], 0.0)
            started += max(0, count - current.get(key, 0))
        for model, cost in spent.items():
            paid[owner[model]] += cost
        most = problem.limits.max_moves
        self.moves = float("inf") if most is None else most - started
        limits = {m.model: m.budget_per_hour for m in problem.models}
        self.model_budget = {name: limit - spent[name] for name, limit in limits.items() if limit is not None}
        of_owner = {o.owner: o.budget_per_hour for o in problem.owners}
        self.owner_budget = {name: limit - paid[name] for name, limit in of_owner.items() if limit is not None}


class _Option(NamedTuple):
    """One way to add replicas of a part: cost ($/h), units and throughput (QPS) of one."""

    part: str
    cell: Cell
    cost: float
    units: float
    qps: float
    least: int
    """Replicas that must be added at once: `min_replicas` less those that run there."""

    @property
    def rule(self) -> str:
        """Rule that blocks it if the cell is full."""
        return f"supply {self.cell[0]}/{self.cell[1]}"


class _Ways:
    """Ways to add replicas of one part in some regions, the cheapest first."""

    def __init__(self, ways: Sequence[_Option], room: _Room) -> None:
        self.ways = ways
        self.open = [w for w in ways if w.least * w.units <= room.units.get(w.cell, 0.0) + EPSILON]
        named = [way for way in ways if way.cell in room.offered]
        self.offered = bool(named or not ways)
        """False if none of the hardware is supplied at all."""
        self.full = named or ways
        self.rules = frozenset(way.rule for way in self.full)
        """Rules that block if all are full."""

    def cheaper(self, than: _Option) -> Iterator[str]:
        """Yield the rules that block the ways before one."""
        return (way.rule for way in takewhile(lambda way: way is not than, self.ways))


class _Walk(NamedTuple):
    """Requirements of serving one more request/s in one region."""

    rules: frozenset[str]
    """Blocking rules; empty if there are none."""
    offered: bool
    """False if it needs hardware that is supplied nowhere."""
    cost: float
    """$/h of the replicas to add."""
    qps: float
    """Requests/s that these replicas could serve, latency aside."""


class _Growth:
    """Possible growth of one model beside a plan."""

    def __init__(self, room: _Room, model: ModelProblem) -> None:
        self.room, self.model = room, model
        self.regions = room.index.problem.regions
        self.sent = {region: room.sent.get((model.model, region), 0.0) for region in self.regions}
        self.served = sum(self.sent.values())
        self._walks: dict[str, _Walk] = {}
        self._sorted: dict[str, Sequence[_Option]] = {}
        self._ways: dict[tuple[str, str | None, str | None], _Ways] = {}
        self._able: dict[str, dict[str, float]] = {}

    def able(self, part: PartProblem) -> dict[str, float]:
        """Return the QPS that a part can serve, by region that holds it."""
        if part.part not in self._able:
            counts, name = self.room.counts, self.model.model
            found = {
                region: sum(o.qps * counts.get((name, part.part, region, o.hardware), 0) for o in part.options)
                for region in self.regions
            }
            self._able[part.part] = {region: qps for region, qps in found.items() if qps > 0}
        return self._able[part.part]

    def ways(self, part: PartProblem, *, region: str | None = None, without: str | None = None) -> _Ways:
        """Return the ways to add replicas of a part in one region, or in all but one."""
        key = (part.part, region, without)
        if key not in self._ways:
            ways = self._options(part)
            found = [w for w in ways if w.cell[0] != without and region in (None, w.cell[0])]
            self._ways[key] = _Ways(found, self.room)
        return self._ways[key]

    def _options(self, part: PartProblem) -> Sequence[_Option]:
        """Return the ways to add replicas of a part in any region, the cheapest first."""
        if part.part not in self._sorted:
            found = [way for region in self.regions for way in self._of_region(part, region)]
            self._sorted[part.part] = sorted(found, key=lambda way: (way.cost * way.least, way.cell[1]))
        return self._sorted[part.part]

    def _of_region(self, part: PartProblem, region: str) -> Iterator[_Option]:
        counts, unit_cost = self.room.counts, self.room.index.unit_cost
        held = sum(counts.get((self.model.model, part.part, region, o.hardware), 0) for o in part.options)
        least = max(1, part.min_replicas - held)
        for option in part.options:
            cell = (region, option.hardware)
            cost = option.units * unit_cost.get(cell, 0.0)
            yield _Option(part.part, cell, cost, option.units, option.qps, least)

    def walk(self, region: str) -> _Walk:
        """Return the requirements of one more request/s served in `region`."""
        if region not in self._walks:
            self._walks[region] = _Adding(self).walk(region)
        return self._walks[region]

    def rules(self, origin: str, missing_qps: float, otherwise: str) -> set[str]:
        """Return the rules that block serving more of the demand of `origin`."""
        rtt = {region: self.room.index.rtt[origin, region] for region in self.regions}
        near = [region for region in self.regions if rtt[region] <= self.model.latency_tolerance_ms]
        walks = _keep_offered({region: self.walk(region) for region in near})
        room = {region: walk for region, walk in walks.items() if not walk.rules}
        rules = set[str]().union(*(walk.rules for walk in walks.values()))
        if room:
            worth = any(self._worth(walk, rtt[region], missing_qps) for region, walk in room.items())
            return {*rules, otherwise if worth else "unmet_cost"}
        far = _keep_offered({region: self.walk(region) for region in self.regions if region not in near})
        if not near or any(not walk.rules for walk in far.values()):
            rules |= {f"latency {origin}"}
            walks |= far
        if not near and all(walk.rules for walk in far.values()):
            rules = rules.union(*(walk.rules for walk in far.values()))
        worth = any(self._worth(walk, rtt[region], missing_qps) for region, walk in walks.items())
        return rules if worth else {*rules, "unmet_cost"}

    def _worth(self, walk: _Walk, rtt_ms: float, missing_qps: float) -> bool:
        """Check whether the replicas to add cost less than leaving unmet the demand that they could serve."""
        weights, qps = self.room.weights, min(missing_qps, walk.qps)
        gain = weights.unmet_cost * self.model.priority - weights.latency_weight * rtt_ms
        return walk.cost < gain * qps


def _keep_offered(walks: Mapping[str, _Walk]) -> dict[str, _Walk]:
    """Drop requirements of hardware that is supplied nowhere, unless there are no others."""
    offered = {region: walk for region, walk in walks.items() if walk.offered}
    return offered or dict(walks)


class _Adding:
    """The replicas that one more request/s needs, added one after the other."""

    def __init__(self, growth: _Growth) -> None:
        self.growth, self.model, self.room = growth, growth.model, growth.room
        self.able = {part.part: dict(growth.able(part)) for part in self.model.parts}
        """QPS by part and region, with the additions."""
        self.total = {part: sum(qps.values()) for part, qps in self.able.items()}
        self.counts: dict[tuple[str, Cell], int] = defaultdict(int)
        self.units: dict[Cell, float] = defaultdict(float)
        self.rules: set[str] = set()
        self.taken: list[tuple[_Ways, _Option]] = []
        self.offered = True
        self.only_region = False
        """True if no other region could replace it at all."""
        self.cost = 0.0
        self.starts = 0

    def walk(self, region: str) -> _Walk:
        """Add replicas to every part that is full there, then to every part that could not lose some region."""
        sent = self.growth.sent[region]
        for part in self.model.parts:
            if not _more(self.able[part.part].get(region, 0.0), sent):
                self._add(self.growth.ways(part, region=region), ())
        if self.model.survive == "region":
            for part in self.model.parts:
                self._survive(part)
        short = self._short()
        cheaper = [rule for ways, taken in self.taken for rule in ways.cheaper(taken)] if short else []
        cost = self.cost + self.starts * self.room.weights.move_cost
        return _Walk(frozenset({*self.rules, *short, *cheaper}), self.offered, cost, self._qps(region, sent))

    def _survive(self, part: PartProblem) -> None:
        """Add replicas in other regions for every region whose loss leaves the part no more than the served demand."""
        able = self.able[part.part]
        for lost in self.growth.regions:
            if not _more(self.total[part.part] - able.get(lost, 0.0), self.growth.served):
                self._add(self.growth.ways(part, without=lost), (f"survive {lost}",))

    def _add(self, ways: _Ways, rules: Collection[str]) -> None:
        """Add replicas by the cheapest way with room.

        Without one, name the rules, and continue as if by the cheapest.
        """
        for way in ways.open:
            if way.least * way.units <= self.room.units[way.cell] - self.units[way.cell] + EPSILON:
                self.taken.append((ways, way))
                self._take(way)
                return
        self.offered = self.offered and ways.offered
        self.rules.update(rules, ways.rules)
        if ways.full:
            self._take(ways.full[0])
        else:
            self.only_region = True

    def _take(self, way: _Option) -> None:
        key: Key = (self.model.model, way.part, *way.cell)
        before = self.room.counts.get(key, 0) + self.counts[way.part, way.cell]
        running = self.room.index.current.get(key, 0)
        self.starts += max(0, before + way.least - running) - max(0, before - running)
        self.counts[way.part, way.cell] += way.least
        self.units[way.cell] += way.least * way.units
        self.able[way.part][way.cell[0]] = self.able[way.part].get(way.cell[0], 0.0) + way.least * way.qps
        self.total[way.part] += way.least * way.qps
        self.cost += way.least * way.cost

    def _short(self) -> set[str]:
        """Return the budgets and moves that the additions exceed."""
        rules = set()
        if self.cost > self.room.model_budget.get(self.model.model, float("inf")) + EPSILON:
            rules.add(f"budget model {self.model.model}")
        if self.cost > self.room.owner_budget.get(self.model.owner, float("inf")) + EPSILON:
            rules.add(f"budget owner {self.model.owner}")
        if self.starts > max(0.0, self.room.moves):
            rules.add("moves")
        return rules

    def _qps(self, region: str, sent: float) -> float:
        """Return the additional QPS that all parts together could serve."""
        spare = min(able.get(region, 0.0) for able in self.able.values()) - sent
        if self.model.survive == "none" or self.only_region:
            return spare
        without = min(self.total[part] - max(able.values(), default=0.0) for part, able in self.able.items())
        return min(spare, without - self.growth.served)


def _more(able: float, load: float) -> bool:
    """Check whether the throughput exceeds the load, beyond rounding."""
    return able > load * (1 + EPSILON) + EPSILON
