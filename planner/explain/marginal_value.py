"""Shadow price of every limit: prices for a fleet of any size, and for a small one also the savings, by planning again.

Called by the explanation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipnext.model.planning.explanation import ProblemChange
from ipnext.model.planning.plan import Problem
from planner.core.figures import round_figure
from planner.explain.shadow_prices import limit_figures, prices
from planner.explain.what_if import apply_changes
from planner.solve import solve

MOST_RELAXED = 20
"""Models up to which limits are priced by the relaxation; beyond it the prices of the fleet-scale search are used."""

MOST_PLANNED = 5
"""Models up to which the problem is planned again with one more of each limit."""

GAP = 1e-4
"""Of those plans: their differences matter."""

SECONDS = 2.0
"""For each of those plans; the equivalent count of nodes ends them first, unless the machine is slower still."""

RELAXATION = (
    "the relaxation of the stated problem (parts of replicas allowed), solved again with one more of each limit"
)
SEARCH = "the search for plans of whole fleets: at these prices the models, each on its own, ask for what there is"


@dataclass(frozen=True)
class Worth:
    """By rule, $/h: the price of one more of a limit, and the saving by one more if that is proved."""

    price: Mapping[str, float] = field(default_factory=dict)
    saves: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    """Source of the prices, in words."""


def worth_of(problem: Problem) -> Worth:
    """Return prices of every limit of a valid problem; savings too if it has at most MOST_PLANNED models."""
    models = len(problem.models)
    saves = savings(problem) if models <= MOST_PLANNED else {}
    if models <= MOST_RELAXED:
        return Worth(prices(problem), saves, RELAXATION)
    return Worth(_search_prices(problem), saves, SEARCH)


def _search_prices(problem: Problem) -> Mapping[str, float]:
    """Return the prices of the fleet-scale search by rule; a model's budget has none there."""
    from planner.fleet.solver import prices_of  # noqa: PLC0415 - numba takes a second to import: only if needed

    found = prices_of(problem)
    owners = dict.fromkeys([*(owner.owner for owner in problem.owners), *(model.owner for model in problem.models)])
    by_rule = {
        f"supply {region}/{kind}": round_figure(float(found.supply[r, h]))
        for r, region in enumerate(problem.regions)
        for h, kind in enumerate(problem.hardware)
    }
    by_rule |= {f"budget owner {owner}": round_figure(float(found.owner[k])) for k, owner in enumerate(owners)}
    return {**by_rule, "moves": round_figure(found.moves)}


def savings(problem: Problem) -> Mapping[str, float]:
    """Return the $/h saved by the best plan with one more of a limit.

    Only if proved to a ten-thousandth of the plan.
    """
    now = _least(problem)
    if now is None:
        return {}
    found: dict[str, float] = {}
    for rule in limit_figures(problem):
        then = _least(apply_changes(problem, [_one_more(rule)]))
        if then is not None:
            saved = round_figure(now - then)
            found[rule] = saved if saved > GAP * now else 0.0
    return found


def _one_more(rule: str) -> ProblemChange:
    kind, _, target = rule.partition(" ")
    if kind == "moves":
        return ProblemChange(kind="limit", target="max_moves", operation="add", figure=1.0)
    if kind == "budget":
        return ProblemChange(kind="budget", target=target.replace(" ", "/", 1), operation="add", figure=1.0)
    return ProblemChange(kind="supply", target=target, operation="add", figure=1.0)


def _least(problem: Problem) -> float | None:
    """Return the least objective, $/h; None if it is not proved within GAP."""
    limits = problem.limits.model_copy(update={"gap": GAP, "time_seconds": min(SECONDS, problem.limits.time_seconds)})
    plan = solve(problem.model_copy(update={"limits": limits}), method="reference")
    return plan.objective if plan.gap <= GAP else None
