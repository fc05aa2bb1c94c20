"""What lasts longer than a test may: hours of holding a canary, and entities with long histories."""

import subprocess
import time

import pytest
from temporalio.testing import WorkflowEnvironment

from activities.solving import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile, server_command, server_options, temporal_binary
from ipnext.infra.tether import tether
from ipnext.model.lifecycle import ChangeKind, ChangeState, LifecycleInput, LifecycleResult, QueuedChange
from ipnext.payloads import DATA_CONVERTER
from ipnext.temporal import connect, submit_change
from tests.waiting import PATIENCE_SECONDS
from workflows.worker import Engine, lifecycle_activities, planner_activities, worker_of

SKIPPING = ["--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true"]


def workers(house, client):
    devfile = read_devfile()
    ours = lifecycle_activities(
        house.store,
        house.artifacts,
        house.infrastructure,
        Engine(submit=lambda _: None, wake=lambda: None),
        pause=lambda _: time.sleep(0.01),
    )
    theirs = planner_activities(house.store, ThreadSolver())
    return (
        worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours),
        worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs),
    )


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
        lifecycle, planner = workers(house, environment.client)
        async with lifecycle, planner:
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
    config = {"limit.historyCount.suggestContinueAsNew": 30}
    server = read_devfile().temporal.model_copy(update={"port": free_port, "dynamic_config": config})
    command = server_command(server, binary=temporal_binary(), state=tmp_path, with_ui=False)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
    yield f"127.0.0.1:{server.port}"
    process.terminate()
    process.wait(PATIENCE_SECONDS)


async def test_an_entity_continues_as_new_with_its_queue_and_knows_what_it_has_seen(
    house, model, impatient_server, until, until_up
):
    await until_up(impatient_server)
    client = await connect(address=impatient_server)
    house.apply(model, rollout={"canary": 1, "maxStep": 1})
    handle = client.get_workflow_handle(names.model_workflow_id(model))
    lifecycle, planner = workers(house, client)
    async with lifecycle, planner:
        first = house.publish(model, 1)
        await submit_change(client, first)
        run = (await handle.describe()).run_id
        changes = [
            house.publish(model, 2),
            *(house.ask(model, ChangeKind.APPLY, f"{model}-a{n}") for n in range(3)),
        ]
        for change in changes:
            await submit_change(client, change)
            await until(lambda change=change: house.change(change.id).state.final)
        again = await submit_change(client, first)

        assert (await handle.describe()).run_id != run
        assert again.position == 0
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    with house.store.read() as repository:
        begun = [event for event in repository.events(model) if event.kind == "Started"]
    assert len(begun) == 1 + len(changes)
