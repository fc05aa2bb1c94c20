"""`ipnext platform` on a bare Temporal.

Nothing that was acknowledged is lost before it, and nothing is overwritten by it.
"""

import asyncio
import json
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import ScheduleIntervalSpec, ScheduleUpdate
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkerDeploymentConfig
from typer.testing import CliRunner

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.cli import app
from ipnext.devfile import TemporalServer, read_devfile, server_command, temporal_binary
from ipnext.errors import Conflict, EngineRefused, NotFound, Unavailable
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.platform import builds as versions
from ipnext.platform.checks import check
from ipnext.platform.namespace import attributes_of, create_namespace, retention_of
from ipnext.platform.schedules import (
    create_missing,
    find_schedule,
    keeping_schedules,
    reset_schedules,
    schedules_of,
)
from ipnext.platform.setup import setup
from ipnext.settings import PlatformSettings
from ipnext.temporal import connect, reachable
from tests.waiting import PATIENCE_SECONDS, eventually, until
from workflows.worker import engine_of, lifecycle_activities, planner_activities, queue_groups, worker_of


@pytest.fixture(scope="module")
def server(subprocesses, listeners, tmp_path_factory):
    """The address of a Temporal for all of these tests."""
    wanted = TemporalServer(port=free_port())
    command = server_command(wanted, binary=temporal_binary(), state=tmp_path_factory.mktemp("bare"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
    yield f"127.0.0.1:{wanted.port}"
    process.terminate()
    process.wait(PATIENCE_SECONDS)


@pytest.fixture
def bare(server, monkeypatch):
    """The name of a namespace that is not there.

    Temporal knows nothing else of IPnext either: namespaces share no search attribute, schedule or worker.
    """
    namespace = f"bare-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("TEMPORAL_ADDRESS", server)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", namespace)
    until(lambda: asyncio.run(reached()))
    return namespace


async def reached() -> bool:
    try:
        return await reachable(await connect())
    except Unavailable:
        return False


@pytest.fixture
def settings(house):
    (house.root / "artifacts").mkdir(exist_ok=True)
    return PlatformSettings(
        database_url=f"sqlite:///{house.root}/ipnext.db", artifacts_uri=f"file://{house.root}/artifacts"
    )


@pytest.fixture
def workers(house, settings):
    @asynccontextmanager
    async def serve():
        client = await connect()
        engine = engine_of(lambda: client, asyncio.get_running_loop())
        ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine, cutter=house.cutter)
        lifecycle, urgent, planner = queue_groups(settings)
        theirs = planner_activities(house.store, ThreadSolver())
        async with (
            worker_of(client, lifecycle, ours, read_devfile().timing),
            worker_of(client, urgent, ours, read_devfile().timing),
            worker_of(client, planner, theirs, read_devfile().timing),
        ):
            yield

    return serve


def states_of(items):
    return {item.item: item.state for item in items}


async def test_a_publish_on_a_bare_temporal_waits_until_the_set_up_and_is_then_carried_out(
    bare, house, settings, workers, model
):
    await setup_namespace_only()
    house.apply(model)
    change = house.publish(model, 1)
    outbox = Outbox(house.store, TemporalLifecycle(ui_url="http://127.0.0.1"))
    async with outbox.running():
        await eventually(lambda: "IPnextModel" in house.change(change.id).message)
        assert house.change(change.id).state is ChangeState.RECORDED
        assert [attempt.change_id for attempt in outbox.stuck] == [change.id]

        await setup(settings)
        async with workers():
            await eventually(lambda: house.change(change.id).state.final)
    assert house.change(change.id).state is ChangeState.DONE
    assert outbox.stuck == ()


async def setup_namespace_only():
    client = await connect()
    await create_namespace(client)
    await again_until(lambda: attributes_of(client), EngineRefused, Unavailable)


async def test_check_names_what_is_missing_and_setup_makes_it_once(bare, settings, workers):
    before = states_of(await check(settings))
    assert before["namespace"] == "missing"

    done = await setup(settings, retention=timedelta(days=3))
    assert f"namespace {bare} created" in done
    again = await setup(settings)
    assert again == ["database migrated"], "nothing is made twice"

    client = await connect()
    assert await retention_of(client) == timedelta(days=3)
    assert (await attributes_of(client)).missing == {}
    after = {item.item: item for item in await check(settings)}
    assert {name for name, item in after.items() if item.state != "ok"} == {
        "agents",
        f"task queue {names.LIFECYCLE_QUEUE}, workflows",
        f"task queue {names.LIFECYCLE_QUEUE}, activities",
        f"task queue {names.URGENT_QUEUE}, activities",
        f"task queue {names.PLANNER_QUEUE}, activities",
    }
    assert all(item.remedy for item in after.values() if item.state != "ok")
    async with workers():

        async def complete():
            if states_of(await check(settings)) | {"agents": "ok"} != dict.fromkeys(after, "ok"):
                raise NotFound("")

        await again_until(complete, NotFound)


async def test_the_command_line_prints_each_item_and_fails_while_one_is_missing(bare, settings, monkeypatch):
    """The first run is a process, as users have it; the others are runs of the same program without its imports."""
    monkeypatch.setenv("IPNEXT_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("IPNEXT_ARTIFACTS_URI", settings.artifacts_uri)

    async def run(*words):
        told = await asyncio.to_thread(CliRunner().invoke, app, ["platform", *words])
        return told.exit_code, told.stdout, told.stderr

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ipnext.cli", "platform", "check", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 1, err
    assert {"item": "namespace", "state": "missing", "detail": bare, "remedy": "run `ipnext platform setup`"} in (
        json.loads(out)
    )
    status, _, err = await run("setup")
    assert status == 0, err
    assert "search attribute IPnextModel (Keyword) registered" in err
    status, out, err = await run("check")
    assert "search attribute IPnextModel" in out
    assert status == 1, "no agents, no workers"
    status, out, err = await run("promote", "nothing")
    assert (status, out) == (2, "")
    assert "no worker of build 'nothing' has polled; known: none" in err


def every_hours(*hours):
    return tuple(timedelta(hours=each) for each in hours)


@pytest.mark.parametrize("index", [0, 1], ids=[names.REPLAN_SCHEDULE, names.RECONCILE_SCHEDULE])
async def test_a_schedule_that_an_operator_changed_stays_until_it_is_reset(bare, settings, index):
    await setup(settings)
    client = await connect()
    wanted = schedules_of(settings)
    name, every = wanted[index].name, wanted[index].every
    handle = client.get_schedule_handle(name)

    def by_hand(found):
        schedule = found.description.schedule
        schedule.spec.intervals = [ScheduleIntervalSpec(every=timedelta(hours=6))]
        schedule.state.paused = True
        return ScheduleUpdate(schedule)

    await handle.update(by_hand)
    assert await create_missing(client, wanted) == ()
    assert (await find_schedule(client, name)).intervals == every_hours(6)
    item = {item.item: item for item in await check(settings)}[f"schedule {name}"]
    assert "every 6 h, changed by hand" in item.detail
    assert "paused" in item.detail
    assert (item.state, bool(item.remedy)) == (("ok", False), ("wrong", True))[index], (
        "nothing else starts the reconciler"
    )

    await setup(settings, with_reset=True)
    found = await find_schedule(client, name)
    assert found.intervals == (every,)
    assert found.paused, "a pause by hand stays"

    await handle.delete()
    assert await find_schedule(client, name) is None
    with pytest.raises(NotFound, match="platform setup"):
        await reset_schedules(client, wanted)


async def test_every_schedule_that_was_deleted_is_missed_by_the_check_and_made_by_the_set_up(bare, settings):
    await setup(settings)
    client = await connect()
    found = {each.name for each in schedules_of(settings)}

    async def listed():
        if {each.id async for each in await client.list_schedules()} != found:
            raise NotFound("")

    await again_until(listed, NotFound)  # Temporal lists a schedule a moment after it is made
    items = [f"schedule {name}" for name in found]
    assert {states_of(await check(settings))[item] for item in items} == {"ok"}

    for name in found:
        await client.get_schedule_handle(name).delete()
    missing = {item.item: item for item in await check(settings) if item.item in items}
    assert {item.state for item in missing.values()} == {"missing"}
    assert all("ipnext platform setup" in item.remedy for item in missing.values())

    done = await setup(settings)
    assert {name for name in found if any(line.startswith(f"schedule {name} created") for line in done)} == found
    assert {states_of(await check(settings))[item] for item in items} == {"ok"}


async def test_a_schedule_that_is_deleted_is_made_again_while_a_worker_runs(bare, settings):
    await setup(settings)
    client = await connect()
    wanted = schedules_of(settings)
    async with keeping_schedules(lambda: client, wanted, every_seconds=0.1):
        for each in wanted:
            await client.get_schedule_handle(each.name).delete()

        async def there():
            if None in [await find_schedule(client, each.name) for each in wanted]:
                raise NotFound("")

        await again_until(there, NotFound)


async def test_there_is_one_reconciler_after_its_schedule_was_deleted_and_made_again(bare, settings):
    await setup(settings)
    client = await connect()
    (first,) = await again_until(lambda: reconcilers(client), NotFound)
    await client.get_schedule_handle(names.RECONCILE_SCHEDULE).delete()

    await asyncio.gather(*(setup(settings) for _ in range(3)))

    async def another():
        found = await reconcilers(client)
        if first in found or len(found) != 1:
            raise NotFound("")

    await again_until(another, NotFound)


async def reconcilers(client):
    query = f"WorkflowType = '{names.RECONCILE_WORKFLOW}' AND ExecutionStatus = 'Running'"
    found = {run.run_id async for run in client.list_workflows(query)}
    if not found:
        raise NotFound("")
    return found


@workflow.defn(name="a_run", versioning_behavior=VersioningBehavior.PINNED)
class ARun:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


def worker_of_build(client, build):
    version = WorkerDeploymentVersion(deployment_name=names.WORKER_DEPLOYMENT, build_id=build)
    return Worker(
        client,
        task_queue=names.LIFECYCLE_QUEUE,
        workflows=[ARun],
        workflow_runner=UnsandboxedWorkflowRunner(),
        deployment_config=WorkerDeploymentConfig(version=version, use_worker_versioning=True),
    )


async def again_until(call, *kinds):
    """The first answer of a call; the server sees a new worker some moments after it has begun."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await call()
            except kinds:
                await asyncio.sleep(0.1)


async def test_the_first_build_is_current_by_itself_and_the_next_one_by_a_command(bare, settings):
    await setup(settings)
    client = await connect()
    async with worker_of_build(client, "1"):
        assert await again_until(lambda: versions.make_first_current(client, "1"), Unavailable) == "1"
        run = await client.start_workflow("a_run", id="pinned", task_queue=names.LIFECYCLE_QUEUE)

        async with worker_of_build(client, "2"):

            async def both():
                found = await versions.builds(client)
                if {b.build_id: b.open_runs for b in found} != {"1": 1, "2": 0}:
                    raise NotFound("")
                return found

            await again_until(both, NotFound)
            assert await versions.make_first_current(client, "2") == "1", "another one is never replaced"

            await again_until(lambda: versions.promote(client, "2", ramp_percent=10), NotFound, Conflict)
            ramping = {b.build_id: (b.state, b.ramp_percent) for b in await versions.builds(client)}
            assert ramping == {"1": ("current", 0), "2": ("ramping", 10)}

            await versions.promote(client, "2")
            states = {b.build_id: b.state for b in await versions.builds(client)}
            assert states["2"] == "current"
            assert states["1"] in {"draining", "inactive"}

            stale = await versions._describe_deployment(client)
            await again_until(lambda: versions.promote(client, "1"), Conflict)
            with pytest.raises(Conflict):
                await versions._set_current(client, "2", token=stale.conflict_token)
            with pytest.raises(NotFound, match="known: 1, 2"):
                await versions.promote(client, "3")
        await run.terminate()


async def test_builds_of_a_namespace_that_does_not_exist_are_refused_by_its_name(bare):
    client = await connect()

    with pytest.raises(NotFound, match=f"no namespace '{bare}'.*`ipnext platform setup`"):
        await versions.builds(client)
    with pytest.raises(NotFound, match=f"no namespace '{bare}'"):
        await versions.promote(client, "1")


async def test_runs_are_found_by_owner_region_and_kind(bare, house, settings, workers, model):
    await setup(settings)
    house.apply(model)
    change = house.publish(model, 1)
    outbox = Outbox(house.store, TemporalLifecycle(ui_url="http://127.0.0.1"))
    async with outbox.running(), workers():
        await eventually(lambda: house.change(change.id).state.final)
    assert house.change(change.id).state is ChangeState.DONE
    client = await connect()
    for workflow_id in (names.lifecycle_workflow_id(model, change.id), names.transition_workflow_id(change.id)):
        found = (await client.get_workflow_handle(workflow_id).describe()).search_attributes
        assert found[names.KIND_ATTRIBUTE] == ["publish"]
        assert found[names.REGIONS_ATTRIBUTE] == ["eu-west", "us-east"]
        assert found[names.MODEL_ATTRIBUTE] == [model]
