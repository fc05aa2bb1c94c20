"""An entity whose history does not replay ends, and the next one takes up what is open: nothing waits for a person."""

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus

from ipnext import names
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.status import ConditionType
from ipnext.temporal import control
from workflows import policies
from workflows.model import ModelWorkflow

HELD = {"canary": 0.1, "maxStep": 0.9, "holdSeconds": 3600, "deadlineSeconds": 180}


@pytest.fixture
def other_commands(monkeypatch):
    """From now on an entity begins with another command than those that began before."""

    def changed():
        read = ModelWorkflow._open_changes

        async def later(self):
            await workflow.sleep(0.01)
            return await read(self)

        monkeypatch.setattr(ModelWorkflow, "_open_changes", later)

    return changed


async def test_an_entity_whose_history_does_not_replay_ends_and_the_next_one_carries_out_what_is_open(
    house, model, client, serving, submit, ended, until, other_commands
):
    house.apply(model)
    first, entity = house.publish(model, 1), client.get_workflow_handle(names.model_workflow_id(model))
    async with serving():
        await submit(first)
        await ended(first)
        house.apply(model, rollout=HELD)
        second = house.publish(model, 2)
        await submit(second)
        await until(lambda: house.condition(model, ConditionType.ROUTES_READY).message == "generation 2, wave 1")
    before = (await entity.describe()).run_id
    other_commands()

    async with serving():
        third = house.publish(model, 3)
        await submit(third)
        run = await client.get_workflow_handle(entity.id, run_id=before).describe()
        assert run.status is WorkflowExecutionStatus.FAILED
        for change in (second, third):
            await until(lambda change=change: house.change(change.id).state is ChangeState.RUNNING)
            routed = f"generation {change.generation}, wave 1"
            await until(lambda routed=routed: house.condition(model, ConditionType.ROUTES_READY).message == routed)
            await control(client, model, ControlAction.PROMOTE, ControlAsked(), change_id=change.id)
            assert (await ended(change)).state is ChangeState.DONE

    assert house.shares(model) == {region: {3: 1.0} for region in ("us-east", "eu-west")}


async def test_no_timer_is_left_for_superseded_changes_that_are_marked_already(
    house, model, client, workers, submit, carried_out, ended, until, monkeypatch
):
    """It would fire for nothing.

    A workflow task without commands, which a replay may put together with the next one.
    """
    monkeypatch.setattr(policies, "MARKS_SOON", 0)
    house.apply(model)
    await carried_out(house.publish(model, 1))
    house.apply(model, rollout=HELD)
    running = house.publish(model, 2)
    await submit(running)
    await until(lambda: house.condition(model, ConditionType.ROUTES_READY).message == "generation 2, wave 1")
    waiting = [house.publish(model, number) for number in (3, 4)]
    for change in waiting:
        await submit(change)
    await control(client, model, ControlAction.PROMOTE, ControlAsked(), change_id=running.id)
    assert (await ended(running)).state is ChangeState.DONE
    assert (await ended(waiting[0])).state is ChangeState.SUPERSEDED
    await until(lambda: house.change(waiting[1].id).state is ChangeState.RUNNING)

    history = await client.get_workflow_handle(names.model_workflow_id(model)).fetch_history()
    kinds = [event.WhichOneof("attributes") for event in history.events]

    assert "timer_started_event_attributes" in kinds
    assert "timer_canceled_event_attributes" in kinds
    assert "timer_fired_event_attributes" not in kinds
