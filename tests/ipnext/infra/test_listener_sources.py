"""Every listener answers its own names only, and no page of another origin.

A page whose name is rebound to loopback is refused.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.components.caller_proof import read_proof
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.names import FRAMES
from tests.waiting import PATIENCE_SECONDS, until

NAMES = {
    "IPNEXT_ALLOWED_HOSTS": '["ipnext.example", "10.1.2.3"]',
    "IPNEXT_ALLOWED_ORIGINS": '["https://ui.example"]',
}
ON_A_PORT = {
    "IPNEXT_AGENT_ROUTER_COMMAND": json.dumps(
        ["{python}", "-m", "serving.router", "--port", "{port}", "--region", "{region}", "--table", "{table}"]
    )
}
"""So that a browser could reach it at all; test_inner_listeners.py has the default, Unix sockets."""
ARGUMENTS = ("--allowed-host=ipnext.example", "--allowed-host=10.1.2.3", "--allowed-origin=https://ui.example")
PATHS = {
    "api": "/v1/models",
    "agent": "/state",
    "gateway": "/v2/health/live",
    "router": "/control/state",
    "host": "/control/state",
    "vllm-host": "/control/state",
}
LISTENERS = sorted(PATHS)
MUTATIONS = {
    "api": ("PUT", "/v1/fleet"),
    "agent": ("DELETE", "/routes/ranker"),
    "gateway": ("POST", "/v2/models/ranker/infer"),
    "router": ("POST", "/control/drain"),
    "host": ("POST", "/control/drain"),
    "vllm-host": ("POST", "/control/drain"),
}


def started(stack, directory, name, command, port):
    """A process that answers on its port."""
    with (directory / f"{name}.log").open("wb") as log:
        environment = os.environ | NAMES | {"IPNEXT_DATABASE_URL": f"sqlite:///{directory}/ipnext.db"}
        environment |= {"IPNEXT_ARTIFACTS_URI": f"file://{directory}/artifacts", "IPNEXT_API_PORT": str(port)}
        environment["IPNEXT_AUTHENTICATION"] = "none"
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=tether())  # noqa: PLW1509
    stack.callback(process.wait, PATIENCE_SECONDS)
    stack.callback(process.kill)

    def answers():
        assert process.poll() is None, (directory / f"{name}.log").read_text()
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).status_code == 200
        return False

    until(answers, why=lambda: f"{name} answers")
    return port


@pytest.fixture(scope="module")
def agent(tmp_path_factory, running_agent):
    store = FileArtifactStore(tmp_path_factory.mktemp("store"))
    agent = running_agent(
        "eu", tmp_path_factory.mktemp("agent"), environment=NAMES | ON_A_PORT, artifacts=store.uri, real=True
    )
    try:
        yield agent.start()
    finally:
        agent.close()


@pytest.fixture(scope="module")
def ports(tmp_path_factory, agent):
    """Listener -> its port; each is a real process."""
    directory = tmp_path_factory.mktemp("listeners")
    found = {"agent": agent.port, "gateway": httpx.URL(agent.gateway).port}
    command = agent.child("serving.router").cmdline()
    found["router"] = int(command[command.index("--port") + 1])
    with ExitStack() as stack:
        for name, module in (("host", "serving.host"), ("vllm-host", "serving.genai.host")):
            port = free_port()
            words = [sys.executable, "-m", module, "--port", str(port), "--region", "eu", "--id", name, *ARGUMENTS]
            words += ["--artifacts", f"file://{directory}/artifacts", "--cache", str(directory / name)]
            found[name] = started(stack, directory, name, words, port)
        port = free_port()
        found["api"] = started(stack, directory, "api", [sys.executable, "-m", "ipnext.api"], port)
        yield found


def ask(port, path, *, method="GET", headers=None, host=None):
    """Status and text of an answer to `host`, by default the one that a client gives."""
    given = {"Host": host} if host is not None else {}
    answer = httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=given | (headers or {}), timeout=60)
    return answer.status_code, answer.text


def raw(port, text):
    """The status of what is answered to exactly these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(text.encode())
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    "host",
    [
        *(None, "localhost", "localhost:1", "LOCALHOST", "127.0.0.2:8700", "127.255.255.254", "[::1]", "[::1]:99"),
        *("ipnext.example", "IPnext.Example:443", "10.1.2.3:80"),
    ],
)
def test_loopback_addresses_and_configured_names_are_answered(ports, listener, host):
    assert ask(ports[listener], PATHS[listener], host=host)[0] == 200


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:{port}",
            "127.0.0.1.evil.example",
            "127.evil.example",
            "localhost.evil.example",
        ),
        *("evil.localhost", "xipnext.example", "ipnextxexample", "10.1.2.30", "128.0.0.1", "127.0.0.256", "[::2]"),
    ],
)
def test_another_host_is_misdirected(ports, listener, host):
    status, text = ask(ports[listener], PATHS[listener], host=host.format(port=ports[listener]))
    assert status == 421, text
    assert "IPNEXT_ALLOWED_HOSTS" in text


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://ui.example.evil", ""])
def test_a_page_of_another_origin_is_refused(ports, listener, origin):
    method, path = MUTATIONS[listener]
    for how, where in (("GET", PATHS[listener]), (method, path)):
        status, text = ask(ports[listener], where, method=how, headers={"Origin": origin})
        assert status == 403, text
        assert "origin" in text


@pytest.mark.parametrize("listener", LISTENERS)
def test_a_request_that_another_site_makes_without_an_origin_is_refused(ports, listener):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert ask(ports[listener], PATHS[listener], headers=headers)[0] == 403
    assert ask(ports[listener], PATHS[listener], headers={"Sec-Fetch-Site": "same-origin"})[0] == 200


@pytest.mark.parametrize("listener", LISTENERS)
def test_a_configured_origin_may_ask(ports, listener):
    headers = {"Origin": "https://ui.example", "Sec-Fetch-Site": "cross-site"}
    assert ask(ports[listener], PATHS[listener], headers=headers)[0] == 200


@pytest.mark.parametrize("listener", [name for name in LISTENERS if name != "gateway"])
def test_a_listeners_own_page_may_ask_and_a_link_may_be_followed(ports, listener):
    port = ports[listener]
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
    assert ask(port, PATHS[listener], headers=own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(port, PATHS[listener], headers=link)[0] == 200
    assert ask(port, PATHS[listener], headers={**link, "Sec-Fetch-Dest": "iframe"})[0] == 403


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    "hosts", ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost\r\nHost: evil.example\r\n"]
)
def test_a_request_has_exactly_one_host(ports, listener, hosts):
    request = f"GET {PATHS[listener]} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n"
    status = raw(ports[listener], request)
    assert status == 400 or (listener == "gateway" and status == 421)


@pytest.mark.parametrize("listener", ["host", "router"])
def test_the_upgrade_to_frames_is_checked_too(ports, listener):
    lines = f"Connection: upgrade\r\nUpgrade: {FRAMES}\r\n"
    for more, status in (("Host: evil.example\r\n", 421), ("Host: localhost\r\nOrigin: http://evil.example\r\n", 403)):
        assert raw(ports[listener], f"GET /frames HTTP/1.1\r\n{more}{lines}\r\n") == status
    if listener == "host":
        assert raw(ports[listener], f"GET /frames HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n") == 101


def test_the_gateways_admin_endpoint_is_a_socket_of_this_user_alone(agent):
    envoy = agent.child("envoy")
    listening = [one.laddr.port for one in envoy.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert sorted(listening) == sorted(httpx.URL(url).port for url in (agent.gateway, agent.peer_url))
    (admin,) = {one.laddr for one in envoy.net_connections("unix") if one.laddr.endswith("admin.sock")}
    assert os.stat(admin).st_mode & 0o077 == 0  # noqa: PTH116 - a text
    assert os.stat(os.path.dirname(admin)).st_mode & 0o077 == 0  # noqa: PTH116, PTH120
    with httpx.Client(transport=httpx.HTTPTransport(uds=admin), base_url="http://localhost", timeout=60) as client:
        for path in ("ready", "stats", "stats?proof=guessed", "config_dump", "?proof=", ""):
            assert client.get(f"/{path}").status_code == 403, path
        for path in ("quitquitquit", "drain_listeners", "drain_listeners?proof=guessed", "healthcheck/fail"):
            assert client.post(f"/{path}").status_code == 403, path
        proof = read_proof(agent.state / "envoy" / "admin.proof")
        assert client.get(f"/stats?proof={proof}").status_code == 200
        assert client.post(f"/quitquitquit?proof={proof}").status_code == 403, "nobody asks for it"


def test_a_gateway_refuses_by_itself_what_never_reaches_its_router(ports):
    assert ask(ports["gateway"], "/nothing")[0] == 404
    assert ask(ports["gateway"], "/nothing", host="evil.example")[0] == 421


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize(
    "origins", [("https://evil.example", "{own}"), ("{own}", "https://evil.example"), ("null", "{own}")]
)
def test_no_origin_hides_another(ports, listener, origins):
    host = f"localhost:{ports[listener]}"
    lines = "".join(f"Origin: {origin.format(own=f'http://{host}')}\r\n" for origin in origins)
    head = f"GET {PATHS[listener]} HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n"
    assert raw(ports[listener], head) == 403
