"""What the record and the events say of a drain: what holds it up, and its end."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.regions.activities import DrainActivities
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.model.lifecycle.status import ConditionType, Reason


@pytest.mark.parametrize(("disaster", "status"), [(True, "declared lost"), (False, "drained")])
def test_the_end_of_a_drain_calls_a_region_drained_only_if_it_was_asked(house, disaster, status):
    with house.store.begin() as unit:
        drain = unit.add_drain("eu-west", disaster=disaster)
        unit.update_drain(drain.id, state=DrainState.DRAINING)
    activities = DrainActivities(house.store, house.infrastructure, lambda: None, lambda *_: None)

    seen = ActivityEnvironment().run(activities.look_at_drain, DrainInput(region="eu-west"))

    assert seen.state is DrainState.DRAINED
    assert ("nothing runs there" in seen.message) is not disaster
    with house.store.read() as unit:
        told = unit.events(None, limit=1)[0].message
    assert told == f"region eu-west is {status}: {seen.message}"


def look(house):
    activities = DrainActivities(house.store, house.infrastructure, lambda: None, lambda *_: None)
    return ActivityEnvironment().run(activities.look_at_drain, DrainInput(region="eu-west")).message


def runs_in(house, region, *models):
    for model in models:
        house.apply(model)
        key = DeploymentKey(model=model, part="p", region=region, hardware="cpu")
        with house.store.begin(model) as unit:
            unit.put_deployment(Deployment(key=key, replicas=1, engine="torch", units=1, qps=10))


@pytest.fixture
def drained(house):
    """A planned drain of eu-west, from which two models move."""
    runs_in(house, "eu-west", "a", "b", "c", "d")
    runs_in(house, "us-east", "elsewhere")
    with house.store.begin() as unit:
        drain = unit.add_drain("eu-west")
        unit.update_drain(drain.id, state=DrainState.DRAINING)
    return house


def pause(house, model, reason=Reason.PAUSED, message="paused by ann: looks odd"):
    with house.store.begin(model) as unit:
        unit.set_condition(model, ConditionType.PROGRESSING, "False", reason, message)


def test_a_planned_drain_names_the_models_that_are_held_up_and_the_command_that_helps(drained):
    assert look(drained) == "models move away"
    pause(drained, "elsewhere")
    assert look(drained) == "models move away"

    move = drained.ask("b", ChangeKind.MOVE, "move-b")
    with drained.store.begin("b") as unit:
        unit.update_change(
            move.id, state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen until Monday: sale"
        )
    assert look(drained) == (
        "models move away; 1 model is held up: b: move move-b is frozen until Monday: sale "
        "(`ipnext override move-b --reason TEXT`)"
    )

    pause(drained, "a", message="paused by ann: " + "odd " * 100)
    pause(drained, "c", Reason.AWAITING_APPROVAL, "waits for an approval")
    pause(drained, "d")
    told = look(drained)
    assert told.startswith("models move away; 4 models are held up: a: paused by ann: odd odd ")
    assert "(`ipnext resume a`); b: move move-b is frozen" in told
    assert told.endswith("; c: waits for an approval (`ipnext approve c`); and 1 more")
    assert len(told) < 600


def test_what_holds_up_a_lost_region_is_told_by_its_failover(house):
    runs_in(house, "eu-west", "a")
    pause(house, "a")
    with house.store.begin() as unit:
        drain = unit.add_drain("eu-west", disaster=True)
        unit.update_drain(drain.id, state=DrainState.DRAINING, message="sent around")
    assert look(house) == "sent around"
