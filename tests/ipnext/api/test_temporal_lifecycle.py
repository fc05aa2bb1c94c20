"""The port to the workflow engine: the fake and the real adapter behave alike where no engine answers."""

import asyncio
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from temporalio import workflow
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from ipnext import names
from ipnext.api.lifecycle import Lifecycle, MemoryLifecycle
from ipnext.api.temporal_lifecycle import TemporalLifecycle
from ipnext.devfile import temporal_binary
from ipnext.errors import NotFound, Unavailable
from ipnext.model.lifecycle import (
    Change,
    ChangeAccepted,
    ChangeKind,
    ModelEntityInput,
    QueuedChange,
    ReplanInput,
    ReplanResult,
)

CHANGE = Change(id="c", model="ranker", kind=ChangeKind.PUBLISH, sequence=1, generation=1, created_at=datetime.now(UTC))
UI = "http://127.0.0.1:8233"


@pytest.fixture(params=["memory", "temporal"])
def unreachable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lifecycle:
    if request.param == "memory":
        fake = MemoryLifecycle(ui_url=UI)
        fake.down = True
        return fake
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{port}")
    return TemporalLifecycle(ui_url=UI)


async def test_an_engine_that_is_down_is_unavailable_and_not_reachable(unreachable):
    assert not await unreachable.reachable()
    with pytest.raises(Unavailable):
        await unreachable.submit(CHANGE)
    with pytest.raises(Unavailable):
        await unreachable.start_replan(ReplanInput())
    with pytest.raises(Unavailable):
        await unreachable.replan_status("replan/manual", "r")


async def test_links_lead_to_the_run_in_the_temporal_ui(unreachable):
    url = unreachable.run_url("lifecycle/ranker/c", "run")
    assert url == f"{UI}/namespaces/default/workflows/lifecycle%2Franker%2Fc/run"


@workflow.defn(name=names.MODEL_WORKFLOW)
class StandInEntity:
    """Takes changes as the model's entity does."""

    @workflow.run
    async def run(self, _: ModelEntityInput) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update(name=names.SUBMIT_CHANGE)
    async def submit(self, change: QueuedChange) -> ChangeAccepted:
        return ChangeAccepted(change_id=change.id, position=0, lifecycle_workflow_id=f"lifecycle/ranker/{change.id}")


@workflow.defn(name=names.REPLAN_WORKFLOW)
class StandInReplan:
    """Ends after a while, as a replan does."""

    @workflow.run
    async def run(self, replan: ReplanInput) -> ReplanResult:
        await workflow.sleep(timedelta(seconds=1))
        return ReplanResult(plan_id=replan.trigger, adopted=True, moves=1)


@pytest.fixture
async def real(monkeypatch):
    """A real server and a worker with stand-ins for the workflows."""
    attribute = names.MODEL_ATTRIBUTE
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(temporal_binary()),
        dev_server_extra_args=["--search-attribute", f"{attribute}=Keyword"],
        data_converter=pydantic_data_converter,
    ) as environment:
        monkeypatch.setenv("TEMPORAL_ADDRESS", environment.client.service_client.config.target_host)
        async with Worker(
            environment.client,
            task_queue=names.LIFECYCLE_QUEUE,
            workflows=[StandInEntity, StandInReplan],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            yield TemporalLifecycle(ui_url=UI)


async def test_a_real_engine_takes_a_change_once_and_a_replan_is_followed_to_its_end(real):
    assert await real.reachable()
    first, second = await real.submit(CHANGE), await real.submit(CHANGE)
    assert first == second
    assert first.change_id == "c"
    run = await real.start_replan(ReplanInput(trigger="supply"))
    assert await real.start_replan(ReplanInput(trigger="supply")) == run
    deadline = time.monotonic() + 20
    while (status := await real.replan_status(run.workflow_id, run.run_id)).state == "running":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert (status.state, status.result and status.result.plan_id) == ("done", "supply")
    for run_id in ("not-a-run-id", "00000000-0000-4000-8000-000000000000"):
        with pytest.raises(NotFound):
            await real.replan_status(run.workflow_id, run_id)
