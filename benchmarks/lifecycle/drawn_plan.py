"""A plan that was drawn and not solved, adopted as the plan of the whole fleet."""

from collections.abc import Sequence
from datetime import UTC, datetime

from activities.planning.problem import fleet_problem, model_problem
from ipnext.model.fleet import FleetSpec
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import Plan, PlanDiff, ReplicaCount, SolverInfo, TrafficShare
from ipnext.model.value import digest_of
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import PlanRecord
from ipnext.store.store import Store


def adopt_drawn_plan(
    store: Store,
    fleet: FleetSpec,
    models: Sequence[ModelManifest],
    replicas: Sequence[ReplicaCount],
    traffic: Sequence[TrafficShare],
    *,
    cost_per_hour: float = 0.0,
) -> None:
    """Write the plan and adopt it."""
    problem = fleet_problem(fleet, [model_problem(model) for model in models])
    plan = Plan(
        status="feasible",
        objective=0,
        bound=0,
        gap=0,
        bound_covers="nothing: drawn",
        cost_per_hour=cost_per_hour,
        replicas=tuple(replicas),
        traffic=tuple(traffic),
        solver=SolverInfo(method="drawn", seconds=0),
    )
    record = PlanRecord(
        id="whole",
        trigger="bench",
        input_digest=digest_of(problem),
        problem=problem,
        plan=plan,
        diff=PlanDiff(),
        created_at=datetime.now(UTC),
    )
    with store.begin() as repository:
        repository.adopt_plan(PreparedPlan.of(record), expected=None)
