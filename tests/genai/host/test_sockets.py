"""A vLLM host on Unix sockets: its engines have no ports either, and a router reaches them."""

import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ipnext.infra.process.parent_death import tether
from ipnext.model.deployment.host_control import HostHolds, HostState
from serving.genai.engine.supervisor import forget_sockets
from serving.openai.engines.connection import EngineConnectionPool
from tests.genai.support.hosts import MOCK
from tests.processes import accepts, client_of, get_from
from tests.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def host(shelf, tmp_path, subprocesses):
    """A host that holds one snapshot on the mock engine."""
    place = tmp_path / "h"
    command = [sys.executable, "-m", "serving.genai.host", "--sockets", str(place), "--region", "north", "--id", "h"]
    command += ["--artifacts", shelf.store.uri, "--cache", str(tmp_path / "cache")]
    environment = {
        "IPNEXT_VLLM_COMMAND": f"{{python}} {MOCK} --socket {{socket}} --model {{model}}",
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=tether())  # noqa: PLW1509
    try:
        until(lambda: accepts(place / "agent.sock"), why=(tmp_path / "log").read_text)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


async def test_an_engine_listens_on_a_socket_of_its_user_alone(host, shelf, tmp_path):
    holds = HostHolds(holds=(shelf.hold(1),))
    with client_of(host) as client:
        assert client.put("/control/holds", content=holds.model_dump_json()).status_code == 202
    state = until(lambda: ready(host), why=lambda: (tmp_path / "log").read_text()[-2000:])
    (held,) = state.ready
    assert held.url.startswith(f"unix://{tmp_path}/h/e/")
    path = Path(held.url.removeprefix("unix://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for process in [host, *host.children(recursive=True)]:
        assert not [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    pool = EngineConnectionPool(held.url)
    answer = await pool.ask("GET", "/v1/models", {}, b"")
    assert answer.status == 200
    pool.close()


def ready(host):
    """Its state, once it holds what it was told."""
    state = HostState.model_validate_json(get_from(host, "/control/state").content)
    return state if state.ready else None


def test_a_host_that_comes_back_removes_the_sockets_of_engines_that_are_gone(tmp_path):
    (tmp_path / "e" / "1a2b3c").mkdir(parents=True)
    for path in (tmp_path / "e" / "1a2b3c" / "e.sock", tmp_path / "agent.sock"):
        path.touch()
    forget_sockets(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["agent.sock", "e"]
