"""Moves away from a lost region wait for nothing, whatever plan they are by and whenever they were asked."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.planning.activities import PlanningActivities
from activities.planning.solver import ThreadSolver
from activities.regions.activities import DrainActivities
from activities.state.drained_fleet import leaves_loss
from ipnext.errors import Unavailable
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from tests.fleets import two_regions

EAST, EUROPE = "us-east", "eu-west"


@pytest.fixture(params=[ChangeState.RECORDED, ChangeState.QUEUED, ChangeState.RUNNING])
def moves(house, request):
    """Two models with replicas in Europe; a plan places the one in the east only, the other one where it is.

    Both moves wait.
    """
    found = {}
    for model, region in (("leaves", EAST), ("stays", EUROPE)):
        house.apply_fleet(two_regions(40, 0) if region == EAST else two_regions(0, 40))
        house.apply(model, demand=[{"region": region, "qps": 80}])
        change = house.publish(model, 1)
        stage = StageInput(model=model, change_id=change.id, kind=ChangeKind.PUBLISH, generation=1)
        ActivityEnvironment().run(PlanningActivities(house.store, ThreadSolver()).place_model, stage)
        key = DeploymentKey(model=model, part="dense", region=EUROPE, hardware="cpu")
        held = AssignedSnapshot(part=None, snapshot=1, digest="d" * 64, uri="file:///d", generations=(1,), signers=None)
        own = {"engine": "torch", "units": 1, "qps": 100, "memory_bytes": 1, "holds": (held,)}
        with house.store.begin(model) as unit:
            unit.update_change(change.id, state=ChangeState.DONE)
            unit.update_model(model, serving_generation=1)
            unit.put_deployment(Deployment(key=key, replicas=2, **own))
            plan_id = unit.placement(model).plan_id
            move = unit.add_change(model, ChangeKind.MOVE, change_id=f"move-{model}", plan_id=plan_id)
            unit.update_change(move.id, state=request.param)
        found[model] = move
    return found


@pytest.fixture
def lose(house):
    """Lose Europe, with the step of its drain that fails its traffic over."""

    def run(submit):
        with house.store.begin() as unit:
            unit.add_drain(EUROPE, disaster=True)
        activities = DrainActivities(house.store, house.infrastructure, lambda: None, submit)
        ActivityEnvironment().run(activities.route_around, DrainInput(region=EUROPE))

    return run


def test_a_move_leaves_a_lost_region_if_its_placement_has_nothing_there(house, moves):
    with house.store.begin() as unit:
        assert not any(leaves_loss(unit, move) for move in moves.values()), "nothing is lost"
        unit.add_drain(EUROPE, disaster=True)
        assert {model: leaves_loss(unit, move) for model, move in moves.items()} == {"leaves": True, "stays": False}


def test_a_planned_drain_lets_no_move_pass(house, moves):
    with house.store.begin() as unit:
        unit.add_drain(EUROPE)
        assert not any(leaves_loss(unit, move) for move in moves.values())


def test_moves_that_wait_are_submitted_again_once_for_each_replan_of_the_loss(house, moves, lose):
    submitted = []

    lose(lambda change, again: submitted.append((change.id, again)))

    with house.store.read() as unit:
        assert submitted == [("move-leaves", unit.drain(EUROPE).replan_id)]


def test_an_entity_that_does_not_answer_holds_up_no_failover(house, moves, lose):
    def fail(*_):
        msg = "the entity did not answer"
        raise Unavailable(msg)

    lose(fail)

    with house.store.read() as unit:
        drain = unit.drain(EUROPE)
        assert (drain.state, drain.replan_id is not None) == (DrainState.DRAINING, True)
