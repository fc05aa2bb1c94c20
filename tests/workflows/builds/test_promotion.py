"""A new build of the workers takes over step by step while publishes go on.

Pinned runs end on the build that they began on.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ipnext import names
from ipnext.cli.commands.platform import GROUP
from ipnext.errors import EXIT_BAD_INPUT
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.platform.builds import Build, builds
from ipnext.store.schema import migration
from ipnext.temporal import connect, control
from tests.forked_programs import ForkServer, start_interpreter
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.workflows.builds.next_build import REVISION

WORKER = "tests.workflows.runtime.killable_worker"
PROGRAM = Path(__file__).parents[1] / "runtime" / "killable_worker.py"
MODELS = 3
IDLE_SECONDS = 3.0
"""Between two publishes of a model that nothing waits for: a worker that starts needs the processors, too."""
QUICK = {
    "rollout": {"canary": 1.0, "maxStep": 1, "holdSeconds": 0},
    "demand": [{"region": "us-east", "qps": 35}, {"region": "eu-west", "qps": 18}],
}


class Workers:
    """Worker processes by build: `a` is of this build, `b` of the next one.

    Those of `a` are forks of a process that has imported what they need.
    """

    def __init__(self, root: Path, arguments: tuple[str, ...], next_python: Path) -> None:
        self._root = root
        self._arguments = arguments
        self._next_python = next_python
        self._forks = ForkServer((WORKER,))
        self._running: dict[str, Any] = {}

    def start(self, build: str) -> Any:
        """Start one; `ready` waits for it."""
        self._log(build).unlink(missing_ok=True)
        environment = {**os.environ, "IPNEXT_WORKER_BUILD_ID": build}
        with self._log(build).open("wb") as log:
            if build == "a":
                command = [sys.executable, "-m", WORKER, *self._arguments]
                self._running[build] = self._forks.spawn(command, environment, log)
            else:
                command = [str(self._next_python), str(PROGRAM), *self._arguments]
                self._running[build] = start_interpreter(command, environment, log)
        return self._running[build]

    async def ready(self, build: str) -> None:
        """Return once the server has seen it."""
        await eventually(lambda: f"ready {build}" in self.log(build), why=lambda: self.log(build))

    def kill(self, build: str) -> None:
        """End one, as a machine that is lost does."""
        process = self._running.pop(build)
        process.kill()
        process.wait()
        process.wait()

    def close(self) -> None:
        """End all."""
        for build in tuple(self._running):
            self.kill(build)
        self._forks.close()

    def log(self, build: str) -> str:
        """What it wrote."""
        return self._log(build).read_text()

    def _log(self, build: str) -> Path:
        return self._root / f"worker-{build}.log"


class Publishes:
    """Models that are published all the time, and the build that each change ran on."""

    def __init__(self, house, client, submit, ended, model) -> None:
        self.builds: list[tuple[str, str]] = []
        """Model, and the build of its transition, of each change in the order of their ends."""
        self.states: dict[str, ChangeState] = {}
        self._house, self._client, self._submit, self._ended = house, client, submit, ended
        self._names = [f"{model}-{number}" for number in range(MODELS)]
        self._stopped = False
        self._awaited = asyncio.Event()
        """Whether the next publishes begin without a pause."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish as long as the context is open, and then to the end of what was begun."""
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._publish_all(name))
            try:
                yield
            finally:
                self._stopped = True
                self._awaited.set()

    async def _publish_all(self, name: str) -> None:
        self._house.apply(name, **QUICK)
        seed = 0
        while not self._stopped:
            seed += 1
            change = self._house.publish(name, seed)
            await self._submit(change)
            self.states[change.id] = (await self._ended(change)).state
            self.builds.append((name, await build_of(self._client, names.transition_workflow_id(change.id))))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._awaited.wait(), IDLE_SECONDS)

    def entities(self) -> list[str]:
        """Workflow ids of the models."""
        return [names.model_workflow_id(name) for name in self._names]

    async def seen_on(self, *wanted: str) -> None:
        """Wait until changes that end from now on have run on each of these builds."""
        before = len(self.builds)
        await self._until(lambda: {build for _, build in self.builds[before:]} >= set(wanted))

    async def only_on(self, wanted: str) -> None:
        """Wait for two changes of every model, and check the second: the first one may have begun before."""
        before = len(self.builds)

        def since() -> list[list[str]]:
            return [[build for one, build in self.builds[before:] if one == name] for name in self._names]

        await self._until(lambda: all(len(found) > 1 for found in since()))
        assert {build for found in since() for build in found[1:]} == {wanted}, self.builds

    async def _until(self, found: Callable[[], bool]) -> None:
        self._awaited.set()
        await eventually(found, why=lambda: self.builds)
        self._awaited.clear()


async def build_of(client, workflow_id) -> str:
    """The build that a run was last on."""
    found = await client.get_workflow_handle(workflow_id).describe()
    return found.raw_description.workflow_execution_info.versioning_info.deployment_version.build_id


async def platform(*words: str) -> str:
    """What `ipnext platform ...` prints, again until it succeeds.

    The server sees a new worker some moments after it has begun.
    """
    while True:
        told = await asyncio.to_thread(CliRunner().invoke, GROUP, list(words))
        if told.exit_code == 0:
            return told.output
        await asyncio.sleep(0.1)


@pytest.fixture
async def client(own_temporal, monkeypatch):
    monkeypatch.setenv("TEMPORAL_ADDRESS", own_temporal)
    return await connect(address=own_temporal)


@pytest.fixture
def workers(house, served_infrastructure, own_temporal, next_python):
    found = Workers(house.root, (str(house.root), served_infrastructure, own_temporal), next_python)
    yield found
    found.close()


async def listed(client) -> dict[str, Build]:
    return {build.build_id: build for build in await builds(client)}


async def until_listed(client, build: str, state: str, open_runs: int | None = None) -> None:
    """Wait until a build is listed so."""
    found: dict[str, Build] = {}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (one := found.get(build)) is None or one.state != state or open_runs not in {None, one.open_runs}:
            await asyncio.sleep(0.1)
            found = await listed(client)


async def test_a_new_build_takes_over_step_by_step_and_the_former_one_is_drained(
    house, client, workers, next_python, model, submit, ended, until
):
    workers.start("a")
    await workers.ready("a")
    house.apply(model, rollout={"canary": 1.0, "holdSeconds": 1000})
    pinned = house.publish(model, 1)
    await submit(pinned)
    await until(lambda: house.shares(model))
    publishes = Publishes(house, client, submit, ended, model)
    async with publishes.running():
        await publishes.seen_on("a")
        workers.start("b")  # its start migrates the database, which build a goes on with
        await workers.ready("b")
        await publishes.only_on("a")

        assert "takes 30 % of new runs" in await platform("promote", "b", "--ramp", "30")
        await publishes.seen_on("a", "b")
        assert (await listed(client))["b"].state == "ramping"
        await platform("promote", "b", "--ramp", "80")
        assert (await listed(client))["b"].ramp_percent == 80
        await publishes.seen_on("b")

        assert "build b is current" in await platform("promote", "b")
        await publishes.only_on("b")
        await until_listed(client, "a", "draining")

        workers.kill("a")  # and one of the build that the pinned run needs starts again, on the schema of the newer one
        assert migration.schema_range(house.store._engine).version == REVISION
        workers.start("a")
        await workers.ready("a")
        await control(client, model, ControlAction.PROMOTE, ControlAsked(by="anna"), change_id=pinned.id)
        assert (await ended(pinned)).state is ChangeState.DONE
    assert set(publishes.states.values()) == {ChangeState.DONE}
    assert await build_of(client, names.transition_workflow_id(pinned.id)) == "a"
    for entity in publishes.entities():
        assert await build_of(client, entity) == "b", "entities go over"
    await until_listed(client, "a", "drained")
    assert "drained" in await platform("builds")

    with house.store._engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE schema_compat SET min_reader = '{REVISION}'")
    workers.kill("a")
    process = workers.start("a")
    await until(lambda: process.poll() is not None)
    assert process.returncode == EXIT_BAD_INPUT
    assert f"schema {REVISION}, which builds of schema {REVISION} or newer can use" in workers.log("a")
