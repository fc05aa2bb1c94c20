"""The workflow that the schedule `collect` starts, on a real Temporal server."""

import hashlib
import os
import time

import pytest

from ipnext import names
from ipnext.model.access.artifact_use import CollectInput
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.platform.schedules import schedules_of
from ipnext.settings import PlatformSettings

pytestmark = pytest.mark.usefixtures("workers")


async def test_a_run_of_the_schedule_removes_what_nothing_names_and_keeps_what_is_published(house, client, model):
    house.apply(model)
    house.publish(model, 1, change_id="first")
    old = hashlib.sha256(b"old").hexdigest()
    house.artifacts.put_blob(old, iter([b"old"]))
    blobs = list((house.artifacts.root / "blobs").iterdir())
    for path in blobs:
        then = time.time() - 3 * 86_400
        os.utime(path, (then, then))
    (found,) = [one for one in schedules_of(PlatformSettings()) if one.name == names.COLLECT_SCHEDULE]
    action = found.schedule.action
    assert (action.workflow, action.args) == (names.COLLECT_WORKFLOW, [CollectInput()])

    done = await client.execute_workflow(
        action.workflow, *action.args, id=f"collect-{model}", task_queue=action.task_queue, result_type=Done
    )

    assert done.note.startswith("1 blobs of 3 bytes removed")
    left = {path.name for path in (house.artifacts.root / "blobs").iterdir()}
    assert left == {path.name for path in blobs} - {old}
