"""Explanation of a plan: for each placement the rules that hold it there, for each limit the value of one more unit.

Called by the command; reads the problem and the plan alone. Results that are too expensive for a whole fleet are
computed for the one requested model; `Explanation.covers` lists the content.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ipnext.errors import DeadlineExceeded, InvalidInput
from ipnext.model.planning.explanation import (
    Explanation,
    LimitUse,
    ModelCost,
    ModelExplanation,
    RuleUnmet,
    SupplyUse,
    UnmetExplanation,
)
from ipnext.model.planning.plan import Plan, Problem, Unmet
from planner.core.figures import count_started, figures, round_figure, spent, used_units
from planner.core.index import Index
from planner.explain.conflict import conflict_alone
from planner.explain.marginal_value import MOST_RELAXED, Worth, worth_of
from planner.explain.placement_bindings import PlacedModel
from planner.explain.runner_up import MOST_PROVED, best, runners_up
from planner.explain.shadow_prices import limit_figures, needs
from planner.io.problem import validate
from planner.plan_fit import broken_rules, holding_of, leftover

MOST_EXPLAINED = 10
"""Largest number of models of a plan that are all explained in detail."""

DEAREST = 10
"""Models listed by cost."""


def explain(problem: Problem, plan: Plan, model: str | None = None, *, priced: bool | None = None) -> Explanation:
    """Explain the plan: the use and price of every limit, unmet demand by rule, the dearest models.

    For `model`, or for every model of a plan with at most MOST_EXPLAINED: each placement with its rules and its
    runner-up, and for unmet demand the needs and the conflict. `priced` selects whether limits are priced; by default
    they are, unless one model of more than MOST_RELAXED is requested: a fleet's prices take as long as a part of
    solving it. Raises InvalidInput for a model or a name that the problem lacks.
    """
    validate(problem)
    names = [item.model for item in problem.models]
    if model is not None and model not in names:
        msg = f"--model: unknown model {model!r}; known: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        raise InvalidInput(msg, field="--model", value=model, allowed=names)
    broken = broken_rules(problem, plan)
    explained = names if model is None and len(names) <= MOST_EXPLAINED else [name for name in names if name == model]
    asked = priced if priced is not None else model is None or len(names) <= MOST_RELAXED
    return _Reading(problem, plan, worth_of(problem) if asked else None).explanation(explained, broken)


class _Reading:
    """A problem and a plan for it."""

    def __init__(self, problem: Problem, plan: Plan, worth: Worth | None) -> None:
        self.problem, self.plan, self.worth = problem, plan, worth or Worth()
        self.index = Index(problem)
        self.holding = holding_of(plan)
        self.cost = spent(self.index, self.holding.counts)
        self.priority = {model.model: model.priority for model in problem.models}

    def explanation(self, models: Sequence[str], broken: tuple[str, ...]) -> Explanation:
        """Return the explanation, with these models in detail."""
        return Explanation(
            covers=_covers(models, len(self.problem.models)),
            prices_from=self.worth.source,
            broken=broken,
            figures=figures(self.index, self.holding),
            supply=supply_use(self.problem, self.plan, self.worth),
            limits=tuple(self.limits()),
            unmet_by_rule=self.unmet_by_rule(),
            dearest=self.dearest(),
            models=tuple(self.model(name) for name in models),
        )

    def limits(self) -> list[LimitUse]:
        """Return the use of budgets and moves."""
        used = {f"budget model {model}": cost for model, cost in self.cost.items()}
        for model in self.problem.models:
            rule = f"budget owner {model.owner}"
            used[rule] = used.get(rule, 0.0) + self.cost.get(model.model, 0.0)
        used["moves"] = float(count_started(self.index, self.holding.counts))
        limits = {rule: limit for rule, limit in limit_figures(self.problem).items() if not rule.startswith("supply ")}
        return [
            LimitUse(
                rule=rule,
                limit=limit,
                used=round_figure(used.get(rule, 0.0)),
                free=round_figure(limit - used.get(rule, 0.0)),
                price=self.worth.price.get(rule),
                saves=self.worth.saves.get(rule),
            )
            for rule, limit in limits.items()
        ]

    def unmet_by_rule(self) -> tuple[RuleUnmet, ...]:
        """Return unmet demand by each rule that it names, the dearest first."""
        of_rule: dict[str, list[Unmet]] = defaultdict(list)
        for item in self.plan.unmet:
            for rule in item.rules:
                of_rule[rule].append(item)
        found = [
            RuleUnmet(
                rule=rule,
                demands=len(items),
                qps=round_figure(sum(item.qps for item in items)),
                unmet_per_hour=round_figure(sum(self.unmet_cost(item) for item in items)),
            )
            for rule, items in sorted(of_rule.items())
        ]
        return tuple(sorted(found, key=lambda item: -item.unmet_per_hour))

    def unmet_cost(self, item: Unmet) -> float:
        """Return the $/h of leaving this demand unmet."""
        return self.problem.objective.unmet_cost * self.priority[item.model] * item.qps

    def dearest(self) -> tuple[ModelCost, ...]:
        """Return the models that cost most."""
        replicas: dict[str, int] = defaultdict(int)
        unmet: dict[str, float] = defaultdict(float)
        for key, count in self.holding.counts.items():
            replicas[key[0]] += count
        for item in self.plan.unmet:
            unmet[item.model] += item.qps
        first = sorted(self.cost.items(), key=lambda item: (-item[1], item[0]))[:DEAREST]
        return tuple(
            ModelCost(
                model=model,
                cost_per_hour=round_figure(cost),
                replicas=replicas[model],
                unmet_qps=round_figure(unmet[model]),
            )
            for model, cost in first
        )

    def model(self, name: str) -> ModelExplanation:
        """Explain one model, on the residual that the others leave."""
        rest = leftover(self.problem, self.plan, [name])
        placed = PlacedModel(rest, self.holding, name, self.worth.price)
        now = figures(placed.index, placed.holding)
        unmet = tuple(
            UnmetExplanation(
                model=item.model,
                region=item.region,
                qps=item.qps,
                unmet_per_hour=round_figure(self.unmet_cost(item)),
                rules=item.rules,
            )
            for item in self.plan.unmet
            if item.model == name
        )
        second = runners_up(rest, sorted(placed.holding.counts), now)
        return ModelExplanation(
            model=name,
            figures=now,
            best=best(rest, now, proved=len(second) <= MOST_PROVED),
            placements=tuple(
                placed.explain_placement(key, count, second[key])
                for key, count in sorted(placed.holding.counts.items())
            ),
            unmet=unmet,
            **_check_servable(rest) if unmet else {},
        )


RELAXATION = (
    "the relaxation of the stated problem (parts of replicas allowed), solved again with one more of each limit"
)


def _covers(models: Sequence[str], of: int) -> str:
    if not models:
        return f"all {of} models together; name one to have its placements explained"
    return f"the placements of {len(models)} of {of} models, each with all others as the plan has them"


def _check_servable(rest: Problem) -> dict[str, Any]:
    """Decide whether all of a model can be served, and which limits block it.

    Neither is known if the solver can't decide.
    """
    try:
        found = conflict_alone(rest)
    except DeadlineExceeded:
        return {"needs": needs(rest)}
    return {"servable": found is None, "conflict": found, "needs": needs(rest) if found else ()}


def supply_use(
    problem: Problem,
    plan: Plan,
    worth: Worth | None = None,
    surge: Mapping[tuple[str, str], float] | None = None,
) -> tuple[SupplyUse, ...]:
    """Return used and free units of every supply entry, in the problem's order.

    They include prices and surge if these are given.
    """
    used, told = used_units(Index(problem), holding_of(plan).counts), worth or Worth()
    return tuple(
        SupplyUse(
            region=item.region,
            hardware=item.hardware,
            units=item.units,
            used=round_figure(used.get((item.region, item.hardware), 0.0)),
            free=round_figure(item.units - used.get((item.region, item.hardware), 0.0)),
            surge=(surge or {}).get((item.region, item.hardware), 0.0),
            unit_cost=item.unit_cost,
            price=told.price.get(f"supply {item.region}/{item.hardware}"),
            saves=told.saves.get(f"supply {item.region}/{item.hardware}"),
        )
        for item in problem.supply
    )
