"""Waits for replicas hold up nothing that is urgent, and cost a rollout nothing while no worker works."""

import asyncio
import contextlib

import pytest

from activities.solving import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.model.drain import DrainState
from ipnext.model.lifecycle import ChangeKind, ChangeState
from tests.workflows.drains import EUROPE
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

SLOTS = 4
DEADLINE_SECONDS = 20.0


@pytest.fixture
def few_slots(house, client):
    """Workers whose lifecycle queue has few slots, for as long as the context is open."""

    @contextlib.asynccontextmanager
    async def serve():
        devfile, engine = read_devfile(), engine_of(client, asyncio.get_running_loop())
        ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine)
        lifecycle = devfile.group(names.LIFECYCLE_QUEUE).model_copy(update={"activity_slots": SLOTS})
        async with (
            worker_of(client, lifecycle, ours, read_devfile().timing),
            worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
            worker_of(
                client,
                devfile.group(names.PLANNER_QUEUE),
                planner_activities(house.store, ThreadSolver()),
                devfile.timing,
            ),
        ):
            yield

    return serve


def told(house, model):
    with house.store.read() as repository:
        return repository.deployments(model)


async def test_a_lost_region_and_a_rollback_pass_publishes_that_wait_for_their_replicas_in_all_slots(
    house, model, few_slots, *, submit, carried_out, ended, drains, until
):
    async with few_slots():
        house.apply(model)
        for seed in (1, 2):
            await carried_out(house.publish(model, seed))
        house.infrastructure.stall()
        waiting = []
        for number in range(SLOTS):
            name = f"{model}-{number}"
            house.apply(name, demand=[{"region": "us-east", "qps": 50}], rollout={"deadlineSeconds": 600})
            waiting.append(house.publish(name, 1))
            await submit(waiting[-1])
        await until(lambda: all(told(house, change.model) for change in waiting))

        house.infrastructure.cut(EUROPE)
        await drains.ask(disaster=True)
        await drains.reaches(DrainState.DRAINING, DrainState.DRAINED)
        back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
        await submit(back)
        await until(lambda: house.change(back.id).state not in {ChangeState.RECORDED, ChangeState.QUEUED})

        assert {share.to for share in house.infrastructure.table(model, "us-east").shares} == {"us-east"}
        assert {house.change(change.id).state for change in waiting} == {ChangeState.RUNNING}
        house.infrastructure.release()
        for change in (*waiting, back):
            assert (await ended(change)).state is ChangeState.DONE


async def test_a_deadline_does_not_run_while_no_worker_works(house, model, serving, *, submit, ended, until):
    async with serving():
        house.apply(model, rollout={"canary": 1, "maxStep": 1, "deadlineSeconds": DEADLINE_SECONDS})
        house.infrastructure.stall()
        change = house.publish(model, 1)
        await submit(change)
        await until(lambda: told(house, model))
    await asyncio.sleep(DEADLINE_SECONDS + 2)
    looks = len(house.infrastructure.calls("observe"))
    async with serving():
        await until(lambda: len(house.infrastructure.calls("observe")) > looks)
        house.infrastructure.release()
        found = await ended(change)
    assert found.state is ChangeState.DONE, found
