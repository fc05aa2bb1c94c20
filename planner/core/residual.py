"""The residual problem if some models keep their placements. Called by `planner.solve.place`."""

from collections import defaultdict
from collections.abc import Collection

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import CurrentState, Problem
from planner.core.index import counts_of, shares_of
from planner.core.solution import Holding


def current_holding(problem: Problem, kept: Collection[str]) -> Holding:
    """Return the current state of the models in `kept`.

    Raises InvalidInput if it needs hardware they have no option for.
    """
    current = _of_models(problem.current, frozenset(kept))
    options = {(m.model, p.part, o.hardware) for m in problem.models for p in m.parts for o in p.options}
    for item in current.replicas:
        if item.count and (item.model, item.part, item.hardware) not in options:
            msg = (
                f"current.replicas: {item.model}/{item.part} runs on {item.hardware}, for which it has no option; "
                f"add the option or place {item.model} too"
            )
            raise InvalidInput(msg, field="current.replicas", value=item.hardware)
    return Holding(counts_of(current), shares_of(current))


def only(problem: Problem, models: Collection[str]) -> Problem:
    """Return the problem of these models alone, with the whole supply and all budgets."""
    wanted = frozenset(models)
    return problem.model_copy(
        update={
            "models": tuple(model for model in problem.models if model.model in wanted),
            "current": _of_models(problem.current, wanted),
        }
    )


def residual(problem: Problem, holding: Holding, models: Collection[str]) -> Problem:
    """Return the problem of `models` on the supply and owners' budgets that `holding` leaves."""
    units, spent = _sum_usage(problem, holding)
    supply = tuple(
        item.model_copy(update={"units": max(0.0, item.units - units[item.region, item.hardware])})
        for item in problem.supply
    )
    owners = tuple(
        owner.model_copy(update={"budget_per_hour": max(0.0, owner.budget_per_hour - spent[owner.owner])})
        if owner.budget_per_hour is not None
        else owner
        for owner in problem.owners
    )
    return only(problem, models).model_copy(update={"supply": supply, "owners": owners})


def _of_models(state: CurrentState, models: frozenset[str]) -> CurrentState:
    return CurrentState(
        replicas=tuple(item for item in state.replicas if item.model in models),
        traffic=tuple(item for item in state.traffic if item.model in models),
    )


def _sum_usage(problem: Problem, holding: Holding) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Return the units by region and hardware, and the $/h by owner, that a holding uses."""
    unit_cost = {(item.region, item.hardware): item.unit_cost for item in problem.supply}
    owner = {model.model: model.owner for model in problem.models}
    option = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
    units: dict[tuple[str, str], float] = defaultdict(float)
    spent: dict[str, float] = defaultdict(float)
    for (model, part, region, hardware), count in holding.counts.items():
        taken = count * option[model, part, hardware]
        units[region, hardware] += taken
        spent[owner[model]] += taken * unit_cost.get((region, hardware), 0.0)
    return units, spent
