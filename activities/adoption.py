"""When a plan replaces the one in force, how it is adopted, and how the plan follows what really runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from activities.problems import cost_per_hour, rows_of, running
from ipnext.model.plan import CurrentState, Plan, Problem, ReplicaCount, TrafficShare
from ipnext.model.value import digest_of
from ipnext.store.records import PlanRecord
from ipnext.store.repository import Repository
from planner.diff import diff
from planner.solution import check

DEAD_BAND = 0.02
"""A plan that saves less than this share of the cost is not worth its moves."""

PLACEMENT_RULES = frozenset({"served", "latency", "capacity", "survive", "min_replicas", "supply", "budget", "names"})
"""Rules that say whether a placement holds; the others concern a plan's own figures."""


@dataclass(frozen=True)
class Verdict:
    """Whether to adopt a plan, and why, in words."""

    adopt: bool
    message: str


def replaces(plan: Plan, in_force: PlanRecord | None, problem: Problem) -> Verdict:
    """Adopt a plan where the one in force breaks a rule of today's problem, serves less, or costs clearly more."""
    if in_force is None:
        return Verdict(adopt=True, message="the first plan")
    old = in_force.plan
    if not rows_differ(old, plan):
        return Verdict(adopt=False, message="the plan in force is the best one found")
    broken = [violation for violation in check(problem, old) if violation.rule in PLACEMENT_RULES]
    if broken:
        return Verdict(adopt=True, message=f"the plan in force no longer holds: {broken[0].message}")
    unmet_before, unmet_now = sum(u.qps for u in old.unmet), sum(u.qps for u in plan.unmet)
    if unmet_now < unmet_before * (1 - 1e-6):
        return Verdict(adopt=True, message=f"{unmet_before - unmet_now:g} requests/s more are served")
    saved = old.cost_per_hour - plan.cost_per_hour
    if unmet_now <= unmet_before and saved > DEAD_BAND * old.cost_per_hour:
        return Verdict(adopt=True, message=f"saves {saved:.2f} $/h")
    return Verdict(adopt=False, message=f"saves {saved:.2f} $/h, too little to move anything")


def rows_differ(one: Plan | CurrentState, other: Plan | CurrentState) -> bool:
    """Whether two plans place or route anything differently."""
    return _rows(one) != _rows(other)


def adopt(repository: Repository, record: PlanRecord, *, expected: PlanRecord | None) -> None:
    """Keep a plan and put it in force in place of `expected`. StaleWrite where another one is by now."""
    repository.save_plan(record)
    repository.adopt_plan(record.id, expected=expected.id if expected else None)


def moved_models(record: PlanRecord) -> tuple[str, ...]:
    """Models that a plan moves, those first that free more units than they take."""
    units = {(m.model, p.part, o.hardware): o.units for m in record.problem.models for p in m.parts for o in p.options}
    taken = {change.model: 0.0 for change in record.diff.traffic}
    taken |= {change.model: 0.0 for change in record.diff.replicas}
    for change in record.diff.replicas:
        size = units.get((change.model, change.part, change.hardware), 1.0)
        taken[change.model] += (change.after - change.before) * size
    return tuple(sorted(taken, key=lambda model: (taken[model], model)))


def settle(repository: Repository, model: str, *, change_id: str) -> None:
    """Let the plan in force say what really runs of a model: after a change that did not come through.

    The rows of all other models stay as they are.
    """
    in_force = repository.plan_in_force()
    if in_force is None:
        return
    demanding = {item.region for item in repository.model(model).manifest.spec.demand}
    tables = [table for table in repository.routes(model) if table.region in demanding]
    actual = running(repository.deployments(model), tables)
    planned = rows_of(in_force.plan, model)
    if not rows_differ(planned, actual):
        return
    plan = _with_rows(in_force, model, actual)
    record = PlanRecord(
        id=f"{change_id}.settled.{digest_of([digest_of(plan), in_force.id])[:12]}",
        trigger=f"settle {model}",
        input_digest=in_force.input_digest,
        problem=in_force.problem,
        plan=plan,
        diff=diff(in_force.plan, plan),
        message=f"the plan follows what runs of {model}",
        created_at=datetime.now(UTC),
    )
    adopt(repository, record, expected=in_force)


def _with_rows(in_force: PlanRecord, model: str, rows: CurrentState) -> Plan:
    plan, problem = in_force.plan, in_force.problem
    replicas = [row for row in plan.replicas if row.model != model] + list(rows.replicas)
    traffic = [row for row in plan.traffic if row.model != model] + list(rows.traffic)
    return plan.model_copy(
        update={
            "status": "feasible",
            "cost_per_hour": cost_per_hour(replicas, problem),
            "replicas": tuple(sorted(replicas, key=_placement)),
            "traffic": tuple(sorted(traffic, key=lambda row: (row.model, row.origin, row.to))),
            "unmet": tuple(unmet for unmet in plan.unmet if unmet.model != model),
        }
    )


def _placement(row: ReplicaCount) -> tuple[str, str, str, str]:
    return (row.model, row.part, row.region, row.hardware)


def _rows(state: Plan | CurrentState) -> Mapping[tuple[str, ...], float]:
    replicas: dict[tuple[str, ...], float] = {_placement(row): row.count for row in state.replicas if row.count}
    return replicas | {_route(row): round(row.fraction, 6) for row in state.traffic if row.fraction > 0}


def _route(row: TrafficShare) -> tuple[str, ...]:
    return (row.model, row.origin, row.to)
