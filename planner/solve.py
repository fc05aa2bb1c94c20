"""Planning entry points: from a problem to a plan that keeps every rule.

Called by the command and the planning activity. They use two solvers: the readable reference
(`planner.exact.formulation`) for small problems, and the one for fleets (`planner.fleet.solver`). Whatever a solver
returns, only a plan that `planner.verify.plan_checker.check` accepts is returned from here. The same problem gives the
same plan, byte for byte, unless the time limit ends the search first.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ipnext.errors import Infeasible, InvalidInput
from ipnext.model.planning.plan import Plan, Problem, SolverInfo, Unmet
from planner.core.arrays import FleetArrays
from planner.core.diff import replica_of, share_of
from planner.core.index import Index
from planner.core.residual import current_holding, only, residual
from planner.core.solution import Holding, route_traffic, trim_replicas
from planner.core.unmet_reasons import explain, unmet_of
from planner.exact.formulation import Formulation
from planner.io.problem import validate
from planner.plan_fit import holding_of as held_by
from planner.verify.plan_checker import Violation, check, rules_of

EVERY_PLAN = "all plans of the stated problem"
KEPT_PLANS = "plans that leave every other model as it runs now"

Method = Literal["auto", "reference", "fleet"]
"""`reference`: the compact program alone; `fleet`: prices and configurations alone; `auto`: chosen by size."""

METHODS: Mapping[str, str] = {
    "reference": "compact MIP (cvxpy, HiGHS)",
    "fleet": "prices and configurations (numba, HiGHS)",
    "both": "compact MIP (cvxpy, HiGHS), then prices and configurations (numba, HiGHS)",
}

REFERENCE_COLUMNS = 3_000
"""Placements and routes up to which `auto` uses the reference at all."""


PLACE_COLUMNS = 100
"""The same for `place`, which has milliseconds."""


def solve(problem: Problem, *, method: Method = "auto") -> Plan:
    """Return the best plan found for all models. Demand that does not fit is left unmet, with the rules that bind.

    Raises InvalidInput. `solver.seconds` is 0: a measured time would make two plans of one problem differ.
    """
    validate(problem)
    return _plan(problem, problem, Holding({}, {}), (), method)


def place(problem: Problem, models: Collection[str], *, method: Method = "auto") -> Plan:
    """Return a plan that places only `models`.

    Every other one keeps its replicas and traffic of `problem.current` exactly. Raises InvalidInput for a model the
    problem does not have, and Infeasible if the others, as they run now, already break a rule: its message names them,
    so that they can be placed too.
    """
    validate(problem)
    names = [model.model for model in problem.models]
    for name in models:
        if name not in names:
            msg = f"models: unknown model {name!r}; known: {', '.join(names)}"
            raise InvalidInput(msg, field="models", value=name, allowed=names)
    kept = [name for name in names if name not in models]
    holding = current_holding(problem, kept)
    _refuse_broken(problem, kept, holding)
    rest = residual(problem, holding, models)
    if method == "auto" and _columns(rest) > PLACE_COLUMNS:
        method = "fleet"  # a publish must not wait for a proof
    return _plan(problem, rest, holding, kept, method)


def restate(problem: Problem, plan: Plan, *, kept: Collection[str] = ()) -> Plan:
    """Return a plan whose replicas or traffic were edited, with figures and unserved demand computed afresh.

    `bound` and the solver's line stay; models of `kept` were not planned. The rows are not checked.
    """
    ended = "time_limit" if plan.status == "time_limit" else "feasible"
    found = _Found(held_by(plan), plan.bound, ended, plan.solver.iterations, "reference", plan.bound_covers)
    told = _assemble_plan(problem, found.holding, found, kept)
    return told.model_copy(update={"solver": plan.solver, "bound_covers": plan.bound_covers})


def _refuse_broken(problem: Problem, kept: Collection[str], holding: Holding) -> None:
    others = only(problem, kept)
    broken = check(others, _assemble_plan(others, holding, _Found(holding, 0.0, "feasible", 0, "reference"), kept))
    if broken:
        rules = rules_of(broken)
        msg = f"the models that stay as they are break {'; '.join(rules)}; place those models too"
        raise Infeasible(msg, rules=rules)


@dataclass(frozen=True)
class _Found:
    """The best holding of the models to place, the bound on their objective, and how the search ended."""

    holding: Holding
    bound: float
    ended: str
    iterations: int
    method: str
    covers: str = EVERY_PLAN


def _plan(problem: Problem, rest: Problem, kept: Holding, kept_models: Collection[str], method: Method) -> Plan:
    """Return the plan of the whole problem: `rest` solved, together with the kept models."""
    found = _search(rest, method)
    whole = Holding({**kept.counts, **found.holding.counts}, {**kept.shares, **found.holding.shares})
    base = _objective(Index(only(problem, kept_models)), kept)
    total = replace(found, holding=whole, bound=base + found.bound)
    plan = _assemble_plan(problem, whole, total, kept_models)
    broken = check(problem, plan)
    if broken:
        rules = rules_of(broken)
        msg = f"no plan keeps every rule: {'; '.join(rules)}"
        raise Infeasible(msg, rules=rules)
    return plan


def _search(problem: Problem, method: Method) -> _Found:
    """Return the best valid holding, and the better of the solvers' bounds.

    Candidates are the solvers' holdings, the current one and none at all.
    """
    index = Index(problem)
    answers = list(_answers(problem, index, method))
    candidates = [*(holding for answer in answers for holding in answer.holdings), *_others(index)]
    valid = [holding for holding in candidates if not _broken(problem, holding)]
    if not valid:
        msg = "no plan keeps every rule, not even an empty one"
        raise Infeasible(msg, rules=rules_of(_broken(problem, Holding({}, {}))))
    best = min(valid, key=lambda holding: _objective(index, holding))
    proof = max(answers, key=lambda answer: answer.bound)
    return _Found(
        best,
        proof.bound,
        "time_limit" if any(answer.time_ran_out for answer in answers) else "feasible",
        sum(answer.iterations for answer in answers),
        "both" if len(answers) > 1 else answers[0].method,
        proof.covers,
    )


@dataclass(frozen=True)
class _Answer:
    """Result of one solver."""

    holdings: tuple[Holding, ...]
    bound: float
    time_ran_out: bool
    iterations: int
    method: str
    covers: str = EVERY_PLAN


def _answers(problem: Problem, index: Index, method: Method) -> Iterator[_Answer]:
    """Yield the reference's answer if the problem is small.

    Yield the other solver's if a gap remains, or the problem is large.
    """
    if not asks_fleet(problem, method):
        first = _of_reference(problem, index)
        yield first
        if method == "reference" or _proves(problem, index, first):
            return
    yield _of_fleet(problem)


def asks_fleet(problem: Problem, method: Method) -> bool:
    """Check whether the fleet's solver is used alone: it needs the kernels."""
    return method == "fleet" or (method == "auto" and _columns(problem) > REFERENCE_COLUMNS)


def _columns(problem: Problem) -> int:
    """Return an upper bound for the number of placements and routes."""
    options = sum(len(part.options) for model in problem.models for part in model.parts)
    demands = sum(len(model.demand) for model in problem.models)
    return (options + demands) * len(problem.regions)


def _proves(problem: Problem, index: Index, answer: _Answer) -> bool:
    valid = [holding for holding in answer.holdings if not _broken(problem, holding)]
    return any(_gap(_objective(index, holding), answer.bound) <= problem.limits.gap + 1e-6 for holding in valid)


def _gap(objective: float, bound: float) -> float:
    return max(0.0, (objective - bound) / objective) if objective > 0 else 0.0


def _of_reference(problem: Problem, index: Index) -> _Answer:
    """Return the compact program's answer; if there is no column to choose, the empty plan is the best one."""
    if not (index.placements and index.routes):
        empty = Holding({}, route_traffic(index, {}))
        return _Answer((empty,), _objective(index, empty), time_ran_out=False, iterations=0, method="reference")
    answer = Formulation(problem).solve()
    holdings: tuple[Holding, ...] = ()
    if answer.replicas is not None and answer.traffic is not None:
        rounded = {place.key: round(float(n)) for place, n in zip(index.placements, answer.replicas, strict=True)}
        counts = trim_replicas(index, rounded, [float(y) for y in answer.traffic])
        holdings = (Holding(counts, route_traffic(index, counts)),)
    return _Answer(holdings, answer.bound, answer.time_ran_out, answer.iterations, "reference")


def _of_fleet(problem: Problem) -> _Answer:
    from planner.fleet.assembly import holding_of  # noqa: PLC0415 - numba takes a second to import: only if needed
    from planner.fleet.solver import solve_fleet  # noqa: PLC0415

    arrays = FleetArrays.of(problem)
    answer = solve_fleet(problem, arrays)
    holding = holding_of(problem, arrays, answer.configurations)
    covers = EVERY_PLAN
    if answer.considered:
        covers += (
            f" (of plans made of the {answer.considered} configurations considered: {answer.considered_bound:.12g})"
        )
    return _Answer((holding,), answer.bound, answer.out_of_time, answer.rounds, "fleet", covers)


def _others(index: Index) -> Iterator[Holding]:
    """Yield the current holding, if the problem is small enough for it to matter, and the empty one."""
    if _columns(index.problem) <= REFERENCE_COLUMNS:
        running = {place.key: min(place.current, place.largest) for place in index.placements}
        counts = {key: count for key, count in running.items() if count}
        yield Holding(counts, route_traffic(index, counts))
        yield Holding({}, route_traffic(index, {}))
    else:
        yield Holding({}, {})


def _broken(problem: Problem, holding: Holding) -> tuple[Violation, ...]:
    return check(problem, _assemble_plan(problem, holding, _Found(holding, 0.0, "feasible", 0, "reference"), ()))


def _cost(index: Index, holding: Holding) -> float:
    """Return $/h of the replicas."""
    units = {(m.model, p.part, o.hardware): o.units for m in index.problem.models for p in m.parts for o in p.options}
    return sum(
        count * units[model, part, hardware] * index.unit_cost.get((region, hardware), 0.0)
        for (model, part, region, hardware), count in sorted(holding.counts.items())
    )


def _objective(index: Index, holding: Holding) -> float:
    """Return $/h of a holding: hardware, latency, replicas started, demand left unmet."""
    weights = index.problem.objective
    demand = {(demand.model, demand.region): demand for demand in index.demands}
    missing = unmet_of(index, holding.shares)
    latency = sum(
        demand[model, origin].qps * index.rtt[origin, to] * fraction
        for (model, origin, to), fraction in sorted(holding.shares.items())
        if (model, origin) in demand
    )
    started = sum(max(0, count - index.current.get(key, 0)) for key, count in holding.counts.items())
    unmet = sum(demand[key].unmet_cost * fraction for key, fraction in missing.items())
    return _cost(index, holding) + weights.latency_weight * latency + weights.move_cost * started + unmet


def _assemble_plan(problem: Problem, holding: Holding, found: _Found, kept: Collection[str]) -> Plan:
    """Return the plan document of a holding, in canonical order."""
    index = Index(problem)
    objective = _digits(_objective(index, holding))
    bound = min(objective, _digits(max(0.0, found.bound)))
    gap = _digits((objective - bound) / objective) if objective > 0 else 0.0
    proved = gap <= problem.limits.gap + 1e-6
    return Plan(
        status="optimal" if proved else "time_limit" if found.ended == "time_limit" else "feasible",
        objective=objective,
        bound=bound,
        gap=gap,
        bound_covers=KEPT_PLANS if kept else found.covers,
        cost_per_hour=_digits(_cost(index, holding)),
        replicas=tuple(replica_of(key, count) for key, count in sorted(holding.counts.items())),
        traffic=tuple(share_of(key, fraction) for key, fraction in sorted(holding.shares.items())),
        unmet=_unmet(index, holding, kept, "time_seconds" if found.ended == "time_limit" else "gap"),
        solver=SolverInfo(method=METHODS[found.method], seconds=0.0, iterations=found.iterations),
    )


def _unmet(index: Index, holding: Holding, kept: Collection[str], otherwise: str) -> tuple[Unmet, ...]:
    missing = unmet_of(index, holding.shares)
    qps: dict[tuple[str, str], float] = defaultdict(float)
    qps |= {(demand.model, demand.region): demand.qps for demand in index.demands}
    rules = explain(index, holding, kept=kept, otherwise=otherwise)
    return tuple(
        Unmet(model=model, region=region, qps=float(f"{fraction * qps[model, region]:.8g}"), rules=rules[model, region])
        for (model, region), fraction in sorted(missing.items())
    )


def _digits(figure: float) -> float:
    """Round to twelve digits, on which two machines agree."""
    return float(f"{figure:.12g}")
