"""Which workers get the runs: none takes them from others by starting, and a check names those that are missing."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from structlog.testing import capture_logs
from temporalio import activity, workflow
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkerDeploymentConfig
from typer.testing import CliRunner

from ipnext import names
from ipnext.cli.commands.platform import GROUP
from ipnext.errors import Conflict, InvalidInput, NotFound, Unavailable
from ipnext.platform import builds as versions
from ipnext.platform import polling
from ipnext.platform.checks import _workers
from ipnext.temporal import connect
from tests.waiting import PATIENCE_SECONDS
from workflows.runtime import build_routing
from workflows.runtime.build_routing import claim_runs, succeed_unversioned

NEW, NEXT = "new", "next"


@workflow.defn(name="a_run", versioning_behavior=VersioningBehavior.PINNED)
class PinnedRun:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


@workflow.defn(name="a_run")
class UnversionedRun:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


@activity.defn(name="nothing")
async def do_nothing() -> None:
    """Make the worker poll for activities."""


def worker_of(client, queue, build):
    version = WorkerDeploymentVersion(deployment_name=names.WORKER_DEPLOYMENT, build_id=build or "")
    more = (
        {"deployment_config": WorkerDeploymentConfig(version=version, use_worker_versioning=True)}
        if build
        else {"build_id": "unversioned"}
    )
    if queue == names.LIFECYCLE_QUEUE:
        more["workflows"] = [PinnedRun if build else UnversionedRun]
    return Worker(
        client, task_queue=queue, activities=[do_nothing], workflow_runner=UnsandboxedWorkflowRunner(), **more
    )


@pytest.fixture
async def client(own_temporal, monkeypatch):
    monkeypatch.setenv("TEMPORAL_ADDRESS", own_temporal)
    return await connect(address=own_temporal)


@pytest.fixture
def workers(client):
    """Workers of a build, None for those without one, that poll all queues of a platform."""

    @asynccontextmanager
    async def serve(build):
        async with AsyncExitStack() as stack:
            for queue in (names.LIFECYCLE_QUEUE, names.URGENT_QUEUE, names.PLANNER_QUEUE):
                await stack.enter_async_context(worker_of(client, queue, build))
            await until(seen)
            yield

    async def seen():
        found = [{poller.build_id for poller in await polling.pollers(client, each)} for each in polling.POLLED]
        return len(frozenset.union(*map(frozenset, found))) > 0 and all(found)

    return serve


async def until(holds):
    """Wait until a check that asks the server holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():  # noqa: ASYNC110 - the server tells nothing by itself
            await asyncio.sleep(0.1)


async def promote(client, build, **more):
    """Promote, again until the server has seen the build's workers."""

    async def accepted():
        try:
            await versions.promote(client, build, **more)
        except (Conflict, NotFound):
            return False
        return True

    await until(accepted)


async def claim(client, build, *, makes_current=False):
    return await claim_runs(client, makes_current=makes_current, stopped=asyncio.Event(), build_id=build)


async def states(client):
    return {build.build_id: (build.state, build.ramp_percent) for build in await versions.builds(client)}


def run(*words):
    """`ipnext platform WORDS`."""
    return asyncio.to_thread(CliRunner().invoke, GROUP, list(words))


async def items(client):
    return {item.item: item for item in await _workers(client)}


async def test_a_build_that_starts_takes_no_runs_of_workers_without_a_build_id(client, workers):
    async with workers(None), workers(NEW):
        with capture_logs() as logs:
            assert not await claim(client, NEW)

        assert (await states(client)) == {NEW: ("inactive", 0)}
        assert [(line["event"], line["hint"]) for line in logs if "hint" in line] == [
            ("workers_without_a_build_id_are_current", f"ipnext platform promote {NEW}")
        ]
        found = await items(client)
        assert {item.state for item in found.values()} == {"ok"}
        assert found["current build"].detail == "workers without a build id"
        assert "no build is current" in (await run("builds")).output


async def test_workers_without_a_build_id_get_the_runs_back_by_a_command(client, workers):
    async with workers(NEW):
        assert await claim(client, NEW)
        refused = await run("promote", "--unversioned")
        assert isinstance(refused.exception, NotFound), "no such worker runs"
        assert "start such workers first" in refused.exception.message

        async with workers(None):

            async def polled():
                return len(await versions.polled_unversioned(client)) == len(polling.POLLED)

            await until(polled)
            with capture_logs() as logs:
                assert await claim(client, None)
            assert [line["hint"] for line in logs] == ["ipnext platform promote --unversioned"]
            async with workers(NEXT):
                await promote(client, NEXT, ramp_percent=30)

                assert "workers without a build id are current" in (await run("promote", "--unversioned")).output

                assert {state for state, _ in (await states(client)).values()}.isdisjoint({"current", "ramping"})
                assert not await claim(client, NEW), "a restart takes nothing back"
                run_of = await client.start_workflow("a_run", id="one", task_queue=names.LIFECYCLE_QUEUE)

                async def begun():
                    history = await run_of.fetch_history()
                    return any(event.HasField("workflow_task_completed_event_attributes") for event in history.events)

                await until(begun)
                info = (await run_of.describe()).raw_description.workflow_execution_info
                assert info.versioning_info.deployment_version.build_id == ""
                assert (await states(client))[NEW][0] != "current"


async def test_a_promotion_ends_the_ramp_of_another_build(client, workers):
    async with workers(NEW), workers(NEXT):
        await promote(client, NEW)
        await promote(client, NEXT, ramp_percent=30)

        await promote(client, NEW)

        found = await states(client)
        assert found[NEW] == ("current", 0)
        assert found[NEXT] in {("draining", 0), ("drained", 0), ("inactive", 0)}


@pytest.mark.parametrize(
    ("words", "field"),
    [([], "BUILD"), ([""], "BUILD"), (["b", "--unversioned"], "BUILD"), (["--unversioned", "--ramp", "10"], "--ramp")],
)
async def test_a_promotion_names_one_build_or_the_workers_without_one(words, field):
    refused = (await run("promote", *words)).exception

    assert isinstance(refused, InvalidInput)
    assert refused.field == field


async def test_a_build_becomes_current_after_the_last_worker_without_a_build_id_has_ended(client, workers, monkeypatch):
    looks = []

    async def polled_unversioned(_client):
        looks.append(len(looks))
        return frozenset(polling.POLLED if len(looks) < 3 else ())

    monkeypatch.setattr(build_routing, "LOOK_SECONDS", 0.01)
    async with workers(None), workers(NEW):
        assert not await claim(client, NEW)
        monkeypatch.setattr(build_routing, "polled_unversioned", polled_unversioned)
        monkeypatch.setattr(versions, "polled_unversioned", polled_unversioned)

        async with asyncio.timeout(PATIENCE_SECONDS):
            await succeed_unversioned(lambda: client, NEW)

        assert await states(client) == {NEW: ("current", 0)}
        assert len(looks) > build_routing.LOOKS + 2, "one look is not enough"


async def test_a_current_build_that_no_worker_polls_for_is_missing_although_others_poll(client, workers):
    async with workers(NEW):
        assert await claim(client, NEW)
        async with worker_of(client, names.LIFECYCLE_QUEUE, NEXT):
            await promote(client, NEXT, ramp_percent=30)
            ramping = (await items(client))["ramping build"]
            assert ramping.state == "missing"
            assert ramping.detail.startswith(f"{NEXT}, 30 % of new runs, ")
            assert "--ramp 0" in ramping.remedy

            await promote(client, NEXT, ramp_percent=0)
            assert {item.state for item in (await items(client)).values()} == {"ok"}

            await promote(client, NEXT)
            found = await items(client)
            missing = {name: item for name, item in found.items() if item.state != "ok"}
            unpolled = [f"task queue {queue}, activities" for queue in (names.URGENT_QUEUE, names.PLANNER_QUEUE)]
            assert set(missing) == {*unpolled, "current build"}
            assert missing["current build"].detail == f"{NEXT}, and no worker of it polls {'; '.join(unpolled)}"
            for item in missing.values():
                assert item.state == "missing"
                assert item.remedy == f"start workers of build {NEXT}, or run `ipnext platform promote {NEW}`"
            lifecycle = found[f"task queue {names.LIFECYCLE_QUEUE}, workflows"]
            assert lifecycle.detail == f"1 workers of build {NEXT}", "others get none of its tasks"


async def test_a_draining_build_with_open_runs_and_without_workers_is_missing(client, workers):
    async with workers(NEW):
        async with worker_of(client, names.LIFECYCLE_QUEUE, NEXT):
            await promote(client, NEXT)
            await client.start_workflow("a_run", id="pinned", task_queue=names.LIFECYCLE_QUEUE)

            async def pinned():
                return any(build.open_runs for build in await versions.builds(client))

            await until(pinned)
        await promote(client, NEW)

        draining = (await items(client))["draining build"]
        assert (draining.state, draining.remedy) == ("missing", f"start workers of build {NEXT}")
        assert draining.detail.startswith(f"{NEXT}, 1 open runs, and no worker of it polls ")


async def test_a_worker_without_a_build_id_begins_although_the_current_build_is_unknown(monkeypatch):
    answers = [Unavailable("later"), NEW]

    async def unavailable_once(_client):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(build_routing, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(build_routing, "current_build", unavailable_once)
    assert await claim(None, None)
