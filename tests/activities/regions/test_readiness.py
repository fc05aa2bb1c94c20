"""`UpToDate` is false while users are sent to a generation that does not serve, whatever sent them there."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.regions.activities import DrainActivities
from activities.regions.reconciliation import ReconciliationActivities
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import Done, LifecycleResult, RecordInput
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.registry import GenerationState, GraphNode, PartGraph
from ipnext.store.operations.change_end import write_ready

EAST, EUROPE = "us-east", "eu-west"
GRAPH = PartGraph(nodes=(GraphNode(name="dense", part="dense", inputs={"x": "request.x"}),), outputs={"y": "dense.y"})
PART = {"name": "dense", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
ASTRAY = "users of us-east are sent to generation 1; generation 2 serves"


def hold(unit, region, generation):
    held = AssignedSnapshot(snapshot=generation, digest="d" * 64, uri="file:///d", generations=(generation,))
    key = DeploymentKey(model="m", part="dense", region=region, hardware="cpu")
    unit.put_deployment(Deployment(key=key, replicas=1, engine="torch", units=1, qps=100, holds=(held,)))


def route(unit, region, to, generation, *, revision=1, holds):
    served = (ServedGeneration(generation=holds, graph=GRAPH, snapshots={"dense": holds}),)
    shares = (RouteShare(to=to, generation=generation, fraction=1.0),)
    unit.put_route(RouteTable(model="m", region=region, revision=revision, shares=shares, served=served))


@pytest.fixture
def moved(house, kit):
    """The publish that brings generation 2 to eu-west alone is about to end; us-east still holds generation 1."""
    house.apply_fleet()
    house.bring("m", parts=[PART], graph=None, demand=[{"region": EAST, "qps": 10}])
    for number in (1, 2):
        source = house.source(kit.DENSE, kit.weights(number))
        with house.store.begin() as unit:
            unit.publish("m", {"dense": source}, change_id=f"m-{number}")
    with house.store.begin() as unit:
        unit.update_change("m-1", state=ChangeState.DONE)
        unit.set_generation_state("m", 1, GenerationState.SERVING)
        unit.update_model("m", serving_generation=1, target_generation=2)
        hold(unit, EAST, 1)
        hold(unit, EUROPE, 2)
        route(unit, EAST, EUROPE, 2, holds=1)
        route(unit, EUROPE, EUROPE, 2, holds=2)
    return house


def finish(house):
    result = LifecycleResult(state=ChangeState.DONE, generation=2, reason=Reason.SUCCEEDED, message="")
    record = RecordInput(
        model="m",
        change_id="m-2",
        kind=ChangeKind.PUBLISH,
        generation=2,
        result=result,
        run_id="r",
        revision=1,
    )
    ActivityEnvironment().run(DeploymentActivities(house.store, house.infrastructure).finish_change, record)


def lose(house):
    with house.store.begin() as unit:
        unit.add_drain(EUROPE, disaster=True)
    activities = DrainActivities(house.store, house.infrastructure, lambda: None, lambda *_: None)
    ActivityEnvironment().run(activities.route_around, DrainInput(region=EUROPE))


def judged(house):
    with house.store.read() as unit:
        found = {condition.type: condition for condition in unit.conditions("m")}
    return found[ConditionType.UP_TO_DATE]


@pytest.mark.parametrize("steps", [(finish, lose), (lose, finish)], ids=["before the loss", "after the failover"])
def test_a_publish_that_is_done_is_up_to_date_only_if_users_get_what_it_brought(moved, steps):
    for step in steps:
        step(moved)

    found = judged(moved)
    assert (found.status, found.reason, found.message) == ("False", Reason.PROGRESSING, ASTRAY)


def test_the_end_of_the_change_that_brings_the_users_back_makes_it_up_to_date_again(moved):
    finish(moved)
    lose(moved)
    with moved.store.begin() as unit:
        hold(unit, EAST, 2)
        route(unit, EAST, EAST, 2, revision=9, holds=2)
        write_ready(unit, unit.model("m"))

    assert judged(moved).status == "True"


def test_a_failover_that_sends_users_back_to_what_serves_makes_it_up_to_date_again(moved):
    with moved.store.begin() as unit:
        hold(unit, EAST, 2)
        hold(unit, EUROPE, 1)
        route(unit, EAST, EUROPE, 1, revision=3, holds=2)
        route(unit, EUROPE, EUROPE, 1, revision=3, holds=1)
    finish(moved)
    assert judged(moved).status == "False"

    lose(moved)

    assert judged(moved).status == "True"


def test_a_recorded_repair_names_the_users_that_it_is_for(moved):
    finish(moved)
    assert judged(moved).status == "True"
    with moved.store.begin() as unit:
        route(unit, EAST, EAST, 1, revision=9, holds=1)
    activities = ReconciliationActivities(moved.store, moved.infrastructure)
    assert ActivityEnvironment().run(activities.record_repairs, Done()).models == ("m",)

    assert judged(moved).message == ASTRAY


def test_a_region_that_returns_with_users_of_a_former_generation_is_told(moved):
    finish(moved)
    with moved.store.begin() as unit:
        drain = unit.add_drain(EAST, disaster=True)
        unit.update_drain(drain.id, state=DrainState.RETURNING)
        route(unit, EAST, EAST, 1, revision=9, holds=1)
    activities = DrainActivities(moved.store, moved.infrastructure, lambda: None, lambda *_: None)
    ActivityEnvironment().run(activities.return_region, DrainInput(region=EAST))

    assert judged(moved).message == ASTRAY
