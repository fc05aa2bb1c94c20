"""Order of an entity's commands if the SDK merges two workflow tasks, or replays them separately.

Temporal's core SDK takes a workflow task without commands for a heartbeat if the next task was scheduled at once. A
worker without the run in its cache merges both; if the second one has updates, a replay executes them separately
(https://github.com/temporalio/sdk-rust/issues/1146).
"""

import asyncio
import threading

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionStatus

from activities.metadata.activities import MetadataActivities
from ipnext import names
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.entity import SupersededInput
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.status import ConditionType
from tests.waiting import PATIENCE_SECONDS

HELD = {"canary": 0.1, "maxStep": 0.9, "holdSeconds": 3600, "deadlineSeconds": 180}


@pytest.fixture
def task_is_scheduled(client):
    """Whether a workflow task of a run waits for a worker."""

    async def waits(handle):
        request = DescribeWorkflowExecutionRequest(namespace=client.namespace)
        request.execution.workflow_id = handle.id
        found = await client.workflow_service.describe_workflow_execution(request)
        return found.HasField("pending_workflow_task")

    return waits


@pytest.fixture
def held_marks(monkeypatch):
    """Marks of superseded changes are recorded once it is set."""
    may_record, record = threading.Event(), MetadataActivities.mark_superseded

    @activity.defn(name="mark_superseded")
    def later(self, superseded: SupersededInput) -> Done:
        assert may_record.wait(PATIENCE_SECONDS)
        return record(self, superseded)

    monkeypatch.setattr(MetadataActivities, "mark_superseded", later)
    yield may_record
    may_record.set()


async def events_of(handle):
    return [event.event_type async for event in handle.fetch_history_events()]


async def is_quiet(handle):
    """Whether its last task has ended, without a command."""
    return (await events_of(handle))[-1] == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED


async def hears_of_its_end(handle):
    """Whether Temporal has written the end of its child into its history, which it does after the termination."""
    return EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED in await events_of(handle)


async def wait_for(is_so):
    while not await is_so():  # noqa: ASYNC110 - the server is asked
        await asyncio.sleep(0.05)


async def test_marks_keep_their_place_if_a_task_without_commands_is_merged_with_the_next_one(
    house, model, client, serving, submit, until, carried_out, task_is_scheduled, held_marks
):
    house.apply(model)
    entity = client.get_workflow_handle(names.model_workflow_id(model))
    async with serving():
        await carried_out(house.publish(model, 1))
        house.apply(model, rollout=HELD)
        running = house.publish(model, 2)
        await submit(running)
        await until(lambda: house.condition(model, ConditionType.ROUTES_READY).message == "generation 2, wave 1")
        applied = house.ask(model, ChangeKind.APPLY, f"{model}-apply")
        await submit(applied)
        third = house.publish(model, 3)
        await submit(third)
        run = client.get_workflow_handle(entity.id, run_id=(await entity.describe()).run_id)
        await wait_for(lambda: is_quiet(run))  # the signal to the running change has arrived
        held_marks.set()
        await until(lambda: house.change(applied.id).state.final)
        await wait_for(lambda: is_quiet(run))

    submitted = asyncio.create_task(submit(house.publish(model, 4)))
    await wait_for(lambda: task_is_scheduled(run))
    await client.get_workflow_handle(names.lifecycle_workflow_id(model, running.id)).terminate("by hand")
    await wait_for(lambda: hears_of_its_end(run))
    assert (await events_of(run))[-3:] == [
        EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
        EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
        EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
    ]
    async with serving():  # merges both tasks
        await submitted
        await until(lambda: house.change(third.id).state.final)
    async with serving():  # replays them separately
        await submit(house.publish(model, 5))

    assert (await run.describe()).status is WorkflowExecutionStatus.RUNNING
