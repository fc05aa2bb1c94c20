"""Effect of a change of supply, demand, a budget, a weight or a limit: planned before anything changes.

`apply_changes` is a pure function from a problem and changes to a problem. Called by the command; the replan workflow
can plan the same problem.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NoReturn

from ipnext.errors import InvalidInput
from ipnext.model.planning.explanation import ProblemChange, UnmetChange, WhatIf
from ipnext.model.planning.plan import Limits, ModelProblem, Objective, Owner, Plan, Problem, RegionDemand
from planner.core.diff import diff, state_of
from planner.core.figures import figures
from planner.core.index import Index
from planner.io.problem import validate
from planner.plan_fit import broken_rules, holding_of
from planner.solve import solve

ANY = "*"
"""Wildcard for every region, hardware kind or model."""

FORMS = ("=120", "=+40", "=-40", "=*0.5")
SHOWN = 20
"""Names that an error lists."""

Kind = Literal["supply", "demand", "budget", "drain", "objective", "limit"]


def change_of(kind: Kind, text: str) -> ProblemChange:
    """Parse a change: `TARGET=120`, `TARGET=+40`, `TARGET=-40`, `TARGET=*0.5` or `TARGET=none`; a drain is a target.

    Raises InvalidInput for another form. `apply_changes` checks whether the target exists.
    """
    if kind == "drain":
        return ProblemChange(kind=kind, target=text)
    target, equals, written = text.rpartition("=")
    if not equals or not target or not written:
        _refuse(kind, text, "a target and a figure are needed", [f"TARGET{form}" for form in FORMS])
    if written == "none":
        return ProblemChange(kind=kind, target=target)
    operation = {"+": "add", "-": "add", "*": "multiply"}.get(written[0], "set")
    try:
        figure = float(written.removeprefix("*"))
        return ProblemChange.model_validate({"kind": kind, "target": target, "operation": operation, "figure": figure})
    except ValueError:  # pydantic's error is one: NaN and infinity
        _refuse(kind, text, f"{written!r} is no figure", [f"{target}{form}" for form in FORMS])


def apply_changes(problem: Problem, changes: Sequence[ProblemChange]) -> Problem:
    """Apply the changes to the problem, one after the other.

    Raises InvalidInput for unknown targets and impossible figures.
    """
    for change in changes:
        problem = _APPLIED[change.kind](problem, change)
    try:
        validate(problem)
    except InvalidInput as error:
        msg = f"after {'; '.join(map(str, changes))}: {error.message}" if changes else error.message
        raise InvalidInput(msg, field=error.field, value=error.value, allowed=error.allowed) from None
    return problem


def what_if(
    problem: Problem,
    changes: Sequence[ProblemChange],
    *,
    plan: Plan | None = None,
    replan: Callable[[Problem], Plan] = solve,
) -> tuple[WhatIf, Plan]:
    """Return the effect of the changes on the fleet, and the plan after them.

    `plan` is the placement before; without it that is planned first. It becomes the current placement, so that replicas
    started count from there and cost `move_cost`. Raises InvalidInput, also for a plan whose names the problem lacks.
    """
    before = replan(problem) if plan is None else plan
    running = problem.model_copy(update={"current": state_of(before)})
    stated = apply_changes(running, changes)
    broken = broken_rules(stated, before)
    after = replan(stated)
    return WhatIf(
        changes=tuple(changes),
        before=figures(Index(running), holding_of(before)),
        after=figures(Index(stated), holding_of(after)),
        status=after.status,
        gap=after.gap,
        diff=diff(before, after),
        unmet=_unmet_changes(before, after),
        broken=broken,
    ), after


def _unmet_changes(before: Plan, after: Plan) -> tuple[UnmetChange, ...]:
    old = {(item.model, item.region): item.qps for item in before.unmet}
    new = {(item.model, item.region): item for item in after.unmet}
    return tuple(
        UnmetChange(
            model=key[0],
            region=key[1],
            before=old.get(key, 0.0),
            after=new[key].qps if key in new else 0.0,
            rules=new[key].rules if key in new else (),
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key, 0.0) != (new[key].qps if key in new else 0.0)
    )


def _refuse(kind: str, target: str, said: str, allowed: Collection[str]) -> NoReturn:
    listed = list(allowed)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    msg = f"--{kind} {target}: {said}; allowed: {', '.join(listed[:SHOWN])}{more}"
    raise InvalidInput(msg, field=f"--{kind}", value=target, allowed=listed)


def _figure(change: ProblemChange, before: float | None) -> float | None:
    """Return the figure after a change. Raises if it is negative, or if there is no figure to add to or to multiply."""
    if change.figure is None or change.operation == "set":
        after = change.figure
    elif before is None:
        _refuse(change.kind, change.target, "there is no limit to change", [f"{change.target}=FIGURE"])
    else:
        after = before + change.figure if change.operation == "add" else before * change.figure
    if after is not None and after < 0:
        _refuse(change.kind, change.target, f"{after:.9g} is below 0", ["0 or more"])
    return after


def _sure(change: ProblemChange, before: float) -> float:
    """Return the figure after a change of a limit that always has one; see `_figure`."""
    after = _figure(change, before)
    if after is None:
        _refuse(change.kind, change.target, "none is no figure here", [f"{change.target}{form}" for form in FORMS])
    return after


def _supply(problem: Problem, change: ProblemChange) -> Problem:
    names = [f"{item.region}/{item.hardware}" for item in problem.supply]
    chosen = [name for name in names if _matches(change.target, name)]
    if not chosen:
        _refuse("supply", change.target, "no such supply", names)
    supply = tuple(
        item.model_copy(update={"units": _sure(change, item.units)}) if name in chosen else item
        for name, item in zip(names, problem.supply, strict=True)
    )
    return problem.model_copy(update={"supply": supply})


def _matches(target: str, name: str) -> bool:
    """Match `r/h`, `r/*`, `*/h`, `*/*`."""
    if target == name:
        return True
    region, _, hardware = name.partition("/")
    return target in {f"{region}/{ANY}", f"{ANY}/{hardware}", f"{ANY}/{ANY}"}


def _drain(problem: Problem, change: ProblemChange) -> Problem:
    if change.target not in problem.regions:
        _refuse("drain", change.target, "no such region", problem.regions)
    supply = tuple(
        item.model_copy(update={"units": 0.0}) if item.region == change.target else item for item in problem.supply
    )
    return problem.model_copy(update={"supply": supply})


def _demand(problem: Problem, change: ProblemChange) -> Problem:
    names = [model.model for model in problem.models]
    name, region = _demanding(change.target, names, problem.regions)
    if region is None and change.operation != "multiply":
        _refuse("demand", change.target, "a whole model's demand can only be multiplied", [f"{change.target}=*1.2"])
    models = tuple(_asking(model, change, region) if name in (ANY, model.model) else model for model in problem.models)
    return problem.model_copy(update={"models": models})


def _demanding(target: str, models: Sequence[str], regions: Sequence[str]) -> tuple[str, str | None]:
    """Return the model and the region that a target names; no region for all of them."""
    if target == ANY or target in models:
        return target, None
    model, _, region = target.rpartition("/")
    if model != ANY and model not in models:
        _refuse("demand", target, "no such model", [ANY, *models])
    if region not in regions:
        _refuse("demand", target, f"no region {region!r}", regions)
    return model, region


def _asking(model: ModelProblem, change: ProblemChange, region: str | None) -> ModelProblem:
    demand = list(model.demand)
    if region is not None and region not in [item.region for item in demand] and change.operation != "multiply":
        demand.append(RegionDemand(region=region, qps=0.0))
    return model.model_copy(
        update={
            "demand": tuple(
                item.model_copy(update={"qps": _sure(change, item.qps)}) if region in (None, item.region) else item
                for item in demand
            )
        }
    )


def _budget(problem: Problem, change: ProblemChange) -> Problem:
    whose, _, name = change.target.partition("/")
    if whose == "model" and name in (known := [model.model for model in problem.models]):
        models = tuple(
            m.model_copy(update={"budget_per_hour": _figure(change, m.budget_per_hour)}) if m.model == name else m
            for m in problem.models
        )
        return problem.model_copy(update={"models": models})
    owners = {owner.owner: owner.budget_per_hour for owner in problem.owners}
    owners = {**dict.fromkeys(model.owner for model in problem.models), **owners}
    if whose == "owner" and name in owners:
        owners[name] = _figure(change, owners[name])
        priority = {owner.owner: owner.priority for owner in problem.owners}
        listed = tuple(
            Owner(owner=owner, budget_per_hour=limit, priority=priority.get(owner, 0))
            for owner, limit in owners.items()
        )
        return problem.model_copy(update={"owners": listed})
    known = [*(f"owner/{owner}" for owner in owners), *(f"model/{model.model}" for model in problem.models)]
    _refuse("budget", change.target, "no such owner or model", known)


def _objective(problem: Problem, change: ProblemChange) -> Problem:
    weights = problem.objective.model_dump()
    if change.target not in weights:
        _refuse("objective", change.target, "no such weight", list(weights))
    weights[change.target] = _sure(change, weights[change.target])
    return problem.model_copy(update={"objective": Objective.model_validate(weights)})


def _limit(problem: Problem, change: ProblemChange) -> Problem:
    limits = problem.limits.model_dump()
    if change.target not in limits:
        _refuse("limit", change.target, "no such limit", list(limits))
    figure = _figure(change, limits[change.target])
    whole = figure is not None and change.target == "max_moves" and figure == int(figure)
    limits[change.target] = int(figure) if whole and figure is not None else figure
    try:
        return problem.model_copy(update={"limits": Limits.model_validate(limits)})
    except ValueError:
        allowed = {"max_moves": "a whole number from 0, or none", "time_seconds": "above 0", "gap": "0 or more"}
        _refuse("limit", change.target, f"{figure} is not possible", [allowed[change.target]])


_APPLIED: dict[str, Callable[[Problem, ProblemChange], Problem]] = {
    "supply": _supply,
    "demand": _demand,
    "budget": _budget,
    "drain": _drain,
    "objective": _objective,
    "limit": _limit,
}
