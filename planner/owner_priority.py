"""Owners of a higher priority are served first if supply is short.

Called by `planner.last_resort` with the best plan of the whole fleet. That plan weighs unserved demand by the
priorities of models, so it may leave demand of an important owner unserved because serving it takes more units than
another owner's. Then the fleet is planned once more in levels: the models of the owners of the highest priority on the
whole supply, those of the next priority on the residual, and so on. A fleet without such a shortage keeps its plan:
priorities cost nothing there.
"""

from collections.abc import Callable
from typing import Final

from ipnext.errors import Infeasible
from ipnext.model.planning.plan import Plan, Problem
from planner import solve as priced
from planner.core.owner_levels import compare_by_level, unmet_by_level
from planner.plan_fit import leftover
from planner.verify.plan_checker import check

NOISE: Final = 1e-6
"""Relative: unserved demand that differs by less is the same."""


def by_priority(problem: Problem, plan: Plan, *, solve: Callable[[Problem], Plan]) -> Plan:
    """Return `plan`, or one in levels if it serves more of the owners of the highest priority whose demand is short.

    `solve` plans a smaller problem. The levels share the time limit of the problem once more.
    """
    if not is_overtaken(problem, plan):
        return plan
    by_level = _in_levels(problem, plan, solve)
    if by_level is None or check(problem, by_level):
        return plan
    better = compare_by_level(unmet_by_level(problem, by_level), unmet_by_level(problem, plan), noise=NOISE) < 0
    return by_level if better else plan


def is_overtaken(problem: Problem, plan: Plan) -> bool:
    """Check whether demand of an owner is unserved while an owner of lower priority holds replicas."""
    levels = problem.levels
    if len(levels) < 2 or not plan.unmet:
        return False
    short, holding = {item.model for item in plan.unmet}, {row.model for row in plan.replicas if row.count}
    first = next((i for i, models in enumerate(levels) if models & short), len(levels))
    return any(models & holding for models in levels[first + 1 :])


def _in_levels(problem: Problem, plan: Plan, solve: Callable[[Problem], Plan]) -> Plan | None:
    """Return the plan made level by level; None if some level has no plan on the residual of those above it."""
    levels = problem.levels
    limits = problem.limits.model_copy(update={"time_seconds": problem.limits.time_seconds / len(levels)})
    so_far = plan.model_copy(update={"replicas": (), "traffic": (), "unmet": ()})
    for models in levels:
        rest = leftover(problem, so_far, models)
        left = limits.model_copy(update={"max_moves": rest.limits.max_moves})
        try:
            found = solve(rest.model_copy(update={"limits": left}))
        except Infeasible:
            return None
        so_far = so_far.model_copy(
            update={
                "replicas": (*so_far.replicas, *found.replicas),
                "traffic": (*so_far.traffic, *found.traffic),
            }
        )
    return priced.restate(problem, so_far)
