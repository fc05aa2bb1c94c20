"""A second reading of docs/planner.md's rules: slow, one thing after the other, with none of the checker's tables."""

import math
from collections.abc import Iterator

from ipnext.model.planning.plan import ModelProblem, Plan, Problem

Found = Iterator[tuple[str, str]]
"""A broken rule and where."""


def slowly(problem: Problem, plan: Plan) -> Found:
    """Every broken rule and where, in the checker's order."""
    named = list(_names(problem, plan))
    if named:
        yield from named
        return
    facts = _Facts(problem, plan)
    for rule in (_served, _latency, _capacity, _survive, _min_replicas, _supply, _budget, _moves, _unmet, _figures):
        yield from rule(facts)


class _Facts:
    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem, self.plan, self.regions = problem, plan, problem.regions
        self.models = {m.model: m for m in problem.models}
        self.ms = {(s, r): problem.rtt_ms[i][j] for i, s in enumerate(self.regions) for j, r in enumerate(self.regions)}
        self.demand = {(m.model, d.region): d.qps for m in problem.models for d in m.demand}
        self.unmet = {(u.model, u.region): u.qps for u in plan.unmet}
        self.share = {(t.model, t.origin, t.to): t.fraction for t in plan.traffic}
        self.count = {(r.model, r.part, r.region, r.hardware): r.count for r in plan.replicas}
        self.option = {(m.model, p.part, o.hardware): o for m in problem.models for p in m.parts for o in p.options}
        self.supply = {(s.region, s.hardware): s for s in problem.supply}
        running = {(r.model, r.part, r.region, r.hardware): r.count for r in problem.current.replicas}
        self.started = sum(max(0, n - running.get(key, 0)) for key, n in self.count.items())

    def able(self, model: str, part: str, region: str) -> float:
        held = {h: n for (m, p, r, h), n in self.count.items() if (m, p, r) == (model, part, region) and n}
        return sum(n * self.option[model, part, h].qps for h, n in held.items())

    def load(self, model: str, region: str) -> float:
        sent = {s: y for (m, s, r), y in self.share.items() if (m, r) == (model, region)}
        return sum(y * self.demand.get((model, s), 0.0) for s, y in sent.items())

    def used(self, region: str, hardware: str, model: str | None = None) -> float:
        return sum(
            n * self.option[m, p, h].units
            for (m, p, r, h), n in self.count.items()
            if n and (r, h) == (region, hardware) and model in {None, m}
        )

    def cost(self, model: str) -> float:
        return sum(self.used(r, h, model) * item.unit_cost for (r, h), item in self.supply.items())


def _over(value: float, limit: float) -> bool:
    return value > limit + 1e-6 * max(1.0, abs(limit))


def _apart(a: float, b: float) -> bool:
    return not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)


def _names(problem: Problem, plan: Plan) -> Found:
    parts = [(m.model, p.part) for m in problem.models for p in m.parts]
    options = [(m.model, p.part, o.hardware) for m in problem.models for p in m.parts for o in p.options]
    demands = [(m.model, d.region) for m in problem.models for d in m.demand]
    for r in plan.replicas:
        unknown = (r.model, r.part) not in parts or r.region not in problem.regions
        if unknown or (r.count > 0 and (r.model, r.part, r.hardware) not in options):
            yield "names", f"{r.model}/{r.part}/{r.region}/{r.hardware}"
    for t in plan.traffic:
        known = t.origin in problem.regions and t.to in problem.regions
        if not known or t.model not in [m.model for m in problem.models]:
            yield "names", f"{t.model}/{t.origin}/{t.to}"
    for u in plan.unmet:
        if (u.model, u.region) not in demands:
            yield "names", f"{u.model}/{u.region}"
    rows = [f"replicas {r.model}/{r.part}/{r.region}/{r.hardware}" for r in plan.replicas]
    rows += [f"traffic {t.model}/{t.origin}/{t.to}" for t in plan.traffic]
    rows += [f"unmet {u.model}/{u.region}" for u in plan.unmet]
    yield from (("names", row) for at, row in enumerate(rows) if row in rows[:at])


def _served(facts: _Facts) -> Found:
    for model, region in sorted(facts.demand.keys() | {(m, s) for m, s, _ in facts.share}):
        total = sum(y for (m, s, _), y in facts.share.items() if (m, s) == (model, region))
        qps = facts.demand.get((model, region), 0.0)
        wanted = 1 - facts.unmet.get((model, region), 0.0) / qps if qps else min(total, 1.0)
        if abs(total - wanted) > 1e-6:
            yield "served", f"{model} from {region}"


def _latency(facts: _Facts) -> Found:
    for (model, origin, to), fraction in sorted(facts.share.items()):
        if fraction > 0 and facts.ms[origin, to] > facts.models[model].latency_tolerance_ms:
            yield "latency", f"{model} from {origin} to {to}"


def _capacity(facts: _Facts) -> Found:
    for model in facts.problem.models:
        for part in model.parts:
            for region in facts.regions:
                if _over(facts.load(model.model, region), facts.able(model.model, part.part, region)):
                    yield "capacity", f"{model.model}/{part.part} in {region}"


def _survive(facts: _Facts) -> Found:
    for model in facts.problem.models:
        if model.survive == "region":
            yield from _losses(facts, model)


def _losses(facts: _Facts, model: ModelProblem) -> Found:
    served = sum(d.qps - facts.unmet.get((model.model, d.region), 0.0) for d in model.demand)
    for part in model.parts:
        for lost in facts.regions:
            left = sum(facts.able(model.model, part.part, region) for region in facts.regions if region != lost)
            if _over(served, left):
                yield "survive", f"{model.model}/{part.part} without {lost}"


def _min_replicas(facts: _Facts) -> Found:
    least = {(m.model, p.part): p.min_replicas for m in facts.problem.models for p in m.parts}
    for model, part, region in sorted({(m, p, r) for m, p, r, _ in facts.count}):
        here = sum(n for (m, p, r, _), n in facts.count.items() if (m, p, r) == (model, part, region))
        if 0 < here < least[model, part]:
            yield "min_replicas", f"{model}/{part} in {region}"


def _supply(facts: _Facts) -> Found:
    for region, hardware in sorted({(r, h) for _, _, r, h in facts.count}):
        item = facts.supply.get((region, hardware))
        if _over(facts.used(region, hardware), item.units if item else 0.0):
            yield "supply", f"{region}/{hardware}"


def _budget(facts: _Facts) -> Found:
    for model in facts.problem.models:
        if model.budget_per_hour is not None and _over(facts.cost(model.model), model.budget_per_hour):
            yield "budget", f"model {model.model}"
    for owner in facts.problem.owners:
        spent = sum(facts.cost(m.model) for m in facts.problem.models if m.owner == owner.owner)
        if owner.budget_per_hour is not None and _over(spent, owner.budget_per_hour):
            yield "budget", f"owner {owner.owner}"


def _moves(facts: _Facts) -> Found:
    most = facts.problem.limits.max_moves
    if most is not None and facts.started > most:
        yield "moves", "all models"


def _unmet(facts: _Facts) -> Found:
    for item in facts.plan.unmet:
        if _over(item.qps, facts.demand[item.model, item.region]):
            yield "unmet", f"{item.model} from {item.region}"
        if not item.rules:
            yield "unmet", f"{item.model} from {item.region}"


def _figures(facts: _Facts) -> Found:
    plan, weights = facts.plan, facts.problem.objective
    cost = sum(facts.cost(model) for model in facts.models)
    latency = sum(facts.demand.get((m, s), 0.0) * y * facts.ms[s, r] for (m, s, r), y in facts.share.items())
    missed = sum(facts.models[m].priority * qps for (m, _), qps in facts.unmet.items())
    objective = cost + weights.latency_weight * latency + weights.move_cost * facts.started
    objective += weights.unmet_cost * missed
    gap = max(0.0, (plan.objective - plan.bound) / plan.objective) if plan.objective > 0 else 0.0
    if _apart(plan.cost_per_hour, cost):
        yield "cost", "cost_per_hour"
    if _apart(plan.objective, objective):
        yield "objective", "objective"
    if _over(plan.bound, objective):
        yield "bound", "bound"
    if _apart(plan.gap, gap):
        yield "gap", "gap"
