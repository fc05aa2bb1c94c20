"""The independent check of a plan: every rule of docs/planner.md, computed from the problem alone.

Nothing here comes from the formulation or a solver, so that an error there is found here. Called on every plan before
`planner.solve` returns it, by `ipnext plan check`, and by tests. A rule compares tables over all models, parts and
regions at once, and formats a message only for violations.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ipnext.model.planning.plan import Plan, Problem
from ipnext.model.value import Value
from planner.verify.ledger import Floats, Ledger, floats, sums

TOLERANCE = 1e-6
"""Relative to the larger side of a rule, and absolute below 1."""

LARGEST_COUNT = 10**12
"""A larger count is invalid: sums would lose their last digits."""

Flags = npt.NDArray[np.bool_]


class Violation(Value):
    """A rule that a plan or a transition breaks, its subject, and a message."""

    rule: str
    subject: str
    message: str


def check(problem: Problem, plan: Plan) -> tuple[Violation, ...]:
    """Return every rule that the plan breaks, in a fixed order; empty for a valid plan.

    Besides the planner's rules (`served`, `latency`, `capacity`, `survive`, `min_replicas`, `supply`, `budget`,
    `moves`) it reports `names` (unknown or duplicate), `counts` (not whole, negative), `unmet`, `cost`, `objective`,
    `bound` and `gap`. `survive` counts the served demand of a model: its total demand less the unmet demand of the
    plan.
    """
    malformed = [*_names(problem, plan), *_counts(plan)]
    if malformed:
        return tuple(malformed)
    with np.errstate(all="ignore"):  # an overflow is infinite, and breaks a rule
        ledger = Ledger(problem, plan)
        return tuple(violation for rule in _RULES for violation in rule(ledger))


def _over(value: Any, limit: Any) -> Any:
    """Check whether the value exceeds the limit beyond the tolerance; figure by figure."""
    return (value > limit + TOLERANCE * np.maximum(1.0, np.abs(limit))) | np.isnan(value)


def _differ(a: float, b: float) -> bool:
    return not math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _names(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Find names that the problem does not have, and duplicates."""
    regions, models = set(problem.regions), {model.model for model in problem.models}
    parts = {(m.model, p.part) for m in problem.models for p in m.parts}
    options = {(m.model, p.part, o.hardware) for m in problem.models for p in m.parts for o in p.options}
    demands = {(m.model, d.region) for m in problem.models for d in m.demand}
    for item in plan.replicas:
        known = (item.model, item.part) in parts and item.region in regions
        if not known or (item.count and (item.model, item.part, item.hardware) not in options):
            where = f"{item.model}/{item.part}/{item.region}/{item.hardware}"
            yield Violation(rule="names", subject=where, message="no such model, part, region or option in the problem")
    for share in plan.traffic:
        if share.model not in models or share.origin not in regions or share.to not in regions:
            where = f"{share.model}/{share.origin}/{share.to}"
            yield Violation(rule="names", subject=where, message="no such model or region in the problem")
    for lost in plan.unmet:
        if (lost.model, lost.region) not in demands:
            where = f"{lost.model}/{lost.region}"
            yield Violation(rule="names", subject=where, message="no such demand in the problem")
    yield from _twice("replicas", ((r.model, r.part, r.region, r.hardware) for r in plan.replicas))
    yield from _twice("traffic", ((t.model, t.origin, t.to) for t in plan.traffic))
    yield from _twice("unmet", ((u.model, u.region) for u in plan.unmet))


def _twice(what: str, keys: Iterable[tuple[str, ...]]) -> Iterator[Violation]:
    seen: set[tuple[str, ...]] = set()
    for key in keys:
        if key in seen:
            yield Violation(rule="names", subject=f"{what} {'/'.join(key)}", message="stands twice")
        seen.add(key)


def _counts(plan: Plan) -> Iterator[Violation]:
    """Check that counts are whole and not negative, fractions and unmet QPS are numbers from 0."""
    for item in plan.replicas:
        whole = isinstance(item.count, int) and not isinstance(item.count, bool)
        if not whole or not 0 <= item.count <= LARGEST_COUNT:
            where = f"{item.model}/{item.part}/{item.region}/{item.hardware}"
            message = (
                f"more than {LARGEST_COUNT:g} replicas"
                if item.count > LARGEST_COUNT
                else f"{item.count} is no whole number from 0"
            )
            yield Violation(rule="counts", subject=where, message=message)
    for share in plan.traffic:
        if not (math.isfinite(share.fraction) and 0 <= share.fraction <= 1 + TOLERANCE):
            where = f"{share.model}/{share.origin}/{share.to}"
            yield Violation(rule="counts", subject=where, message=f"{share.fraction} is no fraction from 0 to 1")
    for lost in plan.unmet:
        if not (math.isfinite(lost.qps) and lost.qps >= 0):
            where = f"{lost.model}/{lost.region}"
            yield Violation(rule="counts", subject=where, message=f"{lost.qps} is no QPS from 0")


def _where(broken: Flags, rows: Iterable[Any], columns: Iterable[str]) -> list[tuple[Any, str, int, int]]:
    """Return names and indexes of the row and the column of every violation, in the order of the table."""
    names, heads = list(rows), list(columns)
    return [(names[i], heads[j], int(i), int(j)) for i, j in np.argwhere(broken)]


def _check_served(ledger: Ledger) -> Iterator[Violation]:
    """Check sum_r y = 1 - unmet, for each demand; without demand the shares may sum to anything up to 1."""
    total, demand = ledger.shares, ledger.demand
    unmet = np.divide(ledger.unmet, demand, out=np.zeros_like(demand), where=demand > 0)
    wanted = np.where(demand > 0, 1 - unmet, np.minimum(total, 1.0))
    for model, region, i, j in sorted(_where(abs(total - wanted) > TOLERANCE, ledger.model, ledger.region)):
        message = f"the shares sum to {total[i, j]:.9g}; 1 less unmet is {wanted[i, j]:.9g}"
        yield Violation(rule="served", subject=f"{model} from {region}", message=message)


def _latency(ledger: Ledger) -> Iterator[Violation]:
    """Check that no traffic goes to a region beyond the model's tolerance."""
    tolerance = floats(model.latency_tolerance_ms for model in ledger.problem.models)
    ms, most = ledger.rtt[ledger.sent_from, ledger.sent_to], tolerance[ledger.sent_model]
    far = [(ledger.plan.traffic[i], ms[i], most[i]) for i in np.flatnonzero((ledger.fraction > 0) & (ms > most))]
    for share, took, allowed in sorted(far, key=lambda item: (item[0].model, item[0].origin, item[0].to)):
        subject = f"{share.model} from {share.origin} to {share.to}"
        message = f"{took:g} ms; the model tolerates {allowed:g} ms"
        yield Violation(rule="latency", subject=subject, message=message)


def _capacity(ledger: Ledger) -> Iterator[Violation]:
    """Check that every part can serve its traffic in a region."""
    load, able = ledger.load[ledger.model_of_part], ledger.throughput
    for (model, part), region, i, j in _where(_over(load, able), ledger.part, ledger.region):
        message = f"{load[i, j]:.9g} QPS sent to replicas that do {able[i, j]:.9g} QPS"
        yield Violation(rule="capacity", subject=f"{model}/{part} in {region}", message=message)


def _survive(ledger: Ledger) -> Iterator[Violation]:
    """Check that without any one region the others can serve all served demand of the model."""
    asking = np.array([model.survive == "region" for model in ledger.problem.models], dtype=np.bool_)
    served = (ledger.demand - ledger.unmet).sum(axis=1)[ledger.model_of_part]
    regions = ledger.problem.regions
    left = _without_one(ledger.throughput[:, : len(regions)])
    broken = asking[ledger.model_of_part][:, None] & _over(served[:, None], left)
    for (model, part), lost, i, j in _where(broken, ledger.part, regions):
        message = f"without {lost} the others do {left[i, j]:.9g} QPS of {served[i]:.9g} QPS served"
        yield Violation(rule="survive", subject=f"{model}/{part} without {lost}", message=message)


def _without_one(table: Floats) -> Floats:
    """Return the sum of each row without each of its columns: the columns before it plus the columns after it.

    The whole sum less the column would lose digits beside a large column.
    """
    nothing = np.zeros((len(table), 1))
    before = np.hstack([nothing, np.cumsum(table[:, :-1], axis=1)])
    after = np.hstack([np.cumsum(table[:, :0:-1], axis=1)[:, ::-1], nothing])
    return before + after


def _min_replicas(ledger: Ledger) -> Iterator[Violation]:
    """Check that a region that holds a part holds enough replicas of it, over all hardware."""
    held = sums(ledger.throughput.shape, ledger.held_part, ledger.held_region, ledger.count)
    least = floats(part.min_replicas for part in ledger.parts)
    few = (held > 0) & (held < least[:, None])
    for (model, part), region, i, j in sorted(_where(few, ledger.part, ledger.region)):
        message = f"{held[i, j]:.0f} replicas; a region that holds the part holds at least {least[i]:.0f}"
        yield Violation(rule="min_replicas", subject=f"{model}/{part} in {region}", message=message)


def _supply(ledger: Ledger) -> Iterator[Violation]:
    """Check that no more units are used than there are."""
    used = sums(ledger.supply.shape, ledger.held_region, ledger.held_hardware, ledger.units)
    for region, hardware, i, j in sorted(_where(_over(used, ledger.supply), ledger.region, ledger.hardware)):
        message = f"{used[i, j]:.9g} units taken of {ledger.supply[i, j]:.9g}"
        yield Violation(rule="supply", subject=f"{region}/{hardware}", message=message)


def _budget(ledger: Ledger) -> Iterator[Violation]:
    """Check that no model and no owner is above its budget."""
    spent: dict[str, float] = {}
    for model, cost in zip(ledger.problem.models, ledger.cost.tolist(), strict=True):
        spent[model.owner] = spent.get(model.owner, 0.0) + cost
        yield from _spent(f"model {model.model}", cost, model.budget_per_hour)
    for owner in ledger.problem.owners:
        yield from _spent(f"owner {owner.owner}", spent.get(owner.owner, 0.0), owner.budget_per_hour)


def _spent(subject: str, cost: float, limit: float | None) -> Iterator[Violation]:
    if limit is not None and _over(cost, limit):
        yield Violation(rule="budget", subject=subject, message=f"{cost:.9g} $/h of a budget of {limit:.9g} $/h")


def _moves(ledger: Ledger) -> Iterator[Violation]:
    """Check that no more replicas are started than allowed."""
    most = ledger.problem.limits.max_moves
    if most is not None and ledger.started_replicas > most:
        message = f"{ledger.started_replicas} replicas started of {most} allowed"
        yield Violation(rule="moves", subject="all models", message=message)


def _unmet(ledger: Ledger) -> Iterator[Violation]:
    """Check that unmet demand is no more than the demand and names the rules that bind."""
    for lost in ledger.plan.unmet:
        where, qps = (
            f"{lost.model} from {lost.region}",
            ledger.demand[ledger.model[lost.model], ledger.region[lost.region]],
        )
        if _over(lost.qps, qps):
            yield Violation(rule="unmet", subject=where, message=f"{lost.qps:.9g} QPS unmet of a demand of {qps:.9g}")
        if not lost.rules:
            yield Violation(rule="unmet", subject=where, message="names no rule that binds")


def _figures(ledger: Ledger) -> Iterator[Violation]:
    """Check that the plan's figures are those of its placements."""
    plan, cost, objective = ledger.plan, float(ledger.cost.sum()), ledger.objective
    if _differ(plan.cost_per_hour, cost):
        message = f"the plan says {plan.cost_per_hour:.9g} $/h, its replicas cost {cost:.9g}"
        yield Violation(rule="cost", subject="cost_per_hour", message=message)
    if _differ(plan.objective, objective):
        message = f"the plan says {plan.objective:.9g}, its placements give {objective:.9g}"
        yield Violation(rule="objective", subject="objective", message=message)
    if _over(plan.bound, objective):
        message = f"a lower bound of {plan.bound:.9g} above the objective {objective:.9g}"
        yield Violation(rule="bound", subject="bound", message=message)
    gap = max(0.0, (plan.objective - plan.bound) / plan.objective) if plan.objective > 0 else 0.0
    if _differ(plan.gap, gap):
        message = f"the plan says {plan.gap:.9g}, objective and bound give {gap:.9g}"
        yield Violation(rule="gap", subject="gap", message=message)


_RULES = (_check_served, _latency, _capacity, _survive, _min_replicas, _supply, _budget, _moves, _unmet, _figures)


def rules_of(violations: Collection[Violation]) -> tuple[str, ...]:
    """Return the broken rules with their subjects, in words, each once and sorted."""
    return tuple(sorted({f"{violation.rule} {violation.subject}" for violation in violations}))
