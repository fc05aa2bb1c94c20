"""The independent check of a plan: every rule of docs/planner.md, computed from the problem alone.

Nothing here comes from the formulation, so that an error there is found here. Called on every plan before it leaves
`planner.solve`, by `ipnext plan check`, and by tests.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

from ipnext.model.plan import ModelProblem, Plan, Problem
from ipnext.model.value import Value

TOLERANCE = 1e-6
"""Relative to the larger side of a rule, and absolute below 1."""


class Violation(Value):
    """A rule that a plan or a transition breaks, where, and in words."""

    rule: str
    subject: str
    message: str


def check(problem: Problem, plan: Plan) -> tuple[Violation, ...]:
    """Every rule that the plan breaks, in a fixed order; empty for a valid plan.

    Beside the planner's rules (`served`, `latency`, `capacity`, `survive`, `min_replicas`, `supply`, `budget`, `moves`)
    it names `names` (unknown or twice), `counts` (not whole, negative), `unmet`, `cost`, `objective`, `bound` and `gap`.
    `survive` counts what is served of a model: its total demand less what the plan says is unmet.
    """
    malformed = [*_names(problem, plan), *_counts(plan)]
    if malformed:
        return tuple(malformed)
    reading = _Reading(problem, plan)
    found = [violation for rule in _RULES for violation in rule(reading)]
    return tuple(found)


class _Reading:
    """A problem and a plan, looked up by name."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem = problem
        self.plan = plan

    @cached_property
    def rtt(self) -> Mapping[tuple[str, str], float]:
        names = self.problem.regions
        return {(s, r): self.problem.rtt_ms[i][j] for i, s in enumerate(names) for j, r in enumerate(names)}

    @cached_property
    def demand(self) -> Mapping[tuple[str, str], float]:
        return {(m.model, d.region): d.qps for m in self.problem.models for d in m.demand}

    @cached_property
    def unmet(self) -> Mapping[tuple[str, str], float]:
        return {(u.model, u.region): u.qps for u in self.plan.unmet}

    @cached_property
    def share(self) -> Mapping[tuple[str, str, str], float]:
        return {(t.model, t.origin, t.to): t.fraction for t in self.plan.traffic}

    @cached_property
    def count(self) -> Mapping[tuple[str, str, str, str], int]:
        return {(r.model, r.part, r.region, r.hardware): r.count for r in self.plan.replicas}

    @cached_property
    def running(self) -> Mapping[tuple[str, str, str, str], int]:
        return {(r.model, r.part, r.region, r.hardware): r.count for r in self.problem.current.replicas}

    @cached_property
    def option(self) -> Mapping[tuple[str, str, str], tuple[float, float]]:
        """Units and QPS of a replica by model, part, hardware."""
        return {
            (m.model, p.part, o.hardware): (o.units, o.qps)
            for m in self.problem.models
            for p in m.parts
            for o in p.options
        }

    @cached_property
    def supply(self) -> Mapping[tuple[str, str], tuple[float, float]]:
        """Units and $/h a unit by region and hardware."""
        return {(s.region, s.hardware): (s.units, s.unit_cost) for s in self.problem.supply}

    @cached_property
    def throughput(self) -> Mapping[tuple[str, str, str], float]:
        """QPS that a part can do in a region."""
        total: dict[tuple[str, str, str], float] = defaultdict(float)
        for (model, part, region, hardware), count in self.count.items():
            total[model, part, region] += count * self.option[model, part, hardware][1]
        return total

    @cached_property
    def used(self) -> Mapping[tuple[str, str], float]:
        """Units taken by region and hardware."""
        total: dict[tuple[str, str], float] = defaultdict(float)
        for (model, part, region, hardware), count in self.count.items():
            total[region, hardware] += count * self.option[model, part, hardware][0]
        return total

    @cached_property
    def cost(self) -> Mapping[str, float]:
        """$/h by model."""
        total: dict[str, float] = defaultdict(float)
        for (model, part, region, hardware), count in self.count.items():
            unit_cost = self.supply.get((region, hardware), (0.0, 0.0))[1]
            total[model] += count * self.option[model, part, hardware][0] * unit_cost
        return total

    @property
    def started(self) -> int:
        return sum(max(0, count - self.running.get(key, 0)) for key, count in self.count.items())

    def served_qps(self, model: ModelProblem) -> float:
        return sum(d.qps - self.unmet.get((model.model, d.region), 0.0) for d in model.demand)

    def objective(self) -> float:
        """$/h as docs/planner.md states it."""
        weights = self.problem.objective
        priority = {m.model: m.priority for m in self.problem.models}
        latency = sum(self.demand.get((m, s), 0.0) * y * self.rtt[s, r] for (m, s, r), y in self.share.items())
        missed = sum(priority[model] * qps for (model, _), qps in self.unmet.items())
        hardware = sum(self.cost.values())
        return (
            hardware + weights.latency_weight * latency + weights.move_cost * self.started + weights.unmet_cost * missed
        )


def _over(value: float, limit: float) -> bool:
    """More than the limit, beyond the tolerance."""
    return value > limit + TOLERANCE * max(1.0, abs(limit)) or math.isnan(value)


def _differ(a: float, b: float) -> bool:
    return not math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _names(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Names that the problem does not have, and what stands twice."""
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
            yield Violation(
                rule="names", subject=f"{lost.model}/{lost.region}", message="no such demand in the problem"
            )
    yield from _twice([f"replicas {r.model}/{r.part}/{r.region}/{r.hardware}" for r in plan.replicas])
    yield from _twice([f"traffic {t.model}/{t.origin}/{t.to}" for t in plan.traffic])
    yield from _twice([f"unmet {u.model}/{u.region}" for u in plan.unmet])


def _twice(subjects: Sequence[str]) -> Iterator[Violation]:
    seen: set[str] = set()
    for subject in subjects:
        if subject in seen:
            yield Violation(rule="names", subject=subject, message="stands twice")
        seen.add(subject)


def _counts(plan: Plan) -> Iterator[Violation]:
    """Counts are whole and not negative, fractions and unmet QPS are numbers from 0."""
    for item in plan.replicas:
        if not isinstance(item.count, int) or isinstance(item.count, bool) or item.count < 0:
            where = f"{item.model}/{item.part}/{item.region}/{item.hardware}"
            yield Violation(rule="counts", subject=where, message=f"{item.count} is no whole number from 0")
    for share in plan.traffic:
        if not (math.isfinite(share.fraction) and 0 <= share.fraction <= 1 + TOLERANCE):
            where = f"{share.model}/{share.origin}/{share.to}"
            yield Violation(rule="counts", subject=where, message=f"{share.fraction} is no fraction from 0 to 1")
    for lost in plan.unmet:
        if not (math.isfinite(lost.qps) and lost.qps >= 0):
            where = f"{lost.model}/{lost.region}"
            yield Violation(rule="counts", subject=where, message=f"{lost.qps} is no QPS from 0")


def _served(reading: _Reading) -> Iterator[Violation]:
    """sum_r y = 1 - unmet, for each demand; without demand the shares may sum to anything up to 1."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for (model, origin, _), fraction in reading.share.items():
        sums[model, origin] += fraction
    for key in sorted(reading.demand.keys() | sums.keys()):
        total, qps = sums[key], reading.demand.get(key, 0.0)
        wanted = 1 - reading.unmet.get(key, 0.0) / qps if qps > 0 else min(total, 1.0)
        if abs(total - wanted) > TOLERANCE:
            message = f"the shares sum to {total:.9g} where 1 less unmet is {wanted:.9g}"
            yield Violation(rule="served", subject=f"{key[0]} from {key[1]}", message=message)


def _latency(reading: _Reading) -> Iterator[Violation]:
    """No traffic to a region beyond the model's tolerance."""
    tolerance = {m.model: m.latency_tolerance_ms for m in reading.problem.models}
    for (model, origin, to), fraction in sorted(reading.share.items()):
        if fraction > 0 and reading.rtt[origin, to] > tolerance[model]:
            message = f"{reading.rtt[origin, to]:g} ms where the model tolerates {tolerance[model]:g} ms"
            yield Violation(rule="latency", subject=f"{model} from {origin} to {to}", message=message)


def _capacity(reading: _Reading) -> Iterator[Violation]:
    """Every part can do in a region what is sent there."""
    sent: dict[tuple[str, str], float] = defaultdict(float)
    for (name, origin, to), fraction in reading.share.items():
        sent[name, to] += fraction * reading.demand.get((name, origin), 0.0)
    for model in reading.problem.models:
        for part in model.parts:
            for region in reading.problem.regions:
                able, load = reading.throughput.get((model.model, part.part, region), 0.0), sent[model.model, region]
                if _over(load, able):
                    message = f"{load:.9g} QPS sent to replicas that do {able:.9g} QPS"
                    subject = f"{model.model}/{part.part} in {region}"
                    yield Violation(rule="capacity", subject=subject, message=message)


def _survive(reading: _Reading) -> Iterator[Violation]:
    """Without any one region the other regions can do all that is served of the model."""
    for model in reading.problem.models:
        if model.survive != "region":
            continue
        served = reading.served_qps(model)
        for part in model.parts:
            able = {r: reading.throughput.get((model.model, part.part, r), 0.0) for r in reading.problem.regions}
            for lost in reading.problem.regions:
                left = sum(qps for region, qps in able.items() if region != lost)
                if _over(served, left):
                    message = f"without {lost} the others do {left:.9g} QPS of {served:.9g} QPS served"
                    subject = f"{model.model}/{part.part} without {lost}"
                    yield Violation(rule="survive", subject=subject, message=message)


def _min_replicas(reading: _Reading) -> Iterator[Violation]:
    """A region that holds a part holds enough replicas of it, over all hardware."""
    total: dict[tuple[str, str, str], int] = defaultdict(int)
    for (model, part, region, _), count in reading.count.items():
        total[model, part, region] += count
    least = {(m.model, p.part): p.min_replicas for m in reading.problem.models for p in m.parts}
    for (model, part, region), count in sorted(total.items()):
        if 0 < count < least[model, part]:
            message = f"{count} replicas where a region that holds the part holds at least {least[model, part]}"
            yield Violation(rule="min_replicas", subject=f"{model}/{part} in {region}", message=message)


def _supply(reading: _Reading) -> Iterator[Violation]:
    """No more units than there are."""
    for key, used in sorted(reading.used.items()):
        units = reading.supply.get(key, (0.0, 0.0))[0]
        if _over(used, units):
            message = f"{used:.9g} units taken of {units:.9g}"
            yield Violation(rule="supply", subject=f"{key[0]}/{key[1]}", message=message)


def _budget(reading: _Reading) -> Iterator[Violation]:
    """No model and no owner above its budget."""
    for model in reading.problem.models:
        if model.budget_per_hour is not None:
            yield from _spent(f"model {model.model}", reading.cost.get(model.model, 0.0), model.budget_per_hour)
    for owner in reading.problem.owners:
        if owner.budget_per_hour is not None:
            models = [m.model for m in reading.problem.models if m.owner == owner.owner]
            cost = sum(reading.cost.get(model, 0.0) for model in models)
            yield from _spent(f"owner {owner.owner}", cost, owner.budget_per_hour)


def _spent(subject: str, cost: float, limit: float) -> Iterator[Violation]:
    if _over(cost, limit):
        yield Violation(rule="budget", subject=subject, message=f"{cost:.9g} $/h of a budget of {limit:.9g} $/h")


def _moves(reading: _Reading) -> Iterator[Violation]:
    """No more replicas started than allowed."""
    most = reading.problem.limits.max_moves
    if most is not None and reading.started > most:
        message = f"{reading.started} replicas started of {most} allowed"
        yield Violation(rule="moves", subject="all models", message=message)


def _unmet(reading: _Reading) -> Iterator[Violation]:
    """What is unmet is no more than the demand and names the rules that bind."""
    for item in reading.plan.unmet:
        where, qps = f"{item.model} from {item.region}", reading.demand[item.model, item.region]
        if _over(item.qps, qps):
            yield Violation(rule="unmet", subject=where, message=f"{item.qps:.9g} QPS unmet of a demand of {qps:.9g}")
        if not item.rules:
            yield Violation(rule="unmet", subject=where, message="names no rule that binds")


def _figures(reading: _Reading) -> Iterator[Violation]:
    """The plan's own figures are the ones its placements give."""
    plan, cost, objective = reading.plan, sum(reading.cost.values()), reading.objective()
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


_RULES = (_served, _latency, _capacity, _survive, _min_replicas, _supply, _budget, _moves, _unmet, _figures)


def rules_of(violations: Collection[Violation]) -> tuple[str, ...]:
    """The broken rules with their subjects, in words, each once and sorted."""
    return tuple(sorted({f"{violation.rule} {violation.subject}" for violation in violations}))
