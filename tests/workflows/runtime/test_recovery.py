"""Work that is done twice, and workers that are killed: every run still ends right."""

import contextlib
import os
import sys
import typing
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import save
from temporalio import activity

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.model.gate.live import ROUNDS
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.temporal import signal_drain, wake_replan
from tests.fleets import two_regions
from tests.forked_programs import Fork, ForkServer
from workflows.worker import lifecycle_activities, planner_activities, worker_of

WORKER = "tests.workflows.runtime.killable_worker"
DEMAND = {"us-east": 350.0, "eu-west": 180.0}


def doubled(activities, names: set[str]):
    """Activities that do their work, lose the answer, and do it again."""

    def twice(method):
        name = activity._Definition.must_from_callable(method).name
        hints = typing.get_type_hints(method.__func__)

        def work(argument):
            names.add(name)
            method(argument)
            return method(argument)

        wanted = next(kind for key, kind in hints.items() if key != "return")
        work.__annotations__ = {"argument": wanted, "return": hints["return"]}
        return activity.defn(name=name, no_thread_cancel_exception=True)(work)

    return [twice(method) for method in activities]


async def test_every_activity_may_be_done_twice(house, kit, model, client, carried_out, no_engine):
    house.apply(model, rollout={"canary": 0.5, "maxStep": 1, "deadlineSeconds": 180})
    devfile, done = read_devfile(), set()
    ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, no_engine)
    theirs = planner_activities(house.store, ThreadSolver())
    async with (
        worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), doubled(ours, done), devfile.timing),
        worker_of(client, devfile.group(names.URGENT_QUEUE), doubled(ours, done), devfile.timing),
        worker_of(client, devfile.group(names.PLANNER_QUEUE), doubled(theirs, done), devfile.timing),
    ):
        first = await carried_out(house.publish(model, 1))
        house.infrastructure.answer_with(model, 2, errors=1.0)
        second = await carried_out(house.publish(model, 2))
        third = await carried_out(house.publish(model, 3))
        retired = await carried_out(house.ask(model, ChangeKind.RETIRE, f"{model}-retire"))

    states = [change.state for change in (first, second, third, retired)]
    assert states == [ChangeState.DONE, ChangeState.ROLLED_BACK, ChangeState.DONE, ChangeState.DONE]
    kit.check_floor(house.infrastructure, model, DEMAND)
    assert house.held(model) == {}
    assert done >= {
        "begin_change",
        "prepare_change",
        "ensure_capacity",
        "shift_traffic",
        "check_gate",
        "release_capacity",
        "finish_change",
        "withdraw_model",
        "release_model",
    }


@pytest.fixture(scope="module")
def forks(subprocesses) -> Iterator[ForkServer]:
    """The process that has imported what a worker needs."""
    server = ForkServer((WORKER,))
    yield server
    server.close()


@pytest.fixture
def worker_process(house, served_infrastructure, temporal_address, tmp_path, forks):
    """Start a worker process with a fault; it is ended with the test."""
    started: list[Fork] = []

    def start(fault: str | None = None) -> Fork:
        faults = (fault, str(tmp_path / fault)) if fault else ()
        command = [sys.executable, "-m", WORKER, str(house.root), served_infrastructure, temporal_address, *faults]
        with (tmp_path / "workers.log").open("ab") as log:
            started.append(forks.spawn(command, os.environ, log))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


SOME = ("shift_traffic:after", "finish_change:after")
STAGES = (
    "begin_change",
    "prepare_change",
    "ensure_capacity",
    "shift_traffic",
    "check_gate",
    "release_capacity",
    "finish_change",
)
EVERY = tuple(f"{stage}:{point}" for stage in STAGES for point in ("before", "after"))


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(SOME, id="some"),
        pytest.param(EVERY, id="every", marks=pytest.mark.nemesis),
    ],
)
async def test_a_worker_killed_at_any_point_is_replaced_and_the_run_ends_right(
    house, kit, model, worker_process, submit, ended, until, faults
):
    house.apply(model)
    change = house.publish(model, 1)
    process = worker_process(faults[0])
    await submit(change)
    for fault in (*faults[1:], None):
        await until(lambda found=process: found.poll() is not None)
        assert process.returncode == -9
        process = worker_process(fault)

    assert (await ended(change)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    kit.check_floor(house.infrastructure, model, DEMAND)
    with house.store.read() as repository:
        assert repository.model(model).serving_generation == 1


async def test_a_worker_killed_while_it_times_replicas_is_replaced_and_one_round_is_repeated(
    house, kit, model, worker_process, submit, ended, until
):
    house.apply(model, validation={"liveLatency": {"maxP50Ratio": 1.2}})
    features = np.arange(400, dtype=np.float32).reshape(100, 4)

    def publish(number):
        more = {"replay.safetensors": save({"features": features})}
        return house.publish(model, number, sparse=house.source(kit.SPARSE, kit.weights(number), more=more))

    process = worker_process(None)
    first = publish(1)
    await submit(first)
    assert (await ended(first)).state is ChangeState.DONE
    process.kill()
    process.wait()
    process = worker_process("time_replicas:after")
    second = publish(2)
    await submit(second)
    await until(lambda: process.poll() is not None)
    assert process.returncode == -9
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    worker_process(None)
    assert (await ended(second)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    assert len(house.infrastructure.calls("time_replicas")) == ROUNDS + 1


REPLAN_STAGES = ("replan_fleet", "move_models", "finish_replan")


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(("replan_fleet:after", "move_models:after"), id="some"),
        pytest.param(
            tuple(f"{stage}:{point}" for stage in REPLAN_STAGES for point in ("before", "after")),
            id="every",
            marks=pytest.mark.nemesis,
        ),
    ],
)
async def test_a_worker_killed_at_any_point_of_a_replan_is_replaced_and_one_plan_is_made(
    house, kit, model, worker_process, submit, ended, until, client, faults
):
    house.apply(model)
    process = worker_process(faults[0])
    change = house.publish(model, 1)
    await submit(change)
    assert (await ended(change)).state is ChangeState.DONE
    house.apply_fleet(two_regions(west=None))
    house.ask_replan("r1", "supply")
    await wake_replan(client)
    for fault in (*faults[1:], None):
        await until(lambda found=process: found.poll() is not None)
        assert process.returncode == -9
        process = worker_process(fault)

    replan = await until(lambda: found if (found := house.replan("r1")).state.final else None)
    assert replan.state is ReplanState.ADOPTED
    assert house.held(model).keys() == {f"{model}.dense.us-east.cpu", f"{model}.sparse.us-east.cpu"}
    kit.check_floor(house.infrastructure, model, DEMAND)
    with house.store.read() as repository:
        assert [plan.id for plan in repository.plans(fleet_only=True)] == [replan.plan_id]
        assert [c.state for c in repository.changes(model)] == [ChangeState.DONE] * 2


DRAIN_STAGES = ("look_at_drain", "check_drain")
LOST_STAGES = ("look_at_drain", "route_around")


def points(stages):
    return tuple(f"{stage}:{point}" for stage in stages for point in ("before", "after"))


@pytest.mark.parametrize(
    ("disaster", "faults"),
    [
        pytest.param(False, ("check_drain:after",), id="planned"),
        pytest.param(True, ("route_around:after",), id="lost"),
        pytest.param(False, points(DRAIN_STAGES), id="planned-every", marks=pytest.mark.nemesis),
        pytest.param(True, points(LOST_STAGES), id="lost-every", marks=pytest.mark.nemesis),
    ],
)
async def test_a_worker_killed_at_any_point_of_a_drain_is_replaced_and_the_region_is_left(
    house, kit, model, worker_process, submit, ended, until, client, disaster, faults
):
    house.apply(model)
    process = worker_process(None)
    change = house.publish(model, 1)
    await submit(change)
    assert (await ended(change)).state is ChangeState.DONE
    process.kill()
    process.wait()
    if disaster:
        house.infrastructure.cut("eu-west")
    with house.store.begin() as repository:
        repository.add_drain("eu-west", disaster=disaster)
    process = worker_process(faults[0])
    await signal_drain(client, "eu-west")
    for fault in (*faults[1:], None):
        await until(lambda found=process: found.poll() is not None)
        assert process.returncode == -9
        process = worker_process(fault)

    def drained():
        with house.store.read() as repository:
            return repository.drain("eu-west").state is DrainState.DRAINED

    await until(drained)
    assert house.held(model).keys() == {f"{model}.dense.us-east.cpu", f"{model}.sparse.us-east.cpu"}
    if not disaster:
        kit.check_floor(house.infrastructure, model, DEMAND)
    with house.store.read() as repository:
        assert [replan.trigger for replan in repository.replans()] == ["drain"]
