"""Two changes of one model run while a repair, or a move away from a lost region, passes the one that waits."""
# ruff: noqa: F811 - fixtures are arguments of the same name

import asyncio

import pytest
from temporalio.api.enums.v1 import EventType

from activities.transition.draft import Draft
from ipnext import names
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import TransitionState
from ipnext.temporal import begin_entity, control
from tests.workflows.entity.test_waiting_changes import (  # noqa: F401 - fixtures
    THREE_SERVES,
    freeze,
    frozen,
    moves,
    outbox,
    repairs,
    send_astray,
    served,
    served_twice,
    thaw,
)
from tests.workflows.regions.drains import EUROPE, regions
from workflows import policies

pytestmark = pytest.mark.usefixtures("workers", "reconciler")

ASKED = ControlAsked(by="anna")


@pytest.fixture
def gate(monkeypatch):
    """Repairs find no supply until it is opened."""
    opened, read = asyncio.Event(), Draft.read

    def gated(repository, stage):
        if stage.kind is ChangeKind.REPAIR and not opened.is_set():
            msg = "waiting for supply"
            raise Unavailable(msg)
        return read(repository, stage)

    monkeypatch.setattr(Draft, "read", gated)
    return opened


@pytest.fixture
def passed(house, model, served_twice, freeze, submit, until, gate):
    """Generation 2 serves. A publish of 3 is frozen; a repair passes it and waits."""

    async def begin():
        await served_twice()
        freeze()
        change = house.publish(model, 3)
        await submit(change)
        await until(frozen(house, change))
        send_astray(house, model)
        await until(lambda: [found.state for found in repairs(house, model)] == [ChangeState.RUNNING])
        return change

    return begin


async def shows(client, model, change, stage):
    """Wait until a change's run shows a stage."""
    run = client.get_workflow_handle(names.lifecycle_workflow_id(model, change.id))
    while (await run.describe()).search_attributes[names.STAGE_ATTRIBUTE] != [stage]:  # noqa: ASYNC110 - the server tells
        await asyncio.sleep(0.1)


@pytest.mark.usefixtures("outbox")
async def test_a_repair_that_waited_while_the_publish_ended_leaves_its_generation(
    house, model, passed, thaw, until, gate
):
    change = await passed()

    await thaw()
    await until(lambda: house.change(change.id).state is ChangeState.DONE)
    gate.set()

    await until(lambda: repairs(house, model)[0].state.final)
    assert repairs(house, model)[0].state is ChangeState.REFUSED
    assert "generation 3 serves by now" in repairs(house, model)[0].message
    assert house.shares(model) == THREE_SERVES
    with house.store.read() as unit:
        assert unit.model(model).serving_generation == 3


@pytest.mark.usefixtures("outbox")
async def test_a_pause_holds_the_publish_that_a_repair_passes(house, model, passed, thaw, until, gate, client):
    change = await passed()

    await control(client, model, ControlAction.PAUSE, ASKED)
    await thaw()

    await asyncio.wait_for(shows(client, model, change, "paused"), timeout=120)
    assert not repairs(house, model)[0].state.final
    gate.set()
    await until(lambda: repairs(house, model)[0].state is ChangeState.DONE)
    await control(client, model, ControlAction.RESUME, ASKED)
    await until(lambda: house.change(change.id).state is ChangeState.DONE)


@pytest.mark.usefixtures("outbox")
async def test_a_pause_and_its_end_reach_the_publish_though_the_entity_continues_as_new_at_each(
    house, model, passed, thaw, until, gate, client, monkeypatch
):
    change = await passed()
    monkeypatch.setattr(policies, "MOST_UPDATES", 1)

    await control(client, model, ControlAction.PAUSE, ASKED)
    await thaw()
    await asyncio.wait_for(shows(client, model, change, "paused"), timeout=120)
    await control(client, model, ControlAction.RESUME, ASKED)

    await until(lambda: house.change(change.id).state is ChangeState.DONE)
    assert not repairs(house, model)[0].state.final
    gate.set()
    await until(lambda: repairs(house, model)[0].state.final)


@pytest.mark.usefixtures("outbox")
async def test_an_abort_ends_the_publish_that_a_repair_passes(house, model, passed, until, gate, client):
    change = await passed()

    await control(client, model, ControlAction.ABORT, ASKED, change_id=change.id)

    await until(lambda: house.change(change.id).state.final)
    assert house.change(change.id).reason is Reason.ABORTED
    assert not repairs(house, model)[0].state.final
    gate.set()
    await until(lambda: repairs(house, model)[0].state is ChangeState.DONE)


async def test_an_entity_that_begins_again_leaves_the_move_away_from_a_lost_region_unpaused(
    house, model, served, until, client, drains
):
    await served()
    await control(client, model, ControlAction.PAUSE, ASKED)
    house.infrastructure.stall()
    house.infrastructure.cut(EUROPE)
    await drains.ask(disaster=True)
    await until(lambda: moves(house, model) and runs(house, moves(house, model)[0]))

    entity = client.get_workflow_handle(names.model_workflow_id(model))
    await entity.terminate()
    await begin_entity(client, model)
    await asyncio.wait_for(signalled(client, model, moves(house, model)[0]), timeout=120)
    house.infrastructure.release()

    await until(lambda: moves(house, model)[0].state.final)
    assert moves(house, model)[0].state is ChangeState.DONE, moves(house, model)[0].message
    assert regions(house, model) == {"us-east"}


def runs(house, change):
    with house.store.read() as unit:
        record = unit.find_transition(change.id)
    return record is not None and record.state is TransitionState.RUNNING


async def signalled(client, model, change):
    """Wait until the run has heard that another entity follows it, and what that one has to say of a pause."""
    run = client.get_workflow_handle(names.lifecycle_workflow_id(model, change.id))
    kind = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    while not any(event.event_type == kind for event in (await run.fetch_history()).events):  # noqa: ASYNC110 - the server tells
        await asyncio.sleep(0.1)
    await client.get_workflow_handle(names.model_workflow_id(model)).query(names.MODEL_STATE)


async def test_a_move_of_a_planned_drain_passes_once_its_region_is_lost(
    house, model, served, freeze, submit, until, client, drains
):
    await served()
    freeze()
    change = house.publish(model, 2)
    await submit(change)
    await until(frozen(house, change))
    await drains.ask()
    await until(lambda: moves(house, model))
    await asyncio.wait_for(weighed(client, model), timeout=120)

    house.infrastructure.cut(EUROPE)
    await drains.ask(disaster=True)

    await until(lambda: moves(house, model)[0].state.final)
    assert moves(house, model)[0].state is ChangeState.DONE, moves(house, model)[0].message
    assert regions(house, model) == {"us-east"}
    assert house.change(change.id).reason is Reason.FROZEN
    await drains.reaches(DrainState.DRAINED)


async def weighed(client, model):
    """Wait until the entity has asked whether the move may pass, and heard the answer."""
    entity, asked = client.get_workflow_handle(names.model_workflow_id(model)), None
    while True:
        events = (await entity.fetch_history()).events
        asked = next(
            (
                event.event_id
                for event in events
                if event.activity_task_scheduled_event_attributes.activity_type.name == "may_pass"
            ),
            None,
        )
        if asked and any(
            event.activity_task_completed_event_attributes.scheduled_event_id == asked for event in events
        ):
            return
        await asyncio.sleep(0.1)
