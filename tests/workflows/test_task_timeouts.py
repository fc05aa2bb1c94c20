"""A worker that dies while it decides costs a run seconds, not Temporal's ten."""

import pytest

from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.model.lifecycle import ScheduledReplan
from ipnext.temporal import _schedule, tell_drain, wake_replan

pytestmark = pytest.mark.usefixtures("workers")


async def task_timeout(client, workflow_id):
    told = await client.get_workflow_handle(workflow_id).describe()
    return told.raw_description.execution_config.default_workflow_task_timeout.ToTimedelta()


async def test_every_run_of_a_change_has_a_short_task_timeout(house, model, client, carried_out):
    house.apply(model)
    change = await carried_out(house.publish(model, 1))
    for workflow_id in (
        names.model_workflow_id(model),
        names.lifecycle_workflow_id(model, change.id),
        names.transition_workflow_id(change.id),
    ):
        assert await task_timeout(client, workflow_id) == names.TASK_TIMEOUT


async def test_replans_and_drains_have_it_too(client, workers):
    await wake_replan(client)
    await tell_drain(client, "us-east")
    assert await task_timeout(client, names.REPLAN_ID) == names.TASK_TIMEOUT
    assert await task_timeout(client, names.drain_workflow_id("us-east")) == names.TASK_TIMEOUT


def test_what_the_schedule_starts_has_it_too():
    action = _schedule(read_devfile().schedules.replan).action
    assert action.task_timeout == names.TASK_TIMEOUT
    assert action.args == [ScheduledReplan()]
