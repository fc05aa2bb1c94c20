"""Limits that together leave no room to serve all demand: an irreducible infeasible set (IIS) of named limits.

Called by the explanation and the command. Each query to the solver is the reference formulation with nothing unmet; a
limit is dropped by stating the problem without it. Deletion filtering: Chinneck and Dravnieks, ORSA Journal on
Computing 3(2), 1991; here by halves, so that many needless limits go at once.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cvxpy as cp

from ipnext.errors import DeadlineExceeded, InvalidInput
from ipnext.model.planning.explanation import ConflictMember, LimitConflict
from ipnext.model.planning.plan import CurrentState, ModelProblem, PartProblem, Plan, Problem, RegionSupply
from planner.core.figures import round_figure
from planner.core.index import Index
from planner.exact.formulation import Constraint, Expression, Formulation, SolverAnswer
from planner.io.problem import validate
from planner.plan_fit import leftover

MOST_COLUMNS = 5_000
"""Placements and routes of the requested models, at most: the reference formulation seldom answers for more."""

MOST_SECONDS = 20.0
"""For one query to the solver, if the problem allows more."""

MOST_UNSURE = 3
"""Queries without an answer after which no more are made."""

ALL = "all models share the limits"
KEPT = "every other model keeps what it has"


class Limit(NamedTuple):
    """A limit of a problem: its rule, and its subject."""

    rule: str
    subject: str

    @property
    def name(self) -> str:
        """Name in plans and for users."""
        return f"{self.rule} {self.subject}".strip()


def conflict(
    problem: Problem, *, models: Collection[str] | None = None, state: Plan | CurrentState | None = None
) -> LimitConflict | None:
    """Return a minimal set of limits that together forbid serving all demand of `models`; None if all can be served.

    Without `models`: all of them. With them: on the residual that the other models of `state` (by default the current
    placement) leave. With all limits outside the set dropped, the set leaves no plan without unmet demand; with any one
    member dropped as well there is one. There may be other such sets. `limits_of` lists the limits, `without` defines
    their removal. Raises InvalidInput (also beyond MOST_COLUMNS), and DeadlineExceeded if the solver can't decide.
    """
    validate(problem)
    wished = _select_models(problem, models)
    stated = problem if models is None else leftover(problem, state or problem.current, wished)
    options = sum(len(part.options) for model in stated.models for part in model.parts)
    columns = (options + sum(len(model.demand) for model in stated.models)) * len(stated.regions)
    if columns > MOST_COLUMNS:
        msg = (
            f"models: {len(wished)} with {columns} placements and routes are too many for one conflict; "
            "name fewer (--model)"
        )
        raise InvalidInput(msg, field="models", value=len(wished), allowed=[f"at most {MOST_COLUMNS} of them"])
    return conflict_alone(stated, beside=ALL if models is None else KEPT)


def conflict_alone(problem: Problem, *, beside: str = KEPT) -> LimitConflict | None:
    """Find a conflict of all models of a problem that need not be valid as a whole, such as a `leftover`.

    See `conflict`.
    """
    return _Filter(problem, tuple(model.model for model in problem.models), beside).find_conflict()


def _select_models(problem: Problem, models: Collection[str] | None) -> tuple[str, ...]:
    names = [model.model for model in problem.models]
    for name in models or ():
        if name not in names:
            msg = f"models: unknown model {name!r}; known: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
            raise InvalidInput(msg, field="models", value=name, allowed=names)
    return tuple(name for name in names if models is None or name in models)


def limits_of(problem: Problem) -> tuple[Limit, ...]:
    """Return every limit of the problem that can bind, those that are better named last.

    `min_replicas m/p`, `survive model m`, `latency model m`, `moves`, `budget model m`, `budget owner o`, `supply r/h`.
    """
    served = [model for model in problem.models if any(demand.qps > 0 for demand in model.demand)]
    rtt = Index(problem).rtt
    farthest = {
        model.model: max(rtt[demand.region, region] for demand in model.demand for region in problem.regions)
        for model in served
    }
    kinds = {option.hardware for model in served for part in model.parts for option in part.options}
    owners = {model.owner for model in served}
    return (
        *(Limit("min_replicas", f"{m.model}/{p.part}") for m in served for p in m.parts if p.min_replicas > 1),
        *(Limit("survive model", m.model) for m in served if m.survive == "region"),
        *(Limit("latency model", m.model) for m in served if farthest[m.model] > m.latency_tolerance_ms),
        *([Limit("moves", "")] if served and problem.limits.max_moves is not None else []),
        *(Limit("budget model", m.model) for m in served if m.budget_per_hour is not None),
        *(
            Limit("budget owner", o.owner)
            for o in problem.owners
            if o.owner in owners and o.budget_per_hour is not None
        ),
        *(Limit("supply", f"{r}/{h}") for r in problem.regions for h in problem.hardware if h in kinds),
    )


def without(problem: Problem, dropped: Collection[Limit]) -> Problem:
    """Return the problem without some of its limits.

    `supply` becomes as much as all demand could require (at the kind's highest unit cost if the cell had no entry), a
    tolerance the longest rtt, `min_replicas` 1; `survive`, budgets and `max_moves` are lifted.
    """
    gone = set(dropped)
    farthest = max(max(row) for row in problem.rtt_ms)
    owners = tuple(
        owner.model_copy(update={"budget_per_hour": None}) if Limit("budget owner", owner.owner) in gone else owner
        for owner in problem.owners
    )
    return problem.model_copy(
        update={
            "models": tuple(_model_without(model, gone, farthest) for model in problem.models),
            "owners": owners,
            "supply": tuple(_supply_without(problem, gone)),
            "limits": problem.limits.model_copy(update={"max_moves": None})
            if Limit("moves", "") in gone
            else problem.limits,
        }
    )


def _model_without(model: ModelProblem, gone: Collection[Limit], farthest: float) -> ModelProblem:
    changes: dict[str, object] = {}
    if Limit("survive model", model.model) in gone:
        changes["survive"] = "none"
    if Limit("latency model", model.model) in gone:
        changes["latency_tolerance_ms"] = farthest
    if Limit("budget model", model.model) in gone:
        changes["budget_per_hour"] = None
    changes["parts"] = tuple(_part_without(model, part, gone) for part in model.parts)
    return model.model_copy(update=changes)


def _part_without(model: ModelProblem, part: PartProblem, gone: Collection[Limit]) -> PartProblem:
    lifted = Limit("min_replicas", f"{model.model}/{part.part}") in gone
    return part.model_copy(update={"min_replicas": min(1, part.min_replicas)}) if lifted else part


def _supply_without(problem: Problem, gone: Collection[Limit]) -> Iterator[RegionSupply]:
    listed = {(item.region, item.hardware): item for item in problem.supply}
    dearest: dict[str, float] = {}
    for known in problem.supply:
        dearest[known.hardware] = max(known.unit_cost, dearest.get(known.hardware, 0.0))
    enough = enough_units(problem)
    for region in problem.regions:
        for kind in problem.hardware:
            item = listed.get((region, kind))
            if Limit("supply", f"{region}/{kind}") in gone and enough.get(kind, 0.0):
                cost = dearest.get(kind, 0.0) if item is None else item.unit_cost
                yield RegionSupply(region=region, hardware=kind, units=enough[kind], unit_cost=cost)
            elif item is not None:
                yield item


def enough_units(problem: Problem) -> Mapping[str, float]:
    """Return the units of each hardware kind that all demand of all models could require in one region."""
    enough: dict[str, float] = {}
    for model in problem.models:
        total = sum(demand.qps for demand in model.demand)
        for part in model.parts:
            for option in part.options:
                most = max(part.min_replicas, math.ceil(total / option.qps)) * option.units
                enough[option.hardware] = enough.get(option.hardware, 0.0) + most
    return enough


class _Wish(Formulation):
    """The formulation with nothing unmet and nothing to minimise: whether there is any plan."""

    def objective(self) -> Expression:
        """Return a constant: any plan will do."""
        return cp.Constant(0.0)

    def constraints(self) -> Mapping[str, Constraint]:
        """Return all rules, and the rule that everything is served."""
        return {**super().constraints(), "all served": self.unmet == 0}

    def answer(self) -> bool | None:
        """Check whether there is a plan; None if the solver reached its limits undecided."""
        self.status = ""
        found = self.solve()
        return True if found.replicas is not None else _ANSWERS.get(self.status)

    def _answer(self, result: Mapping[str, Any], chain: Any, inverse: Any) -> SolverAnswer:
        self.status = str(result["model_status"])
        return super()._answer(result, chain, inverse)


_ANSWERS = {"kInfeasible": False, "kUnboundedOrInfeasible": False}
"""HiGHS: proved that there is none (nothing is minimised, so nothing is unbounded)."""


def servable(problem: Problem) -> bool | None:
    """Check whether some plan leaves nothing unmet; None if the solver reached its limits undecided."""
    index = Index(problem)
    if not index.demands:
        return True
    reached = {(route.model, route.origin) for route in index.routes}
    if not index.placements or any((demand.model, demand.region) not in reached for demand in index.demands):
        return False
    seconds = min(MOST_SECONDS, problem.limits.time_seconds)
    limits = problem.limits.model_copy(update={"time_seconds": seconds})
    return _Wish(problem.model_copy(update={"limits": limits})).answer()


class _Filter:
    """Deletion filtering over the limits of one problem."""

    def __init__(self, problem: Problem, models: tuple[str, ...], beside: str) -> None:
        self.problem, self.models, self.beside = problem, models, beside
        self.limits = limits_of(problem)
        self.unsure = 0
        """Queries that the solver has not answered: the limits in question then stay."""

    def find_conflict(self) -> LimitConflict | None:
        """Return the conflict, or None. Raises DeadlineExceeded if the solver can't decide whether there is one."""
        if not self.forbids(self.limits):
            if self.unsure:
                msg = "the solver could not tell in time whether all can be served; name fewer models"
                raise DeadlineExceeded(msg)
            return None
        kept = self.filter_limits((), self.limits, ())
        minimal = not self.unsure
        members = tuple(self.member(limit) for limit in kept)
        return LimitConflict(models=self.models, beside=self.beside, members=members, minimal=minimal)

    def forbids(self, limits: Collection[Limit]) -> bool:
        """Check whether these limits alone are proved to leave something unmet."""
        kept = set(limits)
        return self.answer([limit for limit in self.limits if limit not in kept]) is False

    def answer(self, dropped: Collection[Limit]) -> bool | None:
        """Check whether all can be served without these limits.

        After MOST_UNSURE queries without an answer none is made.
        """
        answer = servable(without(self.problem, dropped)) if self.unsure < MOST_UNSURE else None
        self.unsure += answer is None
        return answer

    def filter_limits(
        self, before: Sequence[Limit], block: Sequence[Limit], after: Sequence[Limit], *, needed: bool = False
    ) -> tuple[Limit, ...]:
        """Return the limits of a block to keep beside those before and after it.

        `needed`: at least one of the block must stay.
        """
        if not needed and self.forbids((*before, *after)):
            return ()
        if len(block) == 1:
            return tuple(block)
        half = len(block) // 2
        first = self.filter_limits(before, block[:half], (*block[half:], *after))
        second = self.filter_limits((*before, *first), block[half:], after, needed=not first)
        return (*first, *second)

    def member(self, limit: Limit) -> ConflictMember:
        """Return a limit with its figure, and whether all could be served without it alone."""
        figure, unit = _figures(self.problem).get(limit, (None, ""))
        told = None if figure is None else round_figure(figure)
        return ConflictMember(
            name=limit.name, rule=limit.rule.split()[0], limit=told, unit=unit, alone=self.answer([limit])
        )


def _figures(problem: Problem) -> Mapping[Limit, tuple[float | None, str]]:
    """Return the figure of each numeric limit, and its unit."""
    figures: dict[Limit, tuple[float | None, str]] = {}
    for model in problem.models:
        figures[Limit("budget model", model.model)] = (model.budget_per_hour, "$/h")
        figures[Limit("latency model", model.model)] = (model.latency_tolerance_ms, "ms")
        for part in model.parts:
            figures[Limit("min_replicas", f"{model.model}/{part.part}")] = (float(part.min_replicas), "replicas")
    figures |= {Limit("budget owner", owner.owner): (owner.budget_per_hour, "$/h") for owner in problem.owners}
    figures |= {Limit("supply", f"{r}/{h}"): (0.0, "units") for r in problem.regions for h in problem.hardware}
    figures |= {Limit("supply", f"{item.region}/{item.hardware}"): (item.units, "units") for item in problem.supply}
    if problem.limits.max_moves is not None:
        figures[Limit("moves", "")] = (float(problem.limits.max_moves), "replicas")
    return figures
