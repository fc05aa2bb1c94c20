"""The port to the workflow engine: the fake and the real adapter behave alike where no engine answers."""

import asyncio
import socket
from datetime import UTC, datetime

import pytest
from temporalio import workflow
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from ipnext import names
from ipnext.api.workflow_engine import temporal as adapter
from ipnext.api.workflow_engine.port import Lifecycle, MemoryLifecycle
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.devfile import temporal_binary
from ipnext.errors import EngineRefused, Unavailable
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.changes.entity import ChangeAccepted, ModelEntityInput
from ipnext.model.lifecycle.replans.replan import ReplanInput, ReplanResult
from ipnext.payloads import DATA_CONVERTER
from ipnext.temporal import connect
from ipnext.temporal_access import TemporalSettings
from tests.waiting import PATIENCE_SECONDS

CHANGE = Change(id="c", model="ranker", kind=ChangeKind.PUBLISH, sequence=1, generation=1, created_at=datetime.now(UTC))
UI = "http://127.0.0.1:8233"


@pytest.fixture(params=["memory", pytest.param("temporal", marks=pytest.mark.integration)])
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
        await unreachable.namespace()
    with pytest.raises(Unavailable):
        await unreachable.wake_replan()
    with pytest.raises(Unavailable):
        await unreachable.signal_freeze_change(CHANGE)


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
    """Counts how often it is asked, as a replan under way does."""

    def __init__(self) -> None:
        self._asked = 0

    @workflow.run
    async def run(self, _: ReplanInput) -> ReplanResult:
        await workflow.wait_condition(lambda: self._asked == 2)
        return ReplanResult(plan_id="p", adopted=True, moves=self._asked)

    @workflow.signal(name=names.REPLAN_ASKED)
    def asked(self) -> None:
        self._asked += 1


@workflow.defn(name=names.LIFECYCLE_WORKFLOW)
class StandInRun:
    """Ends when it is told that freezes have changed."""

    def __init__(self) -> None:
        self._told = False

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: self._told)

    @workflow.signal(name=names.FREEZE_CHANGED)
    def told(self) -> None:
        self._told = True


@pytest.fixture
async def real(monkeypatch, subprocesses):
    """A real server and a worker with stand-ins for the workflows."""
    attribute = names.MODEL_ATTRIBUTE
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(temporal_binary()),
        dev_server_extra_args=["--search-attribute", f"{attribute}=Keyword"],
        data_converter=DATA_CONVERTER,
    ) as environment:
        monkeypatch.setenv("TEMPORAL_ADDRESS", environment.client.service_client.config.target_host)
        async with Worker(
            environment.client,
            task_queue=names.LIFECYCLE_QUEUE,
            workflows=[StandInEntity, StandInReplan, StandInRun],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            yield TemporalLifecycle(ui_url=UI)


async def test_a_real_engine_takes_a_change_once_and_is_woken_for_one_replan(real):
    assert await real.reachable()
    namespace = await real.namespace()
    assert (namespace.name, len(namespace.id)) == ("default", 36)
    assert await real.namespace() == namespace
    first, second = await real.submit(CHANGE), await real.submit(CHANGE)
    assert first == second
    assert first.change_id == "c"
    await real.wake_replan()
    await real.wake_replan()
    client = await connect()
    async with asyncio.timeout(PATIENCE_SECONDS):
        result = await client.get_workflow_handle(names.REPLAN_ID, result_type=ReplanResult).result()
    assert result.moves == 2, "both signals reached the one run"


async def test_controls_reach_no_one_while_the_engine_is_down(unreachable):
    with pytest.raises(Unavailable):
        await unreachable.control("ranker", ControlAction.PAUSE, ControlAsked(), update_id="pause/1")


async def test_a_run_is_told_of_changed_freezes_and_one_that_is_not_there_is_no_error(real):
    await real.signal_freeze_change(CHANGE)
    client = await connect()
    run_id = names.lifecycle_workflow_id(CHANGE.model, CHANGE.id)
    run = await client.start_workflow(names.LIFECYCLE_WORKFLOW, id=run_id, task_queue=names.LIFECYCLE_QUEUE)
    await real.signal_freeze_change(CHANGE)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await run.result() is None
    await real.signal_freeze_change(CHANGE)


KEYS = f'{{"encrypt": null, "keys": {{"first": "{"A" * 43}="}}}}'


@pytest.fixture
def with_keys(tmp_path, monkeypatch):
    """An engine on a closed port, and its file of keys, which is looked at before every call."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(adapter, "LOOK_SECONDS", 0.0)
    file = tmp_path / "keys.json"
    return TemporalLifecycle(ui_url=UI, access=TemporalSettings(temporal_payload_keys_file=file)), file


async def test_credentials_that_become_invalid_leave_the_former_ones_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(adapter, "LOOK_SECONDS", 0.0)
    file = tmp_path / "key"
    file.write_text("abc")
    engine = TemporalLifecycle(ui_url=UI, access=TemporalSettings(temporal_api_key_file=file))
    assert not await engine.reachable()
    file.write_text("two\nlines")
    assert not await engine.reachable()
    with pytest.raises(Unavailable, match="can't be reached"):
        await engine.submit(CHANGE)
    assert "temporal_credentials_not_in_use" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", None])
async def test_a_change_is_not_refused_for_credentials_that_are_invalid_from_the_start(with_keys, content):
    engine, file = with_keys
    if content is not None:
        file.write_text(content)
    with pytest.raises(EngineRefused, match="IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE"):
        await engine.submit(CHANGE)
    file.write_text(KEYS)
    with pytest.raises(Unavailable) as refused:
        await engine.submit(CHANGE)
    assert not isinstance(refused.value, EngineRefused)
