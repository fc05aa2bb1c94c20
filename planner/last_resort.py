"""Plans that leave demand unserved only if a hard rule leaves no room for it, never because a replica costs more.

Called by the platform's planning activities in place of `planner.solve`, with the same two entry points. The planner
prices unserved demand (`unmet_cost`), so a small region's demand may be cheaper to refuse than to serve. If a plan
refuses demand of a model for its price, or within the gap, the model is planned once more by itself on the residual of
the others, at a price above any cost of serving it.
"""

import math
from collections.abc import Collection, Iterator

from ipnext.errors import Infeasible
from ipnext.model.planning.plan import ModelProblem, PartOption, Plan, Problem, Unmet
from planner import solve as priced
from planner.owner_priority import by_priority
from planner.plan_fit import leftover
from planner.verify.plan_checker import check

NO_RULE = frozenset({"unmet_cost", "gap", "time_seconds"})
"""Rules of `Plan.unmet` without a limit of the fleet, of an owner or of the model behind them."""

MARGIN = 2.0
"""Factor on the dearest way to serve a model: serving is cheaper by more than any gap that a solver may leave."""


def solve(problem: Problem) -> Plan:
    """Plan all models as `planner.solve.solve` does, then serve demand that was refused for its price.

    Raises InvalidInput. If demand of an owner stays unserved while owners of lower priority hold capacity, the fleet is
    planned once more, owners of the highest priority first.
    """
    return by_priority(problem, _whole(problem), solve=_whole)


def _whole(problem: Problem) -> Plan:
    return serve_what_fits(problem, priced.solve(problem))


def place(problem: Problem, models: Collection[str]) -> Plan:
    """Place only `models` as `planner.solve.place` does, then serve their demand that was refused for its price.

    Raises InvalidInput and Infeasible, as `planner.solve.place` does.
    """
    return serve_what_fits(problem, priced.place(problem, models), among=models)


def serve_what_fits(problem: Problem, plan: Plan, *, among: Collection[str] | None = None) -> Plan:
    """Return `plan` with the models whose demand was refused for its price planned again, by priority and then by name.

    All other models keep their replicas and traffic. `among`: the only models that may change; None: all. The figures
    are those of the problem as stated; `bound` stays, as it holds for every plan.
    """
    kept = tuple(model.model for model in problem.models if among is not None and model.model not in among)
    for model in _list_servable(problem, plan, frozenset(kept)):
        rest = leftover(problem, plan, [model.model])
        price = max(problem.objective.unmet_cost, price_to_serve(rest))
        dear = rest.model_copy(update={"objective": rest.objective.model_copy(update={"unmet_cost": price})})
        try:
            alone = priced.solve(dear)
        except Infeasible:
            continue
        better = priced.restate(problem, _merge_plans(plan, alone, model.model), kept=kept)
        if _sum_unserved(better, model.model) < _sum_unserved(plan, model.model) and not check(problem, better):
            plan = better
    return plan.model_copy(update={"unmet": tuple(_by_hard_rules(item) for item in plan.unmet)})


def _by_hard_rules(item: Unmet) -> Unmet:
    """Return the demand without its price among the rules, if a hard rule keeps it unserved."""
    rules = tuple(rule for rule in item.rules if rule != "unmet_cost")
    return item.model_copy(update={"rules": rules}) if rules else item


def price_to_serve(problem: Problem) -> float:
    """Return $/h for each unserved QPS, at priority 1, above the cost of serving any demand of the problem's models.

    For each model: the dearest way to serve all of it, relative to the smallest of its demands.
    """
    return max((_price_of(problem, model) for model in problem.models), default=0.0)


def _price_of(problem: Problem, model: ModelProblem) -> float:
    demands = [item.qps for item in model.demand if item.qps > 0]
    if not demands or model.priority <= 0:
        return 0.0
    unit_cost: dict[str, float] = {}
    for cell in problem.supply:
        unit_cost[cell.hardware] = max(unit_cost.get(cell.hardware, 0.0), cell.unit_cost)
    copies = 2 if model.survive == "region" else 1
    dearest = 0.0
    for part in model.parts:
        replicas = copies * sum(max(part.min_replicas, _most_replicas(part.options, qps)) for qps in demands)
        cost = max(option.units * unit_cost.get(option.hardware, 0.0) for option in part.options)
        dearest += replicas * (cost + problem.objective.move_cost)
    farthest = max((rtt for row in problem.rtt_ms for rtt in row), default=0.0)
    latency = problem.objective.latency_weight * sum(demands) * farthest
    return MARGIN * (dearest + latency + 1.0) / (model.priority * min(demands))


def _most_replicas(options: Collection[PartOption], qps: float) -> int:
    """Return the replicas of the slowest option that `qps` needs."""
    return max(math.ceil(qps / option.qps) for option in options)


def _list_servable(problem: Problem, plan: Plan, kept: frozenset[str]) -> Iterator[ModelProblem]:
    """Yield models with demand that no hard rule keeps unserved, the most important first."""
    names = {item.model for item in plan.unmet if NO_RULE.intersection(item.rules)} - kept
    models = (model for model in problem.models if model.model in names)
    yield from sorted(models, key=lambda model: (-model.priority, model.model))


def _merge_plans(plan: Plan, alone: Plan, model: str) -> Plan:
    """Return the plan with one model's rows from another plan."""
    return plan.model_copy(
        update={
            "replicas": (*(row for row in plan.replicas if row.model != model), *alone.replicas),
            "traffic": (*(row for row in plan.traffic if row.model != model), *alone.traffic),
        }
    )


def _sum_unserved(plan: Plan, model: str) -> float:
    return sum(item.qps for item in plan.unmet if item.model == model)
