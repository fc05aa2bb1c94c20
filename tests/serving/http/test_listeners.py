"""Host and router on Unix sockets: each socket lets in what its kind of caller may ask for."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from functools import partial

import httpx
import pytest

from ipnext.components.caller_proof import read_proof
from ipnext.components.host_directories import name_host_directory
from ipnext.components.identity import Component
from ipnext.components.sockets import bind_socket
from ipnext.infra.process.parent_death import tether
from ipnext.names import FRAMES, PROOF_HEADER
from serving.host.other_hosts import reach_host
from serving.routing.host_connection import connect
from serving.snapshots.fetch_starter import FetchingKeeper
from tests.processes import unix_transport
from tests.waiting import PATIENCE_SECONDS, until

CALLERS = {"host": ("agent", "router"), "vllm-host": ("agent",), "router": ("agent", "gateway")}
OWN = name_host_directory("key", model="m", host="own")
"""Directory of a host of the same model as the one that runs."""
DIRECTORIES = {
    "host": name_host_directory("key", model="m", host="other"),
    "vllm-host": "vllm-host",
    "router": "router",
}
MODULES = {"host": "serving.host", "vllm-host": "serving.genai.host", "router": "serving.router"}


@pytest.fixture(scope="module")
def places(tmp_path_factory, subprocesses):
    """Program -> the directory of its sockets; each is a real process."""
    root = tmp_path_factory.mktemp("s")
    table = root / "table.json"
    table.write_text(json.dumps({"revision": 1, "region": "eu", "models": []}))
    started = []
    for name, module in MODULES.items():
        command = [sys.executable, "-m", module, "--sockets", str(root / DIRECTORIES[name]), "--region", "eu"]
        more = ["--table", str(table)]
        if name != "router":
            more = ["--id", name, "--artifacts", f"file://{root}/artifacts", "--cache", str(root / "cache")]
        with (root / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen([*command, *more], stdout=log, stderr=log, preexec_fn=tether()))  # noqa: PLW1509
    try:
        for process, name in zip(started, MODULES, strict=True):
            until(lambda name=name, process=process: answers(root, name, process), why=lambda name=name: name)
        yield {name: root / DIRECTORIES[name] for name in MODULES}
    finally:
        for process in started:
            process.kill()
            process.wait(PATIENCE_SECONDS)


def answers(root, name, process):
    assert process.poll() is None, (root / f"{name}.log").read_text()
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(root / DIRECTORIES[name] / "agent.sock")):
            return False
    return ask(root / DIRECTORIES[name], "agent", "/healthz").status_code == 200


PROVED = object()
"""The proof of the socket's callers."""


def ask(place, caller, path, *, method="GET", headers=None):
    with httpx.Client(transport=unix_transport(str(place / f"{caller}.sock"))) as client:
        return client.request(method, f"http://localhost{path}", headers=headers, timeout=60)


def upgraded(place, caller, path="/frames", *, proof=PROVED):
    """The status of an upgrade to frames."""
    proof = read_proof(place / f"{caller}.proof") if proof is PROVED else proof
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(str(place / f"{caller}.sock"))
        head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: {FRAMES}\r\n"
        head += "\r\n" if proof is None else f"{PROOF_HEADER}: {proof}\r\n\r\n"
        connection.sendall(head.encode())
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("name", sorted(CALLERS))
def test_a_program_listens_on_the_sockets_of_its_callers_and_nowhere_else(places, name):
    place = places[name]
    found = [path for path in place.iterdir() if not path.is_dir()]
    assert {path.name for path in found} == {
        f"{caller}{end}" for caller in CALLERS[name] for end in (".sock", ".proof")
    }
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    engines = [path for path in place.iterdir() if path.is_dir()]  # of a host of vLLM: where its engines listen
    assert [path for engine in engines for path in engine.iterdir()] == []
    assert {path.owner() for path in place.iterdir()} == {place.owner()}
    assert os.geteuid() == place.stat().st_uid


@pytest.mark.parametrize("name", sorted(CALLERS))
def test_an_agent_may_ask_for_control_and_metrics(places, name):
    assert ask(places[name], "agent", "/control/state").status_code == 200
    assert ask(places[name], "agent", "/metrics").status_code == 200


@pytest.mark.parametrize(
    ("name", "caller", "method", "path"),
    [
        ("router", "gateway", "GET", "/control/state"),
        ("router", "gateway", "POST", "/control/drain"),
        ("router", "gateway", "GET", "/metrics"),
        ("router", "gateway", "GET", "//control/state"),
        ("router", "agent", "POST", "/v2/models/m/infer"),
        ("router", "agent", "POST", "/v1/completions"),
        ("host", "router", "GET", "/control/state"),
        ("host", "router", "PUT", "/control/holds"),
        ("host", "router", "POST", "/control/drain"),
        ("host", "agent", "GET", "/frames"),
        ("host", "agent", "GET", "/nothing"),
    ],
)
def test_the_wrong_caller_is_refused(places, name, caller, method, path):
    answer = ask(places[name], caller, path, method=method)
    assert answer.status_code == 403, answer.text
    assert answer.headers["x-ipnext-error"] == "Forbidden"


def test_the_gateway_asks_for_what_clients_ask_for(places):
    assert ask(places["router"], "gateway", "/v2/health/live").status_code == 200
    assert ask(places["router"], "gateway", "/v2/models/m").status_code == 404


def test_only_a_router_sends_frames_whatever_path_it_names(places):
    assert upgraded(places["host"], "router") == 101
    assert upgraded(places["host"], "router", "/control/state") == 101  # a router's socket: frames, not control
    assert upgraded(places["host"], "agent") == 403
    assert upgraded(places["host"], "agent", "/control/state") == 403


@pytest.mark.parametrize(
    ("name", "caller", "path"),
    [
        ("router", "agent", "/control/state"),
        ("router", "gateway", "/v2/health/live"),
        ("host", "agent", "/control/state"),
        ("host", "agent", "/healthz"),
        ("vllm-host", "agent", "/control/state"),
    ],
)
def test_a_caller_of_this_user_without_the_proof_is_refused(places, name, caller, path):
    other = read_proof(places[name] / ("gateway.proof" if caller == "agent" and name == "router" else "agent.proof"))
    assert ask(places[name], caller, path).status_code == 200
    for wrong in ("", "guessed", *([other] if other != read_proof(places[name] / f"{caller}.proof") else [])):
        answer = ask(places[name], caller, path, headers={PROOF_HEADER: wrong})
        assert answer.status_code == 403, answer.text
        assert "has not proved itself" in answer.text
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(places[name] / f"{caller}.sock"))) as client:
        assert client.get(f"http://localhost{path}", timeout=60).status_code == 403


def test_frames_take_a_proof_too(places):
    assert upgraded(places["host"], "router") == 101
    assert upgraded(places["host"], "router", proof=None) == 403
    assert upgraded(places["host"], "router", proof=read_proof(places["host"] / "agent.proof")) == 403


@pytest.fixture
def keeper(places):
    """That of a host beside these."""
    keeper = FetchingKeeper(lambda: None, reaches=partial(reach_host, places["host"].with_name(OWN)))
    yield keeper
    keeper.close()


def test_a_confined_host_reaches_another_one_through_its_keeper(places, keeper):
    async def reach():
        connection = await connect(f"unix://{places['host']}", reach=partial(asyncio.to_thread, keeper.reach))
        opened = connection.open
        connection.close()
        return opened

    assert asyncio.run(reach())


def test_a_keeper_connects_to_hosts_and_to_nothing_else(places, keeper):
    host = places["host"]
    root = host.parent
    elsewhere = root / "elsewhere" / host.name
    with bind_socket(elsewhere, Component.ROUTER) as other:
        other.listen()
        for place in (elsewhere, root / host.name / ".." / host.name, host / "agent.sock"):
            with pytest.raises(ConnectionError, match="is no host of this region"):
                keeper.reach(f"unix://{place}")
    for url in ("http://127.0.0.1:22", "", str(host)):
        with pytest.raises(ConnectionError, match="is no host of this region"):
            keeper.reach(url)
    with pytest.raises(ConnectionError, match="No such file"):
        keeper.reach(f"unix://{root / name_host_directory('key', model='m', host='gone')}")
    link, proof = keeper.reach(f"unix://{host}")
    link.close()
    assert proof == read_proof(host / "router.proof")


@pytest.mark.parametrize(
    "name", [name_host_directory("key", model="of another owner", host="other"), "host", OWN[:8], f"{OWN}x"]
)
def test_a_keeper_connects_to_no_host_of_another_model(places, keeper, name):
    with bind_socket(places["host"].with_name(name), Component.ROUTER) as other:
        other.listen()
        with pytest.raises(ConnectionError, match="is no host of this model"):
            keeper.reach(f"unix://{places['host'].with_name(name)}")


def test_a_page_and_another_host_are_refused_on_sockets_too(places):
    assert ask(places["router"], "gateway", "/v2/health/live", headers={"Host": "evil.example"}).status_code == 421
    assert ask(places["host"], "agent", "/control/state", headers={"Origin": "http://evil.example"}).status_code == 403
