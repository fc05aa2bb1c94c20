"""Unserved demand by the priority of owners, and a comparison of two plans by it.

Called by the planner and by the adoption of its plans, which imports no solver for it.
"""

from collections.abc import Sequence

from ipnext.model.planning.plan import Plan, Problem


def unmet_by_level(problem: Problem, plan: Plan) -> tuple[float, ...]:
    """Return unserved QPS times the models' priority, for each priority of owners, the highest first."""
    priority = {model.model: model.priority for model in problem.models}
    missing: dict[str, float] = {}
    for item in plan.unmet:
        missing[item.model] = missing.get(item.model, 0.0) + item.qps * priority.get(item.model, 1.0)
    levels = problem.levels or (frozenset(),)
    named = frozenset().union(*levels)
    rest = sum(figure for model, figure in missing.items() if model not in named)
    figures = [sum(missing.get(model, 0.0) for model in sorted(models)) for models in levels]
    return (*figures[:-1], figures[-1] + rest)


def compare_by_level(one: Sequence[float], other: Sequence[float], *, noise: float) -> int:
    """Return -1 if `one` leaves less unserved at the first level at which the two differ, 1 if more, else 0."""
    for mine, yours in zip(one, other, strict=True):
        if abs(mine - yours) > noise * max(1.0, yours):
            return -1 if mine < yours else 1
    return 0
