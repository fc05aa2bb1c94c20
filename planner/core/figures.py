"""Cost and served demand of a plan, for the whole fleet or some models of it.

Called by the explanation, the what-if and the picture. The checker computes its figures independently.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

from ipnext.model.planning.explanation import PlanFigures
from ipnext.model.planning.plan import ModelProblem
from planner.core.index import Index
from planner.core.solution import Holding
from planner.core.unmet_reasons import unmet_of

Cell = tuple[str, str]
"""Region, hardware."""


def figures(index: Index, holding: Holding, models: Collection[str] | None = None) -> PlanFigures:
    """Return the figures of a holding; of `models` alone if given.

    Moves count against the problem's current placement.
    """
    total = _Sums(index, holding)
    for model in index.problem.models:
        if models is None or model.model in models:
            total.demand(model)
    for key, count in holding.counts.items():
        if models is None or key[0] in models:
            total.replica(key, count)
    return total.figures()


def used_units(index: Index, counts: Mapping[tuple[str, str, str, str], int]) -> Mapping[Cell, float]:
    """Return the used units by region and hardware."""
    units = _units(index)
    used: dict[Cell, float] = defaultdict(float)
    for (model, part, region, hardware), count in sorted(counts.items()):
        used[region, hardware] += count * units[model, part, hardware]
    return used


def spent(index: Index, counts: Mapping[tuple[str, str, str, str], int]) -> Mapping[str, float]:
    """Return $/h of hardware by model."""
    units = _units(index)
    cost: dict[str, float] = defaultdict(float)
    for (model, part, region, hardware), count in sorted(counts.items()):
        cost[model] += count * units[model, part, hardware] * index.unit_cost.get((region, hardware), 0.0)
    return cost


def count_started(index: Index, counts: Mapping[tuple[str, str, str, str], int]) -> int:
    """Count replicas beyond the current placement."""
    return sum(max(0, count - index.current.get(key, 0)) for key, count in counts.items())


def _units(index: Index) -> Mapping[tuple[str, str, str], float]:
    return {(m.model, p.part, o.hardware): o.units for m in index.problem.models for p in m.parts for o in p.options}


class _Sums:
    """Adds up demand and replicas."""

    def __init__(self, index: Index, holding: Holding) -> None:
        self.index, self.holding = index, holding
        self.missing = unmet_of(index, holding.shares)
        self.units = _units(index)
        self.to: dict[Cell, list[tuple[str, float]]] = defaultdict(list)
        for (model, origin, region), fraction in holding.shares.items():
            self.to[model, origin].append((region, fraction))
        self.cost = self.latency = self.unmet_cost = self.qps = self.unmet = 0.0
        self.replicas = self.moves = 0

    def demand(self, model: ModelProblem) -> None:
        """Add the traffic of one model, served and unmet."""
        for item in model.demand:
            lost = self.missing.get((model.model, item.region), 0.0) * item.qps
            self.qps += item.qps
            self.unmet += lost
            self.unmet_cost += model.priority * lost
            for region, fraction in self.to[model.model, item.region]:
                self.latency += item.qps * fraction * self.index.rtt[item.region, region]

    def replica(self, key: tuple[str, str, str, str], count: int) -> None:
        """Add the replicas of one placement."""
        self.cost += count * self.units[key[0], key[1], key[3]] * self.index.unit_cost.get(key[2:], 0.0)
        self.replicas += count
        self.moves += max(0, count - self.index.current.get(key, 0))

    def figures(self) -> PlanFigures:
        """Return the sums, weighted by the objective."""
        weights = self.index.problem.objective
        costs = {
            "cost_per_hour": self.cost,
            "latency_per_hour": weights.latency_weight * self.latency,
            "moves_per_hour": weights.move_cost * self.moves,
            "unmet_per_hour": weights.unmet_cost * self.unmet_cost,
        }
        return PlanFigures(
            objective=round_figure(sum(costs.values())),
            **{name: round_figure(figure) for name, figure in costs.items()},
            replicas=self.replicas,
            moves=self.moves,
            demand_qps=round_figure(self.qps),
            unmet_qps=round_figure(self.unmet),
        )


def round_figure(figure: float) -> float:
    """Round to nine digits: sums in another order agree on them."""
    return float(f"{figure:.9g}")
