"""Reasons of the place and number of one model's replicas: the binding rules, with their figures.

Called by the explanation. All rules are evaluated on the plan as it is: those that break with one replica less, and
those that block cheaper places.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ipnext.model.planning.explanation import Binding, PlacementExplanation, RunnerUp
from ipnext.model.planning.plan import PartOption, PartProblem, Problem
from planner.core.figures import round_figure
from planner.core.index import Index, Key
from planner.core.solution import Holding

EPSILON = 1e-6


class PlacedModel:
    """One model of a plan, on the residual that the other models leave."""

    def __init__(self, rest: Problem, plan: Holding, name: str, prices: Mapping[str, float]) -> None:
        self.index, self.prices = Index(rest), prices
        (self.model,) = rest.models
        self.holding = Holding(
            {key: count for key, count in plan.counts.items() if key[0] == name},
            {key: fraction for key, fraction in plan.shares.items() if key[0] == name},
        )
        qps = {demand.region: demand.qps for demand in self.model.demand}
        self.sent: dict[str, float] = defaultdict(float)
        self.origins: dict[str, list[str]] = defaultdict(list)
        for (_, origin, to), fraction in sorted(self.holding.shares.items()):
            if fraction * qps.get(origin, 0.0) > 0:
                self.sent[to] += fraction * qps[origin]
                self.origins[to].append(origin)
        self.served = sum(self.sent.values())
        self.free = {cell: units - self._own(cell) for cell, units in self.index.supply.items()}

    def _own(self, cell: tuple[str, str]) -> float:
        """Return the units that the model itself uses of a cell."""
        return sum(
            option.units * self.holding.counts.get((self.model.model, part.part, *cell), 0)
            for part in self.model.parts
            for option in part.options
            if option.hardware == cell[1]
        )

    def explain_placement(self, key: Key, count: int, second: RunnerUp | None) -> PlacementExplanation:
        """Explain one placement."""
        _, part_name, region, hardware = key
        part = next(part for part in self.model.parts if part.part == part_name)
        option = next(option for option in part.options if option.hardware == hardware)
        cost = option.units * self.index.unit_cost.get((region, hardware), 0.0)
        price = self.prices.get(f"supply {region}/{hardware}")
        return PlacementExplanation(
            model=self.model.model,
            part=part_name,
            region=region,
            hardware=hardware,
            count=count,
            cost_per_hour=round_figure(count * cost),
            replica_cost=round_figure(cost),
            replica_price=None if price is None else round_figure(option.units * price),
            count_rules=tuple(self.count_rules(part, option, region)),
            place_rules=tuple(self.place_rules(part, option, region)),
            runner_up=second,
        )

    def able(self, part: PartProblem, region: str) -> float:
        """Return the QPS that a part can serve in a region."""
        counts = self.holding.counts
        return sum(o.qps * counts.get((self.model.model, part.part, region, o.hardware), 0) for o in part.options)

    def count_rules(self, part: PartProblem, option: PartOption, region: str) -> Iterator[Binding]:
        """Yield rules that one replica less would break, with all traffic as it is."""
        left = self.able(part, region) - option.qps
        if _less(left, self.sent[region]):
            message = f"one less does {left:.6g} QPS of the {self.sent[region]:.6g} QPS sent to {region}"
            yield Binding(rule=f"capacity {region}", message=message)
        if self.model.survive == "region":
            yield from self._survive(part, region, left)
        counts = self.holding.counts
        held = sum(counts.get((self.model.model, part.part, region, o.hardware), 0) for o in part.options)
        if 0 < held - 1 < part.min_replicas:
            message = f"a region that holds {part.part} holds at least {part.min_replicas} replicas of it"
            yield Binding(rule=f"min_replicas {region}", message=message)

    def _survive(self, part: PartProblem, region: str, left: float) -> Iterator[Binding]:
        able = {name: self.able(part, name) for name in self.index.problem.regions} | {region: left}
        for lost, own in able.items():
            rest = sum(able.values()) - own
            if lost != region and own > 0 and _less(rest, self.served):
                message = f"one less leaves {rest:.6g} QPS of the {self.served:.6g} QPS served when {lost} is lost"
                yield Binding(rule=f"survive {lost}", message=message)

    def place_rules(self, part: PartProblem, option: PartOption, region: str) -> Iterator[Binding]:
        """Yield the rules that keep the replicas from a cheaper place that could serve the same users."""
        near = self._near(region)
        if len(near) == 1 and len(self.index.problem.regions) > 1:
            users = ", ".join(self.origins[region])
            message = f"no other region is within {self.model.latency_tolerance_ms:g} ms of the users of {users}"
            yield Binding(rule=f"latency {region}", message=message)
        here = self._qps_cost(option, region)
        cheaper = [
            (self._qps_cost(other, place), place, other)
            for place in near
            for other in part.options
            if (place, other.hardware) in self.index.supply and self._qps_cost(other, place) < here * (1 - EPSILON)
        ]
        roomy = []
        for cost, place, other in sorted(cheaper, key=lambda item: (item[0], item[1], item[2].hardware)):
            free = max(0.0, self.free[place, other.hardware])
            if free + EPSILON < other.units:
                message = (
                    f"{1 - cost / here:.1%} cheaper, but {free:.6g} units are free and a replica takes {other.units:g}"
                )
                yield Binding(rule=f"supply {place}/{other.hardware}", message=message)
            else:
                roomy.append(f"{place}/{other.hardware}")
        yield from self._weights(part, option, region, roomy)
        if not cheaper:
            yield Binding(
                rule="cost", message=f"the cheapest hardware in {len(near)} regions that reach the same users"
            )

    def _weights(self, part: PartProblem, option: PartOption, region: str, roomy: Sequence[str]) -> Iterator[Binding]:
        """Yield the weights that favour this place over cheaper ones with room."""
        weights = self.index.problem.objective
        running = self.index.current.get((self.model.model, part.part, region, option.hardware), 0)
        if running and weights.move_cost:
            message = f"{running} run here already; each one started elsewhere costs {weights.move_cost:g} $/h"
            yield Binding(rule="move_cost", message=message)
        if roomy and weights.latency_weight and self.origins[region]:
            message = f"a QPS served 10 ms farther costs {10 * weights.latency_weight:.6g} $/h"
            yield Binding(rule="latency_weight", message=message)
        if roomy:
            message = (
                f"{', '.join(roomy)}: cheaper for this part, with room; the runner-up says what the whole "
                "model would cost"
            )
            yield Binding(rule="configuration", message=message)

    def _near(self, region: str) -> list[str]:
        """Return regions within tolerance of all users that this region serves; all regions if it is only a reserve."""
        limit, rtt = self.model.latency_tolerance_ms, self.index.rtt
        names = self.index.problem.regions
        return [name for name in names if all(rtt[origin, name] <= limit for origin in self.origins[region])]

    def _qps_cost(self, option: PartOption, region: str) -> float:
        """Return $/h of hardware for one QPS."""
        return option.units * self.index.unit_cost.get((region, option.hardware), 0.0) / option.qps


def _less(able: float, load: float) -> bool:
    """Check whether the throughput is below the load, beyond rounding."""
    return able < load * (1 - EPSILON) - EPSILON
