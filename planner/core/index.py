"""A problem as flat columns: the placements, routes and demands a plan can choose from, with their figures.

Called by the formulation, the extraction and the explanation. The checker does not use it: it reads the problem itself.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ipnext.model.planning.plan import CurrentState, ModelProblem, PartOption, PartProblem, Problem

Key = tuple[str, str, str, str]
"""Model, part, region, hardware."""
RouteKey = tuple[str, str, str]
"""Model, region of the users, region that serves."""


@dataclass(frozen=True)
class ReplicaColumn:
    """One column of replicas.

    Usage (units, $/h) and throughput (QPS) of one, the number that runs, and the largest number.
    """

    model: str
    part: str
    region: str
    hardware: str
    units: float
    qps: float
    cost: float
    current: int
    largest: int

    @property
    def key(self) -> Key:
        """Its key in a plan."""
        return (self.model, self.part, self.region, self.hardware)


@dataclass(frozen=True)
class Route:
    """One column of traffic: `qps` is the whole demand of the users of `origin`."""

    model: str
    origin: str
    to: str
    qps: float
    rtt_ms: float

    @property
    def key(self) -> RouteKey:
        """Its key in a plan."""
        return (self.model, self.origin, self.to)


@dataclass(frozen=True)
class Demand:
    """One row of demand above zero, and the $/h of leaving all of it unmet."""

    model: str
    region: str
    qps: float
    unmet_cost: float


@dataclass(frozen=True)
class Index:
    """The columns of a problem, in the order in which the problem names them."""

    problem: Problem

    @cached_property
    def rtt(self) -> Mapping[tuple[str, str], float]:
        """Milliseconds from users in the first region to servers in the second."""
        names = self.problem.regions
        return {(s, r): self.problem.rtt_ms[i][j] for i, s in enumerate(names) for j, r in enumerate(names)}

    @cached_property
    def supply(self) -> Mapping[tuple[str, str], float]:
        """Units by region and hardware."""
        return {(item.region, item.hardware): item.units for item in self.problem.supply}

    @cached_property
    def unit_cost(self) -> Mapping[tuple[str, str], float]:
        """$/h a unit by region and hardware."""
        return {(item.region, item.hardware): item.unit_cost for item in self.problem.supply}

    @cached_property
    def current(self) -> Mapping[Key, int]:
        """Replicas that run now."""
        return counts_of(self.problem.current)

    @cached_property
    def demands(self) -> tuple[Demand, ...]:
        """Every demand above zero."""
        price = self.problem.objective.unmet_cost
        return tuple(
            Demand(model.model, item.region, item.qps, price * model.priority * item.qps)
            for model in self.problem.models
            for item in model.demand
            if item.qps > 0
        )

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """Every pair of a demand and a region within the model's latency tolerance."""
        tolerance = {model.model: model.latency_tolerance_ms for model in self.problem.models}
        return tuple(
            Route(demand.model, demand.region, to, demand.qps, self.rtt[demand.region, to])
            for demand in self.demands
            for to in self.problem.regions
            if self.rtt[demand.region, to] <= tolerance[demand.model]
        )

    @cached_property
    def reachable(self) -> Mapping[str, float]:
        """QPS of each model that some region reaches within the tolerance."""
        total = {model.model: 0.0 for model in self.problem.models}
        for (model, _), qps in {(route.model, route.origin): route.qps for route in self.routes}.items():
            total[model] += qps
        return total

    @cached_property
    def placements(self) -> tuple[ReplicaColumn, ...]:
        """Every option in every region in which at least one replica of it fits and can be useful."""
        return tuple(self._placements())

    def _placements(self) -> Iterator[ReplicaColumn]:
        served = {(route.model, route.to) for route in self.routes}
        for model in self.problem.models:
            for part in model.parts:
                for region in self.problem.regions:
                    if model.survive == "none" and (model.model, region) not in served:
                        continue
                    for option in part.options:
                        placement = self._placement(model, part, region, option)
                        if placement.largest:
                            yield placement

    def _placement(self, model: ModelProblem, part: PartProblem, region: str, option: PartOption) -> ReplicaColumn:
        where = (region, option.hardware)
        return ReplicaColumn(
            model.model,
            part.part,
            region,
            option.hardware,
            option.units,
            option.qps,
            option.units * self.unit_cost.get(where, 0.0),
            self.current.get((model.model, part.part, *where), 0),
            min(whole(self.supply.get(where, 0.0) / option.units), self._enough(model, part, option)),
        )

    def _enough(self, model: ModelProblem, part: PartProblem, option: PartOption) -> int:
        """Return the largest useful number of replicas in one place: it can serve the whole demand of the model."""
        wanted = self.reachable[model.model]
        return max(part.min_replicas, math.ceil(wanted / option.qps)) if wanted else 0


def whole(figure: float) -> int:
    """Return the largest whole number not above the figure, ignoring errors of its last digits."""
    return math.floor(figure * (1 + 1e-12) + 1e-9)


def counts_of(state: CurrentState) -> dict[Key, int]:
    """Return replicas above zero by placement."""
    return {(r.model, r.part, r.region, r.hardware): r.count for r in state.replicas if r.count}


def shares_of(state: CurrentState) -> dict[RouteKey, float]:
    """Return shares above zero by route."""
    return {(t.model, t.origin, t.to): t.fraction for t in state.traffic if t.fraction}
