"""A real Temporal server for the session, and a platform with workers for each test."""

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from multiprocessing.managers import BaseManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.worker._workflow import _WorkflowWorker

from activities.planning.policy import PlanningPolicy
from activities.planning.solver import Solver, ThreadSolver
from activities.runtime.deadline import LOOK_SECONDS, Deadline
from activities.transition import activities as transition
from activities.validation.validator import Validator
from ipnext import names
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.errors import Unavailable
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.regions.reconciliation import ReconcileInput
from ipnext.settings import PlatformSettings
from ipnext.stages.kinds import StageKinds
from ipnext.store.schema import migration
from ipnext.temporal import connect, submit_change
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.workflows.builds.next_build import make_next_build
from tests.workflows.regions.drains import Drains
from workflows.worker import (
    WorkflowEngine,
    engine_of,
    lifecycle_activities,
    planner_activities,
    source_activities,
    worker_of,
)

POLL_SECONDS = 0.05
"""Each look at the store costs the processor that the workers need."""
PAUSE_SECONDS = 0.05
"""Of activities between two looks at a region that does not answer."""
YIELD_SECONDS = 60
"""How long the thread of a workflow may run on."""
TWO_WAVES = {"canary": 0.5, "maxStep": 0.5, "deadlineSeconds": 180}
"""The rollout of models whose tests name none: a third wave takes a third more processor time, and shows no more."""


def load_house() -> ModuleType:
    """The module beside this file; tests are no packages."""
    name = "ipnext_test_house"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "house.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def _time_to_yield() -> Iterator[None]:
    """The SDK takes a workflow that does not yield for two seconds for a deadlock.

    It raises an error wherever its thread is. A machine that stands still for so long does the same to any workflow; of
    the SDK's settings none is about it.
    """
    made = _WorkflowWorker.__init__

    def patient(self: _WorkflowWorker, **given: Any) -> None:
        made(self, **given)
        assert self._deadlock_timeout_seconds == 2, "the SDK has changed: it keeps its limit elsewhere, or has another"
        self._deadlock_timeout_seconds = YIELD_SECONDS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_WorkflowWorker, "__init__", patient)
        yield


@pytest.fixture
def quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for replicas end after a sixtieth of the rollout's deadline.

    What else it limits has the time that a busy machine takes.
    """

    def quick(seconds: float, **more: Any) -> Deadline:
        return Deadline(seconds, look_seconds=60 * LOOK_SECONDS, clock=lambda: 60 * time.monotonic(), **more)

    monkeypatch.setattr(transition, "Deadline", quick)


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """Builders of fleets, manifests and snapshots."""
    return load_house()


@pytest.fixture(name="free_port")
def free_port_fixture() -> int:
    return free_port()


@pytest.fixture(name="until_up")
def until_up_fixture():
    return until_up


@pytest.fixture
def no_engine() -> WorkflowEngine:
    """For activities that ask nothing of the workflow engine."""
    return WorkflowEngine(submit=lambda *_: None, wake=lambda: None, is_open=lambda _: False)


@pytest.fixture(scope="package")
def temporal_address(tmp_path_factory, subprocesses) -> Iterator[str]:
    """A server started by the same command as `ipnext dev` starts it, but with its database in memory.

    In a file it takes a sixth more processor time; whole platforms and a test's own server have it there.
    """
    server = read_devfile().temporal.model_copy(update={"port": free_port()})
    command = server_command(server, binary=temporal_binary(), state=None)
    with (tmp_path_factory.mktemp("temporal") / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
    try:
        address = f"127.0.0.1:{server.port}"
        asyncio.run(until_up(address))
        yield address
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture
def server_limits() -> dict[str, Any]:
    """Dynamic configuration of the test's own server, besides the usual one."""
    return {}


@pytest.fixture
def own_temporal(subprocesses, tmp_path, free_port, server_limits) -> Iterator[str]:
    """A server of its own: which build is current is a fact of a whole server, and so is who polls.

    It sees within seconds what is drained.
    """
    wanted = read_devfile().temporal
    drainage = {"RefreshInterval": "1s", "VisibilityGracePeriod": "1s"}  # three minutes each by default
    dynamic = {f"matching.wv.VersionDrainageStatus{name}": value for name, value in drainage.items()}
    server = wanted.model_copy(
        update={"port": free_port, "dynamic_config": {**wanted.dynamic_config, **dynamic, **server_limits}}
    )
    command = server_command(server, binary=temporal_binary(), state=tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
    address = f"127.0.0.1:{free_port}"
    asyncio.run(until_up(address))
    yield address
    process.terminate()
    process.wait(PATIENCE_SECONDS)


@pytest.fixture
def next_python(tmp_path) -> Path:
    """The interpreter of the build after this one."""
    return make_next_build(tmp_path / "next", Path(__file__).parents[2], migration.newest_revision())


async def until_up(address: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            client = await connect(address=address)
            await client.count_workflows("IPnextModel = 'x' AND IPnextGeneration = 1")
        except Exception:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


@pytest.fixture
async def client(temporal_address) -> Client:
    return await connect(address=temporal_address, timing=read_devfile().timing)


@pytest.fixture
def house(kit, tmp_path, migrated):
    found = kit.House(tmp_path, migrated, rollout=TWO_WAVES)
    found.apply_fleet()
    yield found
    found.close()


@pytest.fixture
def served_infrastructure(house, tmp_path):
    """The test's infrastructure on a unix socket: it lives on while workers die."""

    class Shared(BaseManager):
        pass

    Shared.register("infrastructure", callable=lambda: house.infrastructure)
    address = f"/tmp/ipnext-{os.getpid()}-{os.path.basename(tmp_path)}"[:100]  # noqa: PTH119 - a short path for a socket
    server = Shared(address=address, authkey=b"test").get_server()

    def serve() -> None:
        with contextlib.suppress(SystemExit):  # its way to end
            server.serve_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield address
    server.stop_event.set()
    thread.join(5)


@pytest.fixture
def model() -> str:
    """A name of its own for each test: all share one server."""
    return f"ranker-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def serving(house, client) -> Callable[[], contextlib.AbstractAsyncContextManager[None]]:
    """Workers of both queues for as long as the context is open."""

    @contextlib.asynccontextmanager
    async def serve(
        solver: Solver | None = None,
        policy: PlanningPolicy | None = None,
        stages: StageKinds | None = None,
        validators: Sequence[Validator] = (),
    ) -> AsyncIterator[None]:
        devfile = read_devfile()
        engine = engine_of(lambda: client, asyncio.get_running_loop())
        ours = lifecycle_activities(
            house.store,
            house.artifacts,
            house.infrastructure,
            engine,
            pause=lambda _: time.sleep(PAUSE_SECONDS),
            cutter=house.cutter,
            deriver=house.deriver,
            solver=solver,
            policy=policy,
            stages=stages,
            validators=validators,
        )
        plugged = stages.workflows if stages else ()
        settings = PlatformSettings(artifact_roots=(house.root,))
        ours = (*ours, *source_activities(house.store, house.artifacts, settings))
        theirs = planner_activities(house.store, solver or ThreadSolver(), policy)
        async with (
            worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours, devfile.timing, workflows=plugged),
            worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
            worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs, devfile.timing),
        ):
            yield

    return serve


@pytest.fixture
async def workers(serving) -> AsyncIterator[None]:
    async with serving():
        yield


@pytest.fixture
def submit(client):
    """Submit a change as the API's outbox does: again until it is taken."""

    async def submitted(change: Change) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                await submit_change(client, change)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    return submitted


@pytest.fixture
def ended(house):
    """Wait until a change has ended and return it."""

    async def wait(change: Change | str) -> Change:
        change_id = change if isinstance(change, str) else change.id
        return await until(lambda: found if (found := house.change(change_id)).state.final else None)

    return wait


@pytest.fixture
def carried_out(submit, ended):
    """Submit a change and wait for its end."""

    async def carry(change: Change) -> Change:
        await submit(change)
        return await ended(change)

    return carry


@pytest.fixture
async def drains(house, client) -> AsyncIterator[Drains]:
    """Drains of regions, with none left behind."""
    asked = Drains(house, client, until)
    yield asked
    await asked.end()


@pytest.fixture
async def two_served(house, model, carried_out, workers) -> tuple[str, str]:
    """Two models that serve in both regions."""
    found = (model, f"{model}-b")
    for name in found:
        house.apply(name)
        await carried_out(house.publish(name, 1))
    return found


@pytest.fixture
async def reconciler(client):
    """The workflow, passing twice a second."""
    handle = await client.start_workflow(
        names.RECONCILE_WORKFLOW,
        ReconcileInput(every_seconds=0.5),
        id=f"reconcile-{uuid.uuid4().hex[:8]}",
        task_queue=names.LIFECYCLE_QUEUE,
    )
    yield handle
    await handle.terminate()


@pytest.fixture(name="until")
def until_fixture():
    return until


async def until(found: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> Any:
    """The first truthy value of `found`."""
    return await eventually(found, every_seconds=POLL_SECONDS, seconds=seconds)
