"""Figures of a refusal by budget: the cost of serving everything, and the budget. Pure; money is in $/h."""

from collections.abc import Iterable, Iterator, Mapping

from ipnext.model.planning.plan import Owner, Plan, Problem

BUDGET = "budget "
"""Prefix of the names of these rules: `budget owner a`, `budget model m`."""


def budgets_in(rules: Iterable[str]) -> tuple[str, ...]:
    """Return the rules that are budgets, each once."""
    return tuple(dict.fromkeys(rule for rule in rules if rule.startswith(BUDGET)))


def without_budgets(problem: Problem) -> Problem:
    """Return the problem without budgets, with the cheapest way to serve all demand as its only objective."""
    owners = tuple(owner.model_copy(update={"budget_per_hour": None}) for owner in problem.owners)
    models = tuple(model.model_copy(update={"budget_per_hour": None}) for model in problem.models)
    cheapest = problem.objective.model_copy(update={"latency_weight": 0.0, "move_cost": 0.0})
    return problem.model_copy(update={"owners": owners, "models": models, "objective": cheapest})


def budget_figures(
    rules: Iterable[str], problem: Problem, unbounded: Plan | None, *, owners: Iterable[Owner] = ()
) -> str:
    """Return one sentence for the budgets among `rules`; empty if there is none.

    `unbounded` is a plan of `without_budgets(problem)`; None, or one that serves nothing, if no plan was found.
    `owners` lists those whose whole budget is known, if the problem has only the remainder that other models leave of
    it.
    """
    spent = _spent(problem, unbounded) if unbounded is not None and unbounded.replicas else {}
    limits, whole = _limits(problem), {f"{BUDGET}owner {owner.owner}": owner.budget_per_hour for owner in owners}
    told = [
        _describe_limit(rule, spent.get(rule), whole.get(rule) or limits[rule], left=limits[rule])
        for rule in budgets_in(rules)
        if rule in limits
    ]
    all_of_it = "all" if unbounded is None or not unbounded.unmet else "all that the supply holds"
    return f"to serve {all_of_it}, {'; '.join(told)}" if told and spent else "; ".join(told)


def _describe_limit(rule: str, takes: float | None, limit: float, *, left: float) -> str:
    """Return a text such as: budget owner a would need 1.6 $/h, and is 0.5 $/h, of which other models leave 0.3 $/h."""
    rest = f", of which other models leave {left:.4g} $/h" if left < limit else ""
    return (
        f"{rule} would need {limit - left + takes:.4g} $/h, and is {limit:.4g} $/h{rest}"
        if takes
        else f"{rule} is {limit:.4g} $/h{rest}"
    )


def _limits(problem: Problem) -> Mapping[str, float]:
    named = [
        *((f"{BUDGET}owner {owner.owner}", owner.budget_per_hour) for owner in problem.owners),
        *((f"{BUDGET}model {model.model}", model.budget_per_hour) for model in problem.models),
    ]
    return {rule: limit for rule, limit in named if limit is not None}


def _spent(problem: Problem, plan: Plan) -> Mapping[str, float]:
    """Map each rule to the $/h that the plan spends of it."""
    spent: dict[str, float] = {}
    owners = {model.model: model.owner for model in problem.models}
    for model, cost in _costs(problem, plan):
        for rule in (f"{BUDGET}model {model}", f"{BUDGET}owner {owners[model]}"):
            spent[rule] = spent.get(rule, 0.0) + cost
    return spent


def _costs(problem: Problem, plan: Plan) -> Iterator[tuple[str, float]]:
    """Yield (model, $/h) of each placement."""
    prices = {(item.region, item.hardware): item.unit_cost for item in problem.supply}
    units = {
        (model.model, part.part, option.hardware): option.units
        for model in problem.models
        for part in model.parts
        for option in part.options
    }
    for row in plan.replicas:
        yield row.model, row.count * units[row.model, row.part, row.hardware] * prices[row.region, row.hardware]
