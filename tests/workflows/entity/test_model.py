"""The entity: order of changes, newest wins, rollback during a rollout, survival of what its children do."""

import asyncio
from types import SimpleNamespace

import pytest
from temporalio import workflow
from temporalio.client import WorkflowUpdateFailedError
from temporalio.worker import Worker

from ipnext import names
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlAsked
from ipnext.model.lifecycle.changes.entity import ChangeAccepted, ModelEntityInput, ModelEntityState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleInput, LifecycleResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.temporal import control, submit_change
from workflows.model import ModelWorkflow

pytestmark = pytest.mark.usefixtures("workers")


@pytest.fixture
async def held_up(house, model, submit, until):
    """A publish of generation 1 that waits for its replicas until it is released."""
    house.apply(model, rollout={"deadlineSeconds": 180})
    house.infrastructure.stall()
    change = house.publish(model, 1)
    await submit(change)
    await until(lambda: house.infrastructure.calls("apply"))
    return change


async def test_the_newest_of_several_waiting_publishes_wins(house, model, held_up, submit, ended):
    second, third, fourth = (house.publish(model, seed) for seed in (2, 3, 4))
    for change in (second, fourth, third):
        await submit(change)
    superseded = [await ended(change) for change in (second, third)]

    house.infrastructure.release()

    assert [change.state for change in superseded] == [ChangeState.SUPERSEDED] * 2
    assert (await ended(held_up)).state is ChangeState.DONE
    assert (await ended(fourth)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {4: 1.0}, "eu-west": {4: 1.0}}
    with house.store.read() as repository:
        states = {g.number: g.state for g in repository.generations(model)}
    assert states[2] is states[3] is GenerationState.SUPERSEDED


async def test_what_waits_can_be_asked_for(house, model, client, held_up, submit, ended):
    second = house.publish(model, 2)
    await submit(second)
    handle = client.get_workflow_handle(names.model_workflow_id(model))

    state = await handle.query(names.MODEL_STATE, result_type=ModelEntityState)

    assert (state.running.id, [change.id for change in state.queue]) == (held_up.id, [second.id])
    house.infrastructure.release()
    await ended(second)


async def test_a_rollback_stops_the_rollout_that_runs(house, model, carried_out, submit, ended, until):
    house.apply(model, rollout={"deadlineSeconds": 180})
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2))
    house.infrastructure.stall()
    before = len(house.infrastructure.calls("apply"))
    third = house.publish(model, 3)
    await submit(third)
    await until(lambda: len(house.infrastructure.calls("apply")) > before)

    back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
    await submit(back)
    stopped = await ended(third)
    house.infrastructure.release()

    assert (stopped.state, stopped.reason) == (ChangeState.ROLLED_BACK, Reason.ROLLED_BACK)
    assert back.id in stopped.message
    assert (await ended(back)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert house.condition(model).status == "True"


async def test_a_terminated_run_is_recorded_and_the_entity_goes_on(house, model, client, held_up, submit, ended):
    second = house.publish(model, 2)
    await submit(second)

    await client.get_workflow_handle(names.lifecycle_workflow_id(model, held_up.id)).terminate("by hand")
    first = await ended(held_up)
    house.infrastructure.release()

    assert (first.state, first.reason) == (ChangeState.ROLLED_BACK, Reason.INTERNAL_ERROR)
    assert (await ended(second)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}


async def test_a_pause_is_answered_once_the_run_of_an_earlier_entity_was_told(house, model, client, held_up, ended):
    run = client.get_workflow_handle(names.lifecycle_workflow_id(model, held_up.id))
    await client.get_workflow_handle(names.model_workflow_id(model)).terminate("by hand")

    answer = await control(client, model, ControlAction.PAUSE, ControlAsked(by="anna"))

    history = await run.fetch_history()
    signals = [event.workflow_execution_signaled_event_attributes.signal_name for event in history.events]
    assert (answer.change_id, signals.count(names.HOLD_CHANGES)) == (held_up.id, 1)
    house.infrastructure.release()
    await control(client, model, ControlAction.RESUME, ControlAsked(by="anna"))
    assert (await ended(held_up)).state is ChangeState.DONE


async def test_a_change_that_can_never_run_is_refused_at_the_door(house, model, client):
    house.apply(model)
    change = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back")

    with pytest.raises(InvalidInput, match="names its generation") as caught:
        await submit_change(client, change)

    assert isinstance(caught.value.__cause__, WorkflowUpdateFailedError)


@workflow.defn(name=names.LIFECYCLE_WORKFLOW)
class EndsUnheard:
    """A run that is told to end before its first step: nothing of ours runs in it."""

    @workflow.run
    async def run(self, input: LifecycleInput) -> LifecycleResult:  # noqa: A002
        await workflow.wait_condition(lambda: False)
        raise AssertionError(input)


@pytest.fixture
async def ends_unheard(client, house, model):
    """A submission to an entity whose runs end so; what it writes down of them is written by the real activities."""
    queue = f"{model}-queue"
    house.apply(model)

    async def submit(change):
        await entity.execute_update(names.SUBMIT_CHANGE, change, result_type=ChangeAccepted)

    async def begun():
        state = await entity.query(names.MODEL_STATE, result_type=ModelEntityState)
        return state.running is not None

    async def abort(asked):
        while True:  # until the entity knows of the run that it began
            try:
                return await entity.execute_update(names.ABORT_RUN, asked, result_type=ControlAnswer)
            except WorkflowUpdateFailedError:
                await asyncio.sleep(0.05)

    async with Worker(client, task_queue=queue, workflows=[ModelWorkflow, EndsUnheard]):
        entity = await client.start_workflow(
            names.MODEL_WORKFLOW, ModelEntityInput(model=model), id=f"{model}-unheard", task_queue=queue
        )
        yield SimpleNamespace(submit=submit, begun=begun, abort=abort)
        await entity.terminate()


@pytest.mark.parametrize(
    ("state", "reason"), [(ChangeState.REFUSED, Reason.ABORTED), (ChangeState.SUPERSEDED, Reason.SUPERSEDED)]
)
async def test_a_run_that_is_told_to_end_before_it_has_begun_ends_for_the_reason_it_was_told(
    ends_unheard, house, model, ended, state, reason
):
    change = house.publish(model, 1)
    back = QueuedChange(id=f"{model}-back", kind=ChangeKind.ROLLBACK, sequence=2, generation=1)
    await ends_unheard.submit(QueuedChange(id=change.id, kind=ChangeKind.PUBLISH, sequence=1, generation=1))
    while not await ends_unheard.begun():  # noqa: ASYNC110 - it is asked, it tells nothing by itself
        await asyncio.sleep(0.05)
    if reason is Reason.ABORTED:
        await ends_unheard.abort(ControlAsked(by="ann", reason="too early"))
    else:
        await ends_unheard.submit(back)

    found = await ended(change)

    assert (found.state, found.reason) == (state, reason)
    assert ("ann" if reason is Reason.ABORTED else f"rollback {back.id}") in found.message
