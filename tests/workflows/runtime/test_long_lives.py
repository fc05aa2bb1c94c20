"""What lasts longer than a test may: hours of holding a canary, and entities with long histories."""

import asyncio
import contextlib
import subprocess
import time
from datetime import timedelta

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.testing import WorkflowEnvironment

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile, server_command, server_options, temporal_binary
from ipnext.errors import EngineRefused, Unavailable
from ipnext.infra.process.parent_death import tether
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleInput, LifecycleResult
from ipnext.model.lifecycle.status import ConditionType
from ipnext.payloads import DATA_CONVERTER
from ipnext.temporal import connect, control, submit_change
from ipnext.timing import Timing
from tests.waiting import PATIENCE_SECONDS
from workflows import policies
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

ROUTED = ConditionType.ROUTES_READY

SCALE = 30
PUBLISHES = 72 * 60 // SCALE
"""Of 72 hours with one a minute."""

SKIPPING = ["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true"]


def workers(house, client):
    devfile = read_devfile()
    engine = engine_of(lambda: client, asyncio.get_running_loop())
    ours = lifecycle_activities(
        house.store,
        house.artifacts,
        house.infrastructure,
        engine,
        pause=lambda _: time.sleep(0.01),
    )
    theirs = planner_activities(house.store, ThreadSolver())
    return (
        worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours, devfile.timing),
        worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
        worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs, devfile.timing),
    )


@pytest.mark.usefixtures("subprocesses", "listeners")
async def test_a_canary_is_held_for_hours_and_then_goes_on(house, model):
    """The server skips the time: two hours would be longer than a test may take."""
    options = [*server_options(read_devfile().temporal, with_database=False), *SKIPPING]
    environment = await WorkflowEnvironment.start_time_skipping_v2(
        dev_server_existing_path=str(temporal_binary()),
        dev_server_extra_args=options,
        data_converter=DATA_CONVERTER,
    )
    house.apply(model, rollout={"canary": 0.1, "maxStep": 1, "holdSeconds": 7200})
    change = house.publish(model, 1)
    async with environment:
        lifecycle, urgent, planner = workers(house, environment.client)
        async with lifecycle, urgent, planner:
            queued = QueuedChange(id=change.id, kind=change.kind, sequence=1, generation=1)
            result = await environment.client.execute_workflow(
                names.LIFECYCLE_WORKFLOW,
                LifecycleInput(model=model, change=queued),
                id=names.lifecycle_workflow_id(model, change.id),
                task_queue=names.LIFECYCLE_QUEUE,
                result_type=LifecycleResult,
            )

    assert result.state is ChangeState.DONE
    with house.store.read() as repository:
        (transition,) = repository.transitions(model)
    assert sum(wave.hold_seconds for wave in transition.transition.waves) >= 7200


@pytest.fixture
def impatient_server(tmp_path, free_port):
    """A server that suggests continue-as-new after 30 events."""
    with server_with(tmp_path, free_port, {"limit.historyCount.suggestContinueAsNew": 30}) as address:
        yield address


@pytest.fixture
def strict_server(tmp_path, free_port):
    """A server with a thirtieth of its limits: so many publishes count as thirty times as many."""
    limits = {
        "limit.historyCount.error": 51_200 // SCALE,
        "limit.historyCount.suggestContinueAsNew": 4_096 // SCALE,
        "history.maxTotalUpdates": 2_000 // SCALE,
    }
    with server_with(tmp_path, free_port, limits) as address:
        yield address


async def submitted(client, change):
    """As the API does: a decision that comes too late on a busy machine fails, and the update with it."""
    while True:
        try:
            return await submit_change(client, change)
        except (EngineRefused, Unavailable):
            await asyncio.sleep(0.1)


@contextlib.contextmanager
def server_with(tmp_path, free_port, config):
    server = read_devfile().temporal.model_copy(update={"port": free_port, "dynamic_config": config})
    command = server_command(server, binary=temporal_binary(), state=tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
    yield f"127.0.0.1:{server.port}"
    process.terminate()
    process.wait(PATIENCE_SECONDS)


@pytest.mark.usefixtures("subprocesses")
async def test_an_entity_continues_as_new_with_its_queue_and_knows_what_it_has_seen(
    house, model, impatient_server, until, until_up
):
    await until_up(impatient_server)
    client = await connect(address=impatient_server, timing=Timing(workflow_task_seconds=17))
    house.apply(model, rollout={"canary": 1, "maxStep": 1})
    handle = client.get_workflow_handle(names.model_workflow_id(model))
    lifecycle, urgent, planner = workers(house, client)
    async with lifecycle, urgent, planner:
        first = house.publish(model, 1)
        await submitted(client, first)
        await until(lambda: house.change(first.id).state is not ChangeState.RECORDED)
        run = (await handle.describe()).run_id
        changes = [
            house.publish(model, 2),
            *(house.ask(model, ChangeKind.APPLY, f"{model}-a{n}") for n in range(3)),
        ]
        for change in changes:
            await submitted(client, change)
            await until(lambda change=change: house.change(change.id).state.final)
        again = await submitted(client, first)

        renewed = await handle.describe()
        assert renewed.run_id != run
        limit = renewed.raw_description.execution_config.default_workflow_task_timeout
        assert limit.ToSeconds() == 17, "it is that of the first run"
        assert again.position == 0
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    with house.store.read() as repository:
        begun = [event for event in repository.events(model) if event.kind == "Started"]
    assert len(begun) == 1 + len(changes)


@pytest.mark.usefixtures("subprocesses", "listeners")
async def test_an_entity_meets_no_limit_while_publishes_come_behind_a_rollout_that_waits_for_days(
    house, model, strict_server, until, until_up, monkeypatch
):
    """One a minute: what is done once a minute, or every five, is done as often for each publish here."""
    monkeypatch.setattr(policies, "MARK_EVERY", timedelta(seconds=0.1))
    monkeypatch.setattr(policies, "FOLLOWED_LOOK_SOON", timedelta(seconds=0.5))
    monkeypatch.setattr(policies, "FOLLOWED_LOOK", timedelta(seconds=0.5))
    await until_up(strict_server)
    client = await connect(address=strict_server, timing=read_devfile().timing)
    house.apply(model)
    entity = client.get_workflow_handle(names.model_workflow_id(model))
    lifecycle, urgent, planner = workers(house, client)
    async with lifecycle, urgent, planner:
        first = house.publish(model, 1)
        await submit_change(client, first)
        await until(lambda: house.change(first.id).state.final)
        house.apply(model, rollout={"canary": 0.1, "maxStep": 0.9, "holdSeconds": 72 * 3600})
        waiting = house.publish(model, 2)
        await submit_change(client, waiting)
        await until(lambda: house.shares(model)["us-east"].get(2) == 0.1)
        runs, changes = [], []
        for number in range(PUBLISHES):
            changes.append(house.publish(model, 3 + number))
            await submitted(client, changes[-1])
            if number % 20 == 0:
                runs.append((await entity.describe()).run_id)
        for change in changes[:-1]:
            await until(lambda change=change: house.change(change.id).state is ChangeState.SUPERSEDED)
        for run in (names.lifecycle_workflow_id(model, waiting.id), names.transition_workflow_id(waiting.id)):
            assert (await client.get_workflow_handle(run).describe()).history_length < 150
        for change in (waiting, changes[-1]):
            await until(lambda change=change: house.change(change.id).state is ChangeState.RUNNING)
            await until(
                lambda change=change: (
                    house.condition(model, ROUTED).message == f"generation {change.generation}, wave 1"
                )
            )
            await control(client, model, ControlAction.PROMOTE, ControlAsked(), change_id=change.id)
            await until(lambda change=change: house.change(change.id).state is ChangeState.DONE)
        ended = [(await client.get_workflow_handle(entity.id, run_id=run).describe()).status for run in runs]

    assert len(set(runs)) > 2
    assert set(ended) <= {WorkflowExecutionStatus.CONTINUED_AS_NEW, WorkflowExecutionStatus.RUNNING}
    assert house.shares(model)["us-east"] == {changes[-1].generation: 1.0}
