"""A plan against a problem that it may not have been made for: broken rules, and the residual for some of its models.

Called by the explanation, the conflict and the what-if.
"""

from collections.abc import Collection

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import CurrentState, Plan, Problem
from planner.core.index import counts_of, shares_of
from planner.core.residual import residual
from planner.core.solution import Holding
from planner.verify.plan_checker import check, rules_of


def holding_of(state: Plan | CurrentState) -> Holding:
    """Return replicas and shares above zero."""
    plain = CurrentState(replicas=state.replicas, traffic=state.traffic)
    return Holding(counts_of(plain), shares_of(plain))


_OF_FIGURES = frozenset({"cost", "objective", "bound", "gap", "unmet"})
"""Violations of a plan's figures: irrelevant for a plan that was made for another problem."""


def broken_rules(problem: Problem, plan: Plan) -> tuple[str, ...]:
    """Return the rules that the plan breaks, except for its figures.

    Raises InvalidInput for names that the problem lacks.
    """
    found = check(problem, plan)
    for violation in found:
        if violation.rule in {"names", "counts"}:
            msg = f"PLAN: {violation.subject}: {violation.message}; allowed: a plan of this problem"
            raise InvalidInput(msg, field="PLAN", value=violation.subject, allowed=["a plan of this problem"])
    return rules_of([violation for violation in found if violation.rule not in _OF_FIGURES])


def leftover(problem: Problem, state: Plan | CurrentState, models: Collection[str]) -> Problem:
    """Return the problem of `models` on the supply, owners' budgets and `max_moves` that other models of `state` leave.

    Replicas count as started against the current placement of `problem`. If the others exceed a limit, it is 0.
    """
    whole = holding_of(state)
    others = Holding(
        {key: count for key, count in whole.counts.items() if key[0] not in models},
        {key: fraction for key, fraction in whole.shares.items() if key[0] not in models},
    )
    rest = residual(problem, others, models)
    if problem.limits.max_moves is None:
        return rest
    running = counts_of(problem.current)
    started = sum(max(0, count - running.get(key, 0)) for key, count in others.counts.items())
    left = max(0, problem.limits.max_moves - started)
    return rest.model_copy(update={"limits": problem.limits.model_copy(update={"max_moves": left})})
