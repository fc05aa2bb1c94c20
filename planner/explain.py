"""Why demand is left unmet: the rules that leave no room to serve more of it, in words such as `supply us-east/l4`.

Called by `planner.solve` on every plan with unmet demand. A rule is named where, with everything else of the plan as it
is, it stands in the way of the replicas that one more request a second would need.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import cached_property

from ipnext.model.plan import ModelProblem, PartOption, PartProblem
from planner.extraction import SMALLEST_UNMET, Holding
from planner.index import Index

EPSILON = 1e-6


def explain(
    index: Index, holding: Holding, *, kept: Collection[str] = (), otherwise: str = "gap"
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Rules that bind for each (model, region) with unmet demand, sorted; never empty.

    Rules: `supply r/h`, `budget model m`, `budget owner o`, `moves`, `latency r` (a region beyond the tolerance has
    room), `survive r`. Where none stands in the way: `kept` for a model of `kept`, `unmet_cost` where serving costs more
    than leaving unmet, else `otherwise`.
    """
    room = _Room(index, holding)
    missing = unmet_of(index, holding.shares)
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for model in index.problem.models:
        for demand in model.demand:
            fraction = missing.get((model.model, demand.region), 0.0)
            if fraction:
                rules = room.rules(model, demand.region, fraction * demand.qps, otherwise)
                spared = {"kept"} if model.model in kept else rules & {"unmet_cost", otherwise}
                named = (rules - {"unmet_cost", otherwise}) | (spared if rules & {"unmet_cost", otherwise} else set())
                found[model.model, demand.region] = tuple(sorted(named))
    return found


def unmet_of(index: Index, shares: Mapping[tuple[str, str, str], float]) -> dict[tuple[str, str], float]:
    """Fraction of each demand above zero that no share serves, above rounding."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for (model, origin, _), fraction in shares.items():
        sums[model, origin] += fraction
    keys = [(demand.model, demand.region) for demand in index.demands]
    return {key: 1.0 - sums[key] for key in keys if 1.0 - sums[key] > SMALLEST_UNMET}


class _Room:
    """What is left of every limit beside a plan."""

    def __init__(self, index: Index, holding: Holding) -> None:
        self.index = index
        self.counts = holding.counts
        self.owner = {model.model: model.owner for model in index.problem.models}
        qps = {(m.model, d.region): d.qps for m in index.problem.models for d in m.demand}
        self.sent: dict[tuple[str, str], float] = defaultdict(float)
        for (model, origin, to), fraction in holding.shares.items():
            self.sent[model, to] += fraction * qps.get((model, origin), 0.0)

    @cached_property
    def option(self) -> Mapping[tuple[str, str, str], PartOption]:
        """Options by model, part and hardware."""
        return {(m.model, p.part, o.hardware): o for m in self.index.problem.models for p in m.parts for o in p.options}

    @cached_property
    def units(self) -> dict[tuple[str, str], float]:
        """Units left by region and hardware."""
        left = dict(self.index.supply)
        for (model, part, region, hardware), count in self.counts.items():
            left[region, hardware] = (
                left.get((region, hardware), 0.0) - count * self.option[model, part, hardware].units
            )
        return left

    @cached_property
    def budgets(self) -> Mapping[str, float]:
        """$/h left by rule; an owner or model without a limit is absent."""
        spent: dict[str, float] = defaultdict(float)
        for (model, part, region, hardware), count in self.counts.items():
            cost = count * self.option[model, part, hardware].units * self.index.unit_cost.get((region, hardware), 0.0)
            spent[f"budget model {model}"] += cost
            spent[f"budget owner {self.owner[model]}"] += cost
        limits = {f"budget model {m.model}": m.budget_per_hour for m in self.index.problem.models}
        limits |= {f"budget owner {o.owner}": o.budget_per_hour for o in self.index.problem.owners}
        return {rule: limit - spent[rule] for rule, limit in limits.items() if limit is not None}

    @cached_property
    def moves(self) -> float:
        """Replicas that may still be started."""
        most = self.index.problem.limits.max_moves
        started = sum(max(0, count - self.index.current.get(key, 0)) for key, count in self.counts.items())
        return float("inf") if most is None else most - started

    def able(self, model: ModelProblem, part: PartProblem, region: str) -> float:
        """QPS that a part can do in a region."""
        counts = [(o.qps, self.counts.get((model.model, part.part, region, o.hardware), 0)) for o in part.options]
        return sum(qps * count for qps, count in counts)

    def rules(self, model: ModelProblem, origin: str, missing_qps: float, otherwise: str) -> set[str]:
        """What stands in the way of serving more of one demand."""
        near, far = self._by_tolerance(model, origin)
        if not near:
            return {f"latency {origin}"}
        walks = {region: self.grow(model, region, model.parts) for region in near}
        room = {region: cost for region, (blocked, cost) in walks.items() if not blocked}
        blocked = set[str]().union(*(rules for rules, _ in walks.values()))
        rules = self.offered(blocked, otherwise=bool(room)) | self.survive(model)
        if not room:
            open_far = any(not self.grow(model, region, model.parts)[0] for region in far)
            return rules | ({f"latency {origin}"} if open_far else set())
        if any(rule.startswith("survive") for rule in rules):
            return rules
        cost = min(room.values())
        gain = self.index.problem.objective.unmet_cost * model.priority * missing_qps
        return rules | {"unmet_cost" if cost >= gain else otherwise}

    def _by_tolerance(self, model: ModelProblem, origin: str) -> tuple[list[str], list[str]]:
        near = [r for r in self.index.problem.regions if self.index.rtt[origin, r] <= model.latency_tolerance_ms]
        return near, [r for r in self.index.problem.regions if r not in near]

    def survive(self, model: ModelProblem) -> set[str]:
        """`survive f` for every region without which the others can do no more than is served, and what stops them."""
        if model.survive == "none":
            return set()
        rules: set[str] = set()
        regions = self.index.problem.regions
        served = sum(self.sent[model.model, region] for region in regions)
        for part in model.parts:
            able = {region: self.able(model, part, region) for region in regions}
            for lost in regions:
                others = [region for region in regions if region != lost]
                if sum(able[region] for region in others) > served * (1 + EPSILON) + EPSILON:
                    continue
                walks = [self.grow(model, region, [part], spare=False)[0] for region in others]
                if all(walks):
                    rules |= {f"survive {lost}"} | self.offered(set[str]().union(*walks))
        return rules

    def grow(
        self, model: ModelProblem, region: str, parts: Collection[PartProblem], *, spare: bool = True
    ) -> tuple[set[str], float]:
        """Rules that forbid one more replica of every part that is full there, and the $/h it would cost.

        With `spare` a part with throughput to spare needs none.
        """
        units, blocked, cheaper = dict(self.units), set[str](), set[str]()
        cost, starts = 0.0, 0
        sent = self.sent[model.model, region]
        for part in parts:
            if spare and self.able(model, part, region) > sent * (1 + EPSILON) + EPSILON:
                continue
            choice, barred = self._choose(model, part, region, units)
            if choice is None:
                blocked |= barred
                continue
            hardware, count, price = choice
            units[region, hardware] -= count * self.option[model.model, part.part, hardware].units
            key = (model.model, part.part, region, hardware)
            held, running = self.counts.get(key, 0), self.index.current.get(key, 0)
            starts += max(0, held + count - running) - max(0, held - running)
            cost, cheaper = cost + price, cheaper | barred
        short = {rule for rule in self._payers(model) if cost > self.budgets[rule] + EPSILON}
        if starts > self.moves:
            short |= {"moves"}
        return blocked | short | (cheaper if short else set()), cost + starts * self.index.problem.objective.move_cost

    def _payers(self, model: ModelProblem) -> list[str]:
        rules = [f"budget model {model.model}", f"budget owner {model.owner}"]
        return [rule for rule in rules if rule in self.budgets]

    def _choose(
        self, model: ModelProblem, part: PartProblem, region: str, units: Mapping[tuple[str, str], float]
    ) -> tuple[tuple[str, int, float] | None, set[str]]:
        """The cheapest hardware with room for the next replicas (name, count, $/h), and the cheaper ones without."""
        held = sum(self.counts.get((model.model, part.part, region, o.hardware), 0) for o in part.options)
        count = max(1, part.min_replicas - held)
        barred = list[str]()
        priced = [(count * o.units * self.index.unit_cost.get((region, o.hardware), 0.0), o) for o in part.options]
        for price, option in sorted(priced, key=lambda item: (item[0], item[1].hardware)):
            if count * option.units <= units.get((region, option.hardware), 0.0) + EPSILON:
                return (option.hardware, count, price), {f"supply {region}/{hardware}" for hardware in barred}
            barred.append(option.hardware)
        return None, {f"supply {region}/{hardware}" for hardware in barred}

    def offered(self, rules: set[str], *, otherwise: bool = False) -> set[str]:
        """The rules without supply that is none at all, unless nothing else is among them nor `otherwise`."""
        none = {f"supply {r}/{h}" for r in self.index.problem.regions for h in self.index.problem.hardware}
        none -= {f"supply {r}/{h}" for (r, h), units in self.index.supply.items() if units > 0}
        left = rules - none
        return left if left or otherwise else rules
