"""From a problem to a plan that keeps every rule: the two entry points of the planner.

Called by the command and the planning activity. Whatever the solver says, only a plan that `planner.solution.check`
accepts leaves here. The same problem gives the same plan, byte for byte, unless the time limit ends the search first.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ipnext.errors import Infeasible, InvalidInput
from ipnext.model.plan import Plan, Problem, SolverInfo, Unmet
from planner.diff import replica_of, share_of
from planner.explain import explain, unmet_of
from planner.extraction import Holding, routed, trimmed
from planner.formulation import Answer, Formulation
from planner.index import Index
from planner.problem import validate
from planner.residual import kept_of, only, residual
from planner.solution import Violation, check, rules_of

EVERY_PLAN = "all plans of the stated problem"
KEPT_PLANS = "plans that leave every other model as it runs now"
METHOD = "compact MIP (cvxpy, HiGHS)"


def solve(problem: Problem) -> Plan:
    """The best plan found for all models. Demand that cannot be held is left unmet, with the rules that bind.

    Raises InvalidInput. `solver.seconds` is 0: a measured time would make two plans of one problem differ.
    """
    validate(problem)
    return _plan(problem, problem, Holding({}, {}), ())


def place(problem: Problem, models: Collection[str]) -> Plan:
    """A plan that places only `models`; every other one keeps its replicas and traffic of `problem.current` exactly.

    Raises InvalidInput for a model the problem does not have, and Infeasible where the others, as they run now, already
    break a rule: its message names them, so that they can be placed too.
    """
    validate(problem)
    names = [model.model for model in problem.models]
    for name in models:
        if name not in names:
            msg = f"models: unknown model {name!r}; known: {', '.join(names)}"
            raise InvalidInput(msg, field="models", value=name, allowed=names)
    kept = [name for name in names if name not in models]
    holding = kept_of(problem, kept)
    _refuse_broken(problem, kept, holding)
    return _plan(problem, residual(problem, holding, models), holding, kept)


def _refuse_broken(problem: Problem, kept: Collection[str], holding: Holding) -> None:
    others = only(problem, kept)
    broken = check(others, _assembled(others, holding, _Found(holding, 0.0, "feasible", 0), kept))
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


def _plan(problem: Problem, rest: Problem, kept: Holding, kept_models: Collection[str]) -> Plan:
    """The plan of the whole problem: `rest` solved, beside what is kept."""
    found = _search(rest)
    whole = Holding({**kept.counts, **found.holding.counts}, {**kept.shares, **found.holding.shares})
    base = _objective(Index(only(problem, kept_models)), kept)
    total = _Found(whole, base + found.bound, found.ended, found.iterations)
    plan = _assembled(problem, whole, total, kept_models)
    broken = check(problem, plan)
    if broken:
        rules = rules_of(broken)
        msg = f"no plan keeps every rule: {'; '.join(rules)}"
        raise Infeasible(msg, rules=rules)
    return plan


def _search(problem: Problem) -> _Found:
    """The best valid holding among the solver's, the current one and none at all."""
    index = Index(problem)
    answer = _answer(problem, index)
    ended = "time_limit" if answer.time_ran_out else "feasible"
    valid = [holding for holding in _candidates(index, answer) if not _broken(problem, holding)]
    if not valid:
        msg = "no plan keeps every rule, not even an empty one"
        raise Infeasible(msg, rules=rules_of(_broken(problem, Holding({}, {}))))
    best = min(valid, key=lambda holding: _objective(index, holding))
    return _Found(best, answer.bound, ended, answer.iterations)


def _answer(problem: Problem, index: Index) -> Answer:
    """The solver's answer; without a column to choose, the empty plan is the best one."""
    if index.placements and index.routes:
        return Formulation(problem).solve()
    return Answer(None, None, _objective(index, Holding({}, {})), time_ran_out=False, iterations=0)


def _candidates(index: Index, answer: Answer) -> Iterator[Holding]:
    if answer.replicas is not None and answer.traffic is not None:
        rounded = {place.key: round(float(n)) for place, n in zip(index.placements, answer.replicas, strict=True)}
        counts = trimmed(index, rounded, [float(y) for y in answer.traffic])
        yield Holding(counts, routed(index, counts))
    running = {place.key: min(place.current, place.largest) for place in index.placements}
    counts = {key: count for key, count in running.items() if count}
    yield Holding(counts, routed(index, counts))
    yield Holding({}, routed(index, {}))


def _broken(problem: Problem, holding: Holding) -> tuple[Violation, ...]:
    return check(problem, _assembled(problem, holding, _Found(holding, 0.0, "feasible", 0), ()))


def _cost(index: Index, holding: Holding) -> float:
    """$/h of the replicas."""
    units = {(m.model, p.part, o.hardware): o.units for m in index.problem.models for p in m.parts for o in p.options}
    return sum(
        count * units[model, part, hardware] * index.unit_cost.get((region, hardware), 0.0)
        for (model, part, region, hardware), count in sorted(holding.counts.items())
    )


def _objective(index: Index, holding: Holding) -> float:
    """$/h of a holding: hardware, latency, replicas started, demand left unmet."""
    weights = index.problem.objective
    missing = unmet_of(index, holding.shares)
    latency = sum(route.qps * route.rtt_ms * holding.shares.get(route.key, 0.0) for route in index.routes)
    started = sum(max(0, count - index.current.get(key, 0)) for key, count in holding.counts.items())
    unmet = sum(demand.unmet_cost * missing.get((demand.model, demand.region), 0.0) for demand in index.demands)
    return _cost(index, holding) + weights.latency_weight * latency + weights.move_cost * started + unmet


def _assembled(problem: Problem, holding: Holding, found: _Found, kept: Collection[str]) -> Plan:
    """The plan document of a holding, in canonical order."""
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
        bound_covers=KEPT_PLANS if kept else EVERY_PLAN,
        cost_per_hour=_digits(_cost(index, holding)),
        replicas=tuple(replica_of(key, count) for key, count in sorted(holding.counts.items())),
        traffic=tuple(share_of(key, fraction) for key, fraction in sorted(holding.shares.items())),
        unmet=_unmet(index, holding, kept, "time_seconds" if found.ended == "time_limit" else "gap"),
        solver=SolverInfo(method=METHOD, seconds=0.0, iterations=found.iterations),
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
    """Twelve digits: what two machines agree on."""
    return float(f"{figure:.12g}")
