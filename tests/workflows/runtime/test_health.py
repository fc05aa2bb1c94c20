"""A worker's ready file says whether work can come.

Temporal answers, and the worker polls every queue that it has slots for.
"""

import asyncio
import contextlib

import pytest
from temporalio.client import Client

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.devfile import TaskQueueGroup, read_devfile
from ipnext.errors import InvalidInput
from ipnext.payloads import DATA_CONVERTER
from ipnext.platform.polling import PolledQueue
from workflows.runtime import health
from workflows.runtime.health import ActivityLoad, announce_ready, find_unpolled, keep_ready
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of


@pytest.fixture
async def own(temporal_address, model):
    """A client with an identity of its own: all other tests' workers are of this process."""
    return await Client.connect(temporal_address, identity=model, data_converter=DATA_CONVERTER)


@pytest.fixture
def serve(house, own):
    """A worker of one queue, for as long as the context is open."""
    ours = lifecycle_activities(
        house.store, house.artifacts, house.infrastructure, engine_of(lambda: own, asyncio.get_event_loop())
    )
    theirs = planner_activities(house.store, ThreadSolver())
    devfile = read_devfile()

    def begin(queue, *interceptors):
        activities = theirs if queue == names.PLANNER_QUEUE else ours
        return worker_of(own, devfile.group(queue), activities, devfile.timing, interceptors=interceptors)

    return begin


async def until_unpolled(client, loads, *expected):
    while await find_unpolled(client, loads) != list(expected):  # noqa: ASYNC110 - the server tells nothing by itself
        await asyncio.sleep(0.1)


async def test_a_queue_that_the_worker_does_not_poll_is_named(own, serve):
    planner = PolledQueue(names.PLANNER_QUEUE, "activities")
    assert len(await find_unpolled(own, {})) == 4
    async with serve(names.LIFECYCLE_QUEUE), serve(names.URGENT_QUEUE):
        await until_unpolled(own, {}, planner)
        full = ActivityLoad(read_devfile().group(names.PLANNER_QUEUE))
        full.running = read_devfile().group(names.PLANNER_QUEUE).activity_slots
        assert await find_unpolled(own, {names.PLANNER_QUEUE: full}) == [], "it can't poll without a free slot"
        async with serve(names.PLANNER_QUEUE):
            await until_unpolled(own, {})


async def test_the_ready_file_is_absent_while_a_queue_is_not_polled(own, serve, tmp_path, monkeypatch, until):
    monkeypatch.setattr(health, "READY_EVERY_SECONDS", 0.1)
    file, stopped = tmp_path / "ready", asyncio.Event()
    async with contextlib.AsyncExitStack() as workers:
        for queue in (names.LIFECYCLE_QUEUE, names.URGENT_QUEUE):
            await workers.enter_async_context(serve(queue))
        with announce_ready(file):
            keeping = asyncio.create_task(keep_ready(lambda: own, {}, file, stopped))
            await until(lambda: not file.exists())
            await workers.enter_async_context(serve(names.PLANNER_QUEUE))
            await until(file.exists)
            stopped.set()
            await keeping
    assert not file.exists()


class Hanging:
    """A server that takes calls and answers none."""

    namespace, identity = "default", "me"

    def __init__(self) -> None:
        self.workflow_service, self.asked = self, 0

    async def describe_task_queue(self, _asked):
        self.asked += 1
        await asyncio.Event().wait()


async def test_the_ready_file_is_removed_while_temporal_hangs(tmp_path, monkeypatch, until):
    monkeypatch.setattr(health, "READY_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.01)
    file, stopped, server = tmp_path / "ready", asyncio.Event(), Hanging()
    with announce_ready(file):
        assert file.exists()
        keeping = asyncio.create_task(keep_ready(lambda: server, {}, file, stopped))

        await until(lambda: not file.exists())
        await until(lambda: server.asked > 2)

        stopped.set()
        await keeping


async def test_a_ready_file_that_can_not_be_written_ends_no_worker(own, tmp_path, monkeypatch, until):
    monkeypatch.setattr(health, "READY_EVERY_SECONDS", 0.01)
    marked, stopped = [], asyncio.Event()

    def mark(file, *, ready):
        marked.append(ready)
        raise FileNotFoundError(2, "No such file or directory", str(file))

    monkeypatch.setattr(health, "_mark", mark)
    keeping = asyncio.create_task(keep_ready(lambda: own, {}, tmp_path / "gone" / "ready", stopped))
    await until(lambda: len(marked) > 1 or keeping.done())

    stopped.set()
    await keeping


def test_a_ready_file_that_can_not_be_written_at_the_start_is_named(tmp_path):
    with (
        pytest.raises(InvalidInput, match=r"IPNEXT_WORKER_READY_FILE: .*gone.*No such file"),
        announce_ready(tmp_path / "gone" / "ready"),
    ):
        pass


async def test_a_load_counts_the_activities_that_run():
    load = ActivityLoad(TaskQueueGroup(queue="q", activity_slots=1))
    counted = []

    class Inner:
        async def execute_activity(self, _asked):
            counted.append((load.running, load.full))
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the one of the activity
        await load.intercept_activity(Inner()).execute_activity(None)
    assert counted == [(1, True)]
    assert (load.running, load.full) == (0, False)
