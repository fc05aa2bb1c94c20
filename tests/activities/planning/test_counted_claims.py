"""No plan places a model by more than it counts for its owner.

What grows after the apply is counted first, or refused.
"""

from datetime import UTC, datetime

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.planning.activities import PlanningActivities
from activities.planning.policy import OBJECTIVE, REPLAN_LIMITS, PlanningPolicy
from activities.planning.replan import adopt_beside, fleet_snapshot
from activities.planning.solver import ThreadSolver
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput, StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.plan import PlanDiff
from ipnext.model.registry.registry import LayoutPart, PartGraph, Segment, SplitLayout
from ipnext.store.operations.quota_claims import admitted_claims
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import PlanRecord
from planner.solve import solve

SMALL, LARGE = 100.0, 900.0
"""Requests a second, that one part serves with 1 and 9 replicas."""


@pytest.fixture
def apply(house, kit):
    def call(*, qps=SMALL, **spec):
        document = kit.manifest("ranker", **{"demand": [{"region": "us-east", "qps": qps}], **spec})
        manifest = parse_manifest(document)
        with house.store.begin("ranker") as unit:
            claims = admitted_claims(unit, manifest, replicas=100, models=10, callers=10)
            unit.put_model(manifest, expected_version=None)
            unit.claim("ranker", claims)

    return call


@pytest.fixture
def place(house):
    def call(change, *, replicas=100):
        planning = PlanningActivities(house.store, ThreadSolver(), PlanningPolicy(owner_replicas=replicas))
        stage = StageInput(model="ranker", change_id=change.id, kind=ChangeKind.PUBLISH, generation=change.generation)
        return ActivityEnvironment().run(planning.place_model, stage)

    return call


def claimed(house, quota="replicas"):
    with house.store.read() as unit:
        return unit.claims_named(["ranker"])["ranker"].get(quota)


def dealt(house, number):
    """What a cut stores that dealt the tables out by bytes: many parts, which the policy does not number."""
    names = ["dense", *(f"sparse-{i}" for i in range(number))]
    parts = tuple(
        LayoutPart(
            name=name,
            modules=(name,),
            size_bytes=1,
            hardware=({"kind": "cpu", "units": 1, "qps": 100},),
            segments=(Segment(name=name, stage=0, snapshot=1, size_bytes=1),),
        )
        for name in names
    )
    nodes = [{"name": name, "part": name, "inputs": {"features": "request.features"}} for name in names]
    graph = PartGraph.model_validate({"nodes": nodes, "outputs": {"score": "dense.score"}})
    with house.store.begin("ranker") as unit:
        cut = unit.model("ranker").manifest.spec.split.cut_digest
        layout = SplitLayout(source="whole", digest="0" * 64, cut=cut, form=1, equal_at=(), parts=parts, graph=graph)
        unit.set_layout("ranker", 1, layout)


def split_model(apply, house):
    whole = {"name": "whole", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
    shard = {"by": "bytes", "max_bytes": 10}
    policy = {"parts": [{"name": "sparse", "modules": ["tables"], "shard": shard}], "default": "dense"}
    apply(parts=[whole], graph=None, split=policy)
    return house.publish_whole("ranker", 1, change_id="p1")


def test_parts_that_a_cut_made_beyond_the_quota_are_not_placed(house, apply, place):
    change = split_model(apply, house)
    dealt(house, 7)
    planned = place(change, replicas=5)
    assert (planned.feasible, planned.reason) == (False, Reason.QUOTA_EXCEEDED)
    assert "8 replicas; owner 'default' uses 0 of 5 replicas" in planned.message
    with house.store.read() as unit:
        assert unit.placement("ranker") is None
    assert claimed(house) == 2, "the policy shows two parts"


def test_parts_that_a_cut_made_count_once_they_are_placed(house, apply, place):
    change = split_model(apply, house)
    dealt(house, 7)
    assert place(change).feasible
    assert claimed(house) == 8


def fleet_plan(unit):
    snapshot = fleet_snapshot(unit, OBJECTIVE, REPLAN_LIMITS)
    record = PlanRecord(
        id="fleet",
        trigger="manual",
        input_digest="0" * 64,
        problem=snapshot.problem,
        plan=solve(snapshot.problem),
        diff=PlanDiff(),
        created_at=datetime.now(UTC),
    )
    return snapshot, PreparedPlan.of(record)


@pytest.fixture
def serving(house, apply, place):
    apply()
    change = house.publish("ranker", 1)
    assert place(change).feasible
    with house.store.begin("ranker") as unit:
        unit.update_model("ranker", serving_generation=1, observed_generation=1)


@pytest.mark.parametrize("lowered", [False, True])
def test_a_plan_of_the_fleet_places_no_model_by_a_manifest_that_counts_no_longer(house, apply, serving, lowered):
    """The search takes minutes: the owner may have shrunk the model and given what it frees to another one."""
    before = claimed(house)
    apply(qps=LARGE)
    with house.store.read() as unit:
        snapshot, plan = fleet_plan(unit)
    if lowered:
        with house.store.begin("ranker") as unit:
            unit.claim("ranker", {"replicas": before, "units.cpu": before})
    with house.store.begin("fleet") as unit:
        record = adopt_beside(unit, plan, snapshot)
    with house.store.read() as unit:
        (demand,) = unit.placement("ranker").wishes.demand
    assert demand.qps == (SMALL if lowered else LARGE)
    assert ("ranker was changed while the planner worked and kept there" in record.message) is lowered


def test_a_search_goes_by_the_wishes_in_force_if_the_newest_need_more_than_the_model_counts(house, apply, serving):
    counted = claimed(house)
    apply(qps=LARGE)
    for amount, expected in ((counted, SMALL), (9 * counted, LARGE)):
        with house.store.begin("ranker") as unit:
            unit.claim("ranker", {"replicas": amount, "units.cpu": amount})
        with house.store.read() as unit:
            (model,) = fleet_snapshot(unit, OBJECTIVE, REPLAN_LIMITS).problem.models
        assert [item.qps for item in model.demand] == [expected]


def test_former_wishes_are_planned_within_the_fleet_as_it_is_now(house, kit, apply, serving):
    counted = claimed(house)
    apply(demand=[{"region": "eu-west", "qps": LARGE}])
    with house.store.begin("ranker") as unit:
        unit.claim("ranker", {"replicas": counted, "units.cpu": counted})
    with house.store.begin() as unit:
        fleet = unit.fleet().spec
        west = tuple(item for item in fleet.supply if item.region == "eu-west")
        left = {"regions": ("eu-west",), "rtt_ms": ((1.0,),), "supply": west}
        unit.put_fleet(fleet.model_copy(update=left), expected_version=None)
        assert fleet_snapshot(unit, OBJECTIVE, REPLAN_LIMITS).problem.models == ()


@pytest.mark.parametrize(("state", "counted"), [(ChangeState.DONE, 2), (ChangeState.ROLLED_BACK, 18)])
def test_the_end_of_a_change_by_a_smaller_manifest_frees_the_rest_if_it_succeeded(house, apply, place, state, counted):
    apply(qps=LARGE)
    change = house.publish("ranker", 1)
    assert place(change).feasible
    end(house, change, ChangeState.DONE, revision=1)
    run(house)
    apply(qps=SMALL)
    change = house.ask("ranker", ChangeKind.APPLY, "smaller")
    assert claimed(house) == 18
    assert place(change.model_copy(update={"generation": 1})).feasible
    if state is ChangeState.DONE:
        run(house)
    end(house, change, state, revision=2)
    assert claimed(house) == counted


def test_a_change_that_succeeds_without_a_move_frees_nothing_that_a_way_back_left(house, apply, place):
    """The wishes are those of the rollout that went back; what runs is as before it."""
    apply(qps=LARGE)
    change = house.publish("ranker", 1)
    assert place(change).feasible
    end(house, change, ChangeState.DONE, revision=1)
    run(house)
    apply(qps=SMALL)
    smaller = house.ask("ranker", ChangeKind.APPLY, "smaller")
    assert place(smaller.model_copy(update={"generation": 1})).feasible
    end(house, smaller, ChangeState.ROLLED_BACK, revision=2)
    back = house.ask("ranker", ChangeKind.ROLLBACK, "back", generation=1)
    end(house, back, ChangeState.DONE, revision=2)
    assert claimed(house) == 18


def run(house):
    """Run what is placed, and nothing else."""
    with house.store.begin("ranker") as unit:
        for left in unit.deployments("ranker"):
            unit.delete_deployment(left.key)
        for row in unit.placement("ranker").replicas:
            key = DeploymentKey(model="ranker", part=row.part, region=row.region, hardware=row.hardware)
            unit.put_deployment(Deployment(key=key, engine="torch", replicas=row.count, units=1, qps=100))


def end(house, change, state, *, revision):
    result = LifecycleResult(state=state, generation=1, reason=Reason.SUCCEEDED)
    record = RecordInput(
        model="ranker",
        change_id=change.id,
        kind=change.kind,
        generation=1,
        result=result,
        run_id="r",
        revision=revision,
    )
    ActivityEnvironment().run(DeploymentActivities(house.store, house.infrastructure).finish_change, record)
