"""A partition in the manner of POP (Narayanan et al., SOSP 2021).

Models in random groups, each with its part of every limit.

Each of k groups gets 1/k of every supply and, of an owner's budget, the part that its models make of the owner's
demand. A model too large for one group is split, as POP splits large clients: every group gets 1/k of its demand. Our
own solver solves the groups one after the other; the union is a plan, because the parts of the limits add up to the
limits. What runs now is not looked at.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.planner.holding import Holding
from benchmarks.planner.peers.greedy import sizes_of
from ipnext.model.planning.plan import CurrentState, ModelProblem, Owner, Plan, Problem
from planner.core.arrays import FleetArrays
from planner.solve import Method, solve

MODELS_A_GROUP = 250
FEWEST_GROUPS = 4
LARGE = 0.03
"""A model that would make more than this part of its group's cost is split."""


def solve_partition(problem: Problem, method: Method, seed: int = 0) -> Holding:
    """Solve each group, and return the union of the groups' plans."""
    groups = max(FEWEST_GROUPS, len(problem.models) // MODELS_A_GROUP)
    plans = [solve(part, method=method) for part in parts_of(problem, groups, seed)]
    return _union(problem, plans, groups)


def parts_of(problem: Problem, groups: int, seed: int) -> list[Problem]:
    """Return the problem of each group; a group without models has none."""
    size = sizes_of(FleetArrays.of(problem))
    large = size > LARGE * size.sum() / groups
    group = np.random.Generator(np.random.PCG64(seed)).permutation(len(problem.models)) % groups
    members = [
        [
            _split(model, groups) if large[m] else model
            for m, model in enumerate(problem.models)
            if large[m] or group[m] == g
        ]
        for g in range(groups)
    ]
    return [_part(problem, chosen, groups) for chosen in members if chosen]


def _split(model: ModelProblem, groups: int) -> ModelProblem:
    budget = model.budget_per_hour
    return model.model_copy(
        update={
            "demand": tuple(d.model_copy(update={"qps": d.qps / groups}) for d in model.demand),
            "budget_per_hour": None if budget is None else budget / groups,
        }
    )


def _part(problem: Problem, members: Sequence[ModelProblem], groups: int) -> Problem:
    time_seconds = problem.limits.time_seconds / groups
    return problem.model_copy(
        update={
            "models": tuple(members),
            "supply": tuple(item.model_copy(update={"units": item.units / groups}) for item in problem.supply),
            "owners": _owners(problem, members),
            "current": CurrentState(),
            "limits": problem.limits.model_copy(update={"time_seconds": time_seconds}),
        }
    )


def _owners(problem: Problem, members: Sequence[ModelProblem]) -> tuple[Owner, ...]:
    whole, own = _demand(problem.models), _demand(members)
    return tuple(
        owner.model_copy(update={"budget_per_hour": owner.budget_per_hour * own[owner.owner] / whole[owner.owner]})
        if owner.budget_per_hour is not None and whole[owner.owner] > 0
        else owner
        for owner in problem.owners
    )


def _demand(models: Iterable[ModelProblem]) -> dict[str, float]:
    """QPS by owner."""
    total: dict[str, float] = defaultdict(float)
    for model in models:
        total[model.owner] += sum(demand.qps for demand in model.demand)
    return total


def _union(problem: Problem, plans: Sequence[Plan], groups: int) -> Holding:
    """Replicas added up; the traffic of a model that was split weighs 1/k in each group."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    shares: dict[tuple[str, str, str], float] = defaultdict(float)
    parts = Counter(
        model for plan in plans for model in {*(t.model for t in plan.traffic), *(u.model for u in plan.unmet)}
    )
    for plan in plans:
        for row in plan.replicas:
            counts[row.model, row.part, row.region, row.hardware] += row.count
        for share in plan.traffic:
            weight = 1.0 / groups if parts[share.model] > 1 else 1.0
            shares[share.model, share.origin, share.to] += share.fraction * weight
    holding = Holding(problem)
    holding.add(counts, {route: min(1.0, round(fraction, 12)) for route, fraction in shares.items()})
    return holding
