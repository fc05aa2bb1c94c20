"""Two builds of the workers at once: a transition ends on the build that it began on, the entity goes over to the new one."""

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipnext import names
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.infra.tether import tether
from ipnext.model.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle import ChangeState
from ipnext.temporal import connect, control
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("subprocesses")

PROGRAM = Path(__file__).parent / "killable_worker.py"


@pytest.fixture
def server(tmp_path, free_port):
    """A server of its own: which build is current is a fact of the whole server."""
    wanted = read_devfile().temporal.model_copy(update={"port": free_port})
    command = server_command(wanted, binary=temporal_binary(), state=tmp_path, with_ui=False)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
    yield f"127.0.0.1:{free_port}"
    process.terminate()
    process.wait(PATIENCE_SECONDS)


@pytest.fixture
async def client(server, until_up):
    await until_up(server)
    return await connect(address=server, timing=read_devfile().timing)


@pytest.fixture
def worker(house, served_infrastructure, client, server, tmp_path):
    """Start a worker process of a build, which makes its build the current one."""
    started = []

    def start(build):
        command = [sys.executable, str(PROGRAM), str(house.root), served_infrastructure, server]
        with (tmp_path / "workers.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, "IPNEXT_WORKER_BUILD_ID": build},
                stdout=log,
                stderr=log,
                preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
            )
        started.append(process)

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


async def build_of(client, workflow_id):
    """The build that a run was last on."""
    found = await client.get_workflow_handle(workflow_id).describe()
    return found.raw_description.workflow_execution_info.versioning_info.deployment_version.build_id


async def test_a_transition_ends_on_its_build_while_the_entity_goes_over_to_the_new_one(
    house, model, client, worker, submit, until, ended
):
    worker("a")
    house.apply(model, rollout={"canary": 1.0, "holdSeconds": 1000})
    first, second = house.publish(model, 1), house.publish(model, 2)
    await submit(first)
    await until(lambda: house.shares(model))

    worker("b")
    await until(lambda: b"ready b" in (house.root / "workers.log").read_bytes())
    house.apply(model, rollout={"canary": 1.0})
    await submit(second)
    assert not house.change(first.id).state.final
    await control(client, model, ControlAction.PROMOTE, ControlAsked(by="anna"), change_id=first.id)

    assert (await ended(first)).state is ChangeState.DONE
    assert (await ended(second)).state is ChangeState.DONE
    builds = [await build_of(client, names.transition_workflow_id(change.id)) for change in (first, second)]
    assert builds == ["a", "b"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await build_of(client, names.model_workflow_id(model)) != "b":  # noqa: ASYNC110 - it is asked, it tells nothing by itself
            await asyncio.sleep(0.1)
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
