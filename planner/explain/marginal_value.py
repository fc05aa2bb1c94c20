"""What one more of a limit is worth: prices for a fleet of any size, and for a small one what it saves, planned again.

Called by the explanation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipnext.model.explanation import Change
from ipnext.model.plan import Problem
from planner.core.figures import rounded
from planner.explain.shadow_prices import limit_figures, prices
from planner.explain.what_if import changed
from planner.solve import solve

MOST_RELAXED = 20
"""Models up to which limits are priced by the relaxation; beyond it the prices of the fleet-scale search stand in."""

MOST_PLANNED = 5
"""Models up to which the problem is planned again with one more of each limit."""

GAP = 1e-4
"""Of those plans: their differences are what counts."""

SECONDS = 2.0
"""For each of those plans; by the count of nodes that they stand for, where the machine is not slower still."""

RELAXATION = (
    "the relaxation of the stated problem (parts of replicas allowed), solved again with one more of each limit"
)
SEARCH = "the search for plans of whole fleets: at these prices the models, each on its own, ask for what there is"


@dataclass(frozen=True)
class Worth:
    """By rule, $/h: the price of one more of a limit, and what one more saves where that is proved."""

    price: Mapping[str, float] = field(default_factory=dict)
    saves: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    """Where the prices come from, in words."""


def worth_of(problem: Problem) -> Worth:
    """Prices of every limit of a valid problem; savings too where it has at most MOST_PLANNED models."""
    models = len(problem.models)
    saves = savings(problem) if models <= MOST_PLANNED else {}
    if models <= MOST_RELAXED:
        return Worth(prices(problem), saves, RELAXATION)
    return Worth(_searched(problem), saves, SEARCH)


def _searched(problem: Problem) -> Mapping[str, float]:
    """The prices of the fleet-scale search by rule; a model's own budget has none there."""
    from planner.fleet.solver import prices_of  # noqa: PLC0415 - numba takes a second to import: only where it is needed

    found = prices_of(problem)
    owners = dict.fromkeys([*(owner.owner for owner in problem.owners), *(model.owner for model in problem.models)])
    by_rule = {
        f"supply {region}/{kind}": rounded(float(found.supply[r, h]))
        for r, region in enumerate(problem.regions)
        for h, kind in enumerate(problem.hardware)
    }
    by_rule |= {f"budget owner {owner}": rounded(float(found.owner[k])) for k, owner in enumerate(owners)}
    return {**by_rule, "moves": rounded(found.moves)}


def savings(problem: Problem) -> Mapping[str, float]:
    """$/h that the best plan costs less with one more of a limit; only what is proved to a ten-thousandth of the plan."""
    now = _least(problem)
    if now is None:
        return {}
    found: dict[str, float] = {}
    for rule in limit_figures(problem):
        then = _least(changed(problem, [_one_more(rule)]))
        if then is not None:
            saved = rounded(now - then)
            found[rule] = saved if saved > GAP * now else 0.0
    return found


def _one_more(rule: str) -> Change:
    kind, _, target = rule.partition(" ")
    if kind == "moves":
        return Change(kind="limit", target="max_moves", operation="add", figure=1.0)
    if kind == "budget":
        return Change(kind="budget", target=target.replace(" ", "/", 1), operation="add", figure=1.0)
    return Change(kind="supply", target=target, operation="add", figure=1.0)


def _least(problem: Problem) -> float | None:
    """The least objective, $/h; None where it is not proved within GAP."""
    limits = problem.limits.model_copy(update={"gap": GAP, "time_seconds": min(SECONDS, problem.limits.time_seconds)})
    plan = solve(problem.model_copy(update={"limits": limits}), method="reference")
    return plan.objective if plan.gap <= GAP else None
