"""A vLLM host of root's that becomes another user, and its engines with it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ipnext.infra.process.host_user import open_state, refusal
from ipnext.infra.process.parent_death import tether
from ipnext.model.deployment.host_control import HostHolds
from serving.openai.engines.connection import EngineConnectionPool
from tests.genai.host.test_sockets import ready
from tests.genai.support.hosts import MOCK
from tests.own_user import needs_root, nobody, open_directory, with_open_python
from tests.processes import accepts, client_of, command_line
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = needs_root


@pytest.fixture
def place(subprocesses):
    with open_directory() as path:
        yield path


@pytest.fixture
def host(shelf, place):
    """As an agent of root starts it.

    With a directory for its sockets that its user may enter, and a cache that this user may read.
    """
    state = place / "state"
    state.mkdir(mode=0o700)
    open_state(state, nobody().gid)
    command = [*with_open_python(place / "kept"), sys.executable, "-m", "serving.genai.host", "--id", "h"]
    command += ["--sockets", str(state / "h"), "--region", "north", "--artifacts", shelf.store.uri]
    command += ["--cache", str(state / "cache"), f"--user={nobody().argument}"]
    environment = {
        "IPNEXT_VLLM_COMMAND": f"{{python}} {MOCK} --socket {{socket}} --model {{model}} --checkpoint {{directory}}",
        "PATH": os.environ["PATH"],
    }
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=tether(), umask=0o077)  # noqa: PLW1509
    try:
        until(lambda: accepts(state / "h" / "agent.sock"), why=(place / "log").read_text)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


async def test_host_and_engines_are_another_user_and_answer(host, shelf, place):
    with client_of(host) as client:
        holds = HostHolds(holds=(shelf.hold(1),))
        assert client.put("/control/holds", content=holds.model_dump_json()).status_code == 202
    (held,) = until(lambda: ready(host), why=lambda: (place / "log").read_text()[-2000:]).ready
    engines = [one for one in host.children(recursive=True) if str(MOCK) in command_line(one)]
    assert len(engines) == 2  # keeper and engine
    for process in (host, *engines):
        assert ({*process.uids()}, {*process.gids()}) == ({nobody().uid}, {nobody().gid})
    pool = EngineConnectionPool(held.url)
    assert (await pool.ask("GET", "/v1/models", {}, b"")).status == 200
    pool.close()
    (log,) = (place / "state" / "logs").iterdir()
    assert owner(log) == 0
    assert owner(engines[-1].environ()["HOME"]) == nobody().uid


def owner(path):
    return Path(path).stat().st_uid


def test_the_logs_of_engines_are_closed_to_their_user(host, shelf, place):
    with client_of(host) as client:
        client.put("/control/holds", content=HostHolds(holds=(shelf.hold(1),)).model_dump_json())
    until(lambda: ready(host), why=lambda: (place / "log").read_text()[-2000:])
    (log,) = (place / "state" / "logs").iterdir()
    assert "may not enter or read" in (refusal(nobody(), reads=[log]) or "")
