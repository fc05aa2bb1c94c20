"""Shadow prices of limits, and the least growth of limits that would serve everything.

Called by the explanation. Both are the reference formulation with its limits loosened: once without whole replicas
(prices), once with limits that may grow (needs).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from ipnext.model.planning.explanation import NeededLimit
from ipnext.model.planning.plan import ModelProblem, Problem
from planner.core.figures import round_figure
from planner.core.index import Index, ReplicaColumn
from planner.exact.formulation import Constraint, Expression, Formulation
from planner.explain.conflict import MOST_SECONDS, Limit, without

SMALLEST_PRICE = 1e-7
"""$/h: a smaller figure is the solver's rounding."""

SMALLEST_GROWTH = 1e-6
"""A smaller growth of a limit is the solver's rounding."""

GAP = 1e-4
"""Small, because the growth weighs far more than the running cost."""

BEFORE_COST = 1000.0
"""Weight of the $/h by which limits grow against $/h of hardware: first the least growth, then the least cost."""


def limit_figures(problem: Problem) -> Mapping[str, float]:
    """Return the limits that models share or may grow, by rule.

    `supply r/h` (units), `budget ...` ($/h), `moves` (replicas).
    """
    figures = {f"supply {item.region}/{item.hardware}": item.units for item in problem.supply}
    budgets = {f"budget model {model.model}": model.budget_per_hour for model in problem.models}
    budgets |= {f"budget owner {owner.owner}": owner.budget_per_hour for owner in problem.owners}
    figures |= {rule: limit for rule, limit in budgets.items() if limit is not None}
    if problem.limits.max_moves is not None:
        figures["moves"] = float(problem.limits.max_moves)
    return figures


class _Loosened(Formulation):
    """The formulation with every cell that has a supply entry open, and its limits by rule."""

    def __init__(self, problem: Problem) -> None:
        cells = [Limit("supply", f"{item.region}/{item.hardware}") for item in problem.supply]
        super().__init__(without(problem, cells))
        self.figures = limit_figures(problem)
        self.owner = {model.model: model.owner for model in problem.models}

    def limits_of(self, rules: Sequence[str]) -> Expression:
        """Return the limits of these rules' rows."""
        raise NotImplementedError

    def supply(self) -> Constraint:
        """Limit the units of a hardware kind in a region."""
        return self._rows(lambda place: f"supply {place.region}/{place.hardware}", lambda place: place.units)

    def model_budget(self) -> Constraint | None:
        """Limit the cost of a model, $/h."""
        return self._rows(lambda place: f"budget model {place.model}", lambda place: place.cost)

    def owner_budget(self) -> Constraint | None:
        """Limit the cost of all models of an owner, $/h."""
        return self._rows(lambda place: f"budget owner {self.owner[place.model]}", lambda place: place.cost)

    def moves(self) -> Constraint | None:
        """Limit the replicas started beyond the running ones."""
        return self._count_started() <= self.limits_of(["moves"])[0] if "moves" in self.figures else None

    def _rows(self, rule: Callable[[ReplicaColumn], str], taken: Callable[[ReplicaColumn], float]) -> Constraint | None:
        named = [rule(place) for place in self.places]
        row = {name: i for i, name in enumerate(dict.fromkeys(name for name in named if name in self.figures))}
        if not row:
            return None
        entries = [(row[name], k) for k, name in enumerate(named) if name in row]
        values = np.array([taken(self.places[k]) for _, k in entries])
        shape = (len(row), len(self.places))
        matrix = sp.csr_array((values, tuple(np.array(entries).T)), shape=shape)
        return matrix @ self.replicas <= self.limits_of(list(row))


class _Relaxed(_Loosened):
    """Without whole replicas: a linear program, whose limits can be changed one by one."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.replicas = cp.Variable(len(self.places), nonneg=True, name="replicas")
        self.holds = cp.Variable(max(1, len(self.groups)), bounds=[0, 1], name="holds")
        self.limits: dict[str, tuple[Any, int]] = {}
        rows = list(self.constraints().values())
        self.row = {parameter.id: row for row in rows for parameter in row.parameters()}
        self.program = cp.Problem(cp.Minimize(self.objective()), rows)

    def limits_of(self, rules: Sequence[str]) -> Expression:
        """Return a parameter for each limit."""
        parameter = cp.Parameter(len(rules), value=np.array([self.figures[rule] for rule in rules]))
        self.limits |= {rule: (parameter, i) for i, rule in enumerate(rules)}
        return parameter

    def value(self, more: str | None = None) -> float:
        """Return the least objective, $/h; with one more of a limit, if given."""
        for rule, (parameter, i) in self.limits.items():
            changed = np.array(parameter.value)
            changed[i] = self.figures[rule] + (1.0 if rule == more else 0.0)
            parameter.value = changed
        options = {"threads": 1, "random_seed": 0, "output_flag": False}
        return float(self.program.solve(solver=cp.HIGHS, **options))  # type: ignore[no-untyped-call]  # cvxpy has no types

    def binding(self) -> list[str]:
        """Return limits with a price in the dual solution of the last program: no other has any value, by convexity."""
        duals = {
            rule: float(np.atleast_1d(self.row[parameter.id].dual_value)[i])
            for rule, (parameter, i) in self.limits.items()
        }
        return [rule for rule, dual in duals.items() if abs(dual) > SMALLEST_PRICE]


def prices(problem: Problem) -> Mapping[str, float]:
    """Return by rule the $/h by which the relaxation's least objective falls if that limit alone is one larger.

    The relaxation allows parts of replicas. If replicas are small compared with the demand, that is the saving of one
    more unit (of a hardware kind, of a $/h of budget, of a replica started). If they are not, it is a price, not a
    promise: a whole replica may need more than one unit, and the first unit may save nothing. Supply without an entry
    has no price.
    """
    found = dict.fromkeys(limit_figures(problem), 0.0)
    index = Index(problem)
    if not index.routes or not problem.supply:
        return found
    relaxed = _Relaxed(problem)
    if not relaxed.places:
        return found
    base = relaxed.value()
    for rule in relaxed.binding():
        saved = base - relaxed.value(rule)
        if saved > SMALLEST_PRICE * max(1.0, abs(base)):
            found[rule] = round_figure(saved)
    return found


class _Growing(_Loosened):
    """Nothing is unmet; limits grow if they must, by as little as possible."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.growth: dict[str, Expression] = {}
        self.rules = {**super().constraints(), "all served": self.unmet == 0}

    def limits_of(self, rules: Sequence[str]) -> Expression:
        """Return the limits and their growth."""
        grown = cp.Variable(len(rules), nonneg=True)
        self.growth |= {rule: grown[i] for i, rule in enumerate(rules)}
        return np.array([self.figures[rule] for rule in rules]) + grown

    def constraints(self) -> Mapping[str, Constraint]:
        """Return all rules, and the rule that everything is served."""
        return self.rules

    def objective(self) -> Expression:
        """Return the $/h by which the limits grow, before the $/h of the plan."""
        price = {f"supply {region}/{kind}": cost for (region, kind), cost in self.index.unit_cost.items()}
        grown = sum(max(SMALLEST_PRICE, price.get(rule, 1.0)) * extra for rule, extra in self.growth.items())
        return super().objective() + BEFORE_COST * grown

    def needs(self) -> tuple[NeededLimit, ...]:
        """Return the limits that grow; none if no growth helps or the solver finds nothing in time."""
        answer = self.solve()
        if answer.replicas is None:
            return ()
        taken = self.sum_usage([round(float(count)) for count in answer.replicas])
        return tuple(
            NeededLimit(rule=rule, limit=round_figure(limit), needed=round_figure(taken[rule]))
            for rule, limit in self.figures.items()
            if taken.get(rule, 0.0) > limit * (1 + SMALLEST_GROWTH) + SMALLEST_GROWTH
        )

    def sum_usage(self, counts: Sequence[int]) -> Mapping[str, float]:
        """Return the usage of each limit by these replicas."""
        taken: dict[str, float] = defaultdict(float)
        for place, count in zip(self.places, counts, strict=True):
            taken[f"supply {place.region}/{place.hardware}"] += count * place.units
            taken[f"budget model {place.model}"] += count * place.cost
            taken[f"budget owner {self.owner[place.model]}"] += count * place.cost
            taken["moves"] += max(0, count - place.current)
        return taken


def needs(problem: Problem) -> tuple[NeededLimit, ...]:
    """Return the least growth of limits that serves all demand, then the cheapest: supply, budgets, moves.

    Growth is weighed in $/h: units at their cost, budgets as they are, a move as 1 $/h. If no region is near enough,
    the tolerance is the first need (`latency model m`). Empty if everything can be served, if hardware that a part
    needs has no supply entry anywhere, or if a fleet of one region should survive its loss.
    """
    index = Index(problem)
    near = {
        model.model: max(
            (min(index.rtt[demand.region, r] for r in problem.regions) for demand in model.demand if demand.qps > 0),
            default=0.0,
        )
        for model in problem.models
    }
    reached = tuple(_tolerant(model, near[model.model]) for model in problem.models)
    first = tuple(
        NeededLimit(rule=f"latency model {m.model}", limit=m.latency_tolerance_ms, needed=near[m.model])
        for m in problem.models
        if near[m.model] > m.latency_tolerance_ms
    )
    if not index.demands:
        return ()
    seconds = min(MOST_SECONDS, problem.limits.time_seconds)
    limits = problem.limits.model_copy(update={"gap": GAP, "time_seconds": seconds})
    growing = _Growing(problem.model_copy(update={"models": reached, "limits": limits}))
    return (*first, *(growing.needs() if growing.places else ()))


def _tolerant(model: ModelProblem, least_ms: float) -> ModelProblem:
    return model.model_copy(update={"latency_tolerance_ms": max(model.latency_tolerance_ms, least_ms)})
