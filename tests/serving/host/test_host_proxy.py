"""A host behind its proxy: real Envoy with mTLS on a port, a real host on Unix sockets, and a real router."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch

from ipnext.components.authority import CertificateAuthority
from ipnext.components.caller_proof import proof_file
from ipnext.components.certificates import client_context
from ipnext.components.client_contexts import ClientContexts
from ipnext.components.http_sessions import HttpSessions
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.components.private_files import make_private_directory
from ipnext.components.settings import ComponentSettings
from ipnext.components.sockets import keep_caller_proof, socket_path, socket_url
from ipnext.errors import InvalidInput, Unavailable
from ipnext.infra import host_proxy_process
from ipnext.infra.control import Control
from ipnext.infra.process.ports import free_port
from ipnext.model.deployment.host_control import HostHolds
from ipnext.names import FRAMES, PROOF_HEADER
from serving.routing.host_client import HostClient
from serving.routing.host_connection import ConnectionLost, connect
from serving.routing.load_balancer import HostLoadBalancer
from tests.forked_programs import start_interpreter
from tests.waiting import PATIENCE_SECONDS, eventually, until, until_told

DOMAIN, REGION = "ipnext.local", "north"
HOST, AGENT, ROUTER = (
    ComponentIdentity(DOMAIN, one, REGION) for one in (Component.HOST, Component.AGENT, Component.ROUTER)
)
CALLERS = (AGENT, ROUTER)
STRANGERS = {
    "control plane": ComponentIdentity(DOMAIN, Component.CONTROL_PLANE),
    "gateway": ComponentIdentity(DOMAIN, Component.GATEWAY, REGION),
    "another host": HOST,
    "agent of another region": ComponentIdentity(DOMAIN, Component.AGENT, "south"),
    "router of another trust domain": ComponentIdentity("other.local", Component.ROUTER, REGION),
}


@dataclass
class Proxied:
    """The host's URL behind its proxy, and the certificates of all."""

    url: str
    authority: CertificateAuthority
    issuer: Issuer
    process: object

    def ask(self, files, path):
        context = client_context(files, lambda peer: peer == HOST)
        with httpx.Client(verify=context, timeout=PATIENCE_SECONDS) as client:
            return client.get(self.url + path)


def settings_of(files):
    names = ("CERTIFICATE", "KEY", "CA")
    paths = (files.certificate, files.key, files.authorities)
    return {f"IPNEXT_COMPONENT_{name}_FILE": str(path) for name, path in zip(names, paths, strict=True)}


def issuer_in(directory, identities, authority):
    issuer = Issuer(authority, directory, lasts_seconds=3600, renewed_at=1e-9)
    issuer.issue(identities)
    return issuer


@pytest.fixture(scope="module")
def proxied(tmp_path_factory, published, toolbox, subprocesses):
    root = tmp_path_factory.mktemp("p")
    authority = CertificateAuthority.create()
    issuer = issuer_in(root / "certificates", (HOST, *CALLERS), authority)
    port = free_port()
    make_private_directory(root / "h")
    machine = toolbox.machine(root, published.store.uri)
    host = ["serving.host", "--sockets", str(root / "h"), "--region", REGION, "--id", "h"]
    host += ["--artifacts", published.store.uri, "--cache", str(root / "cache")]
    proxy = ["ipnext.infra.host_proxy_process", "--region", REGION, "--host", "127.0.0.1", "--port", str(port)]
    proxy += ["--sockets", str(root / "h"), "--state", str(root / "proxy")]
    environment = {**os.environ, **settings_of(issuer.files(HOST))}
    with (root / "proxy.log").open("wb") as log:
        before = start_interpreter([sys.executable, "-m", *proxy], environment, log)
    running = SimpleNamespace(process=machine._spawn([sys.executable, "-m", *host], "h"))
    machine._started.append(running)
    found = Proxied(f"https://127.0.0.1:{port}", authority, issuer, before)
    try:
        until(lambda: is_up(found), why=(root / "proxy.log").read_text)
        yield found
    finally:
        before.kill()
        before.wait(PATIENCE_SECONDS)
        machine.close()


def is_up(proxied):
    assert proxied.process.poll() is None
    try:
        return proxied.ask(proxied.issuer.files(AGENT), "/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
async def control(proxied):
    async with aclosing(HttpSessions(ClientContexts(proxied.issuer.files(AGENT), HOST))) as session:
        yield Control(session, probe_seconds=PATIENCE_SECONDS)


@pytest.fixture
async def held(proxied, control, published):
    """The URL of the host, which holds generation 1 of both parts."""
    holds = HostHolds(holds=(published.hold("sparse", 1), published.hold("dense", 1)))
    await control.put_holds(proxied.url, holds)
    await until_told(lambda: is_ready(control, proxied.url))
    return proxied.url


async def is_ready(control, url):
    return len((await control.host_state(url)).ready) == 2


def infer(client, router, toolbox, request):
    encoded = router.infer("/v2/models/click/infer", request)
    assert encoded.status_code == 200, encoded.text
    return toolbox.decode(encoded).outputs


async def test_a_router_with_a_certificate_answers_with_equal_bits(proxied, held, published, toolbox, tmp_path):
    machine = toolbox.machine(tmp_path, published.store.uri)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings_of(proxied.issuer.files(ROUTER)).items():
                patch.setenv(name, value)
            router = await asyncio.to_thread(machine.start_router, "router", fork=False)
        table = toolbox.table_of(1, [SimpleNamespace(url=held)], 1)
        await asyncio.to_thread(router.follow, table)
        request = toolbox.example(4)
        outputs = await asyncio.to_thread(infer, None, router, toolbox, request)
        expected = published.expected(1, request)
        for name, tensor in expected.items():
            assert torch.equal(torch.from_numpy(outputs[name].data), tensor)
    finally:
        machine.close()


async def test_a_router_without_a_certificate_reaches_no_host_at_https(held):
    with pytest.raises(ConnectionLost):
        await connect(held)
    async with aclosing(HttpSessions()) as session:
        with pytest.raises(Unavailable, match="IPNEXT_COMPONENT_CERTIFICATE_FILE"):
            await Control(session, probe_seconds=PATIENCE_SECONDS).host_state(held)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_component_that_may_not_call_hosts_is_refused_in_the_handshake(proxied, tmp_path, stranger):
    identity = STRANGERS[stranger]
    files = issuer_in(tmp_path, (identity,), proxied.authority).files(identity)
    with pytest.raises(httpx.TransportError):
        proxied.ask(files, "/healthz")


def test_a_certificate_of_another_authority_is_refused(proxied, tmp_path):
    foreign = issuer_in(tmp_path, (AGENT,), CertificateAuthority.create()).files(AGENT)
    files = replace(foreign, authorities=proxied.issuer.files(AGENT).authorities)
    with pytest.raises(httpx.TransportError):
        proxied.ask(files, "/healthz")


def test_a_caller_without_a_certificate_is_refused(proxied):
    context = ssl.create_default_context(cafile=str(proxied.issuer.files(AGENT).authorities))
    context.check_hostname = False
    with httpx.Client(verify=context) as client, pytest.raises(httpx.TransportError):
        client.get(proxied.url + "/healthz")


SPOOFED = {
    "x-forwarded-client-cert": f"By={HOST.uri};Hash=0;URI={AGENT.uri}",
    PROOF_HEADER: "guessed",
}


@pytest.mark.parametrize("headers", [{}, SPOOFED], ids=["plain", "spoofed"])
@pytest.mark.parametrize(
    ("caller", "path"),
    [
        (ROUTER, "/control/state"),
        (ROUTER, "/parts/../control/state"),
        (ROUTER, "/parts/%2e%2e/control/state"),
        (ROUTER, "/metrics"),
        (ROUTER, "//control/state"),
        (AGENT, "/frames"),
        (AGENT, "/unknown"),
    ],
)
def test_a_route_of_another_caller_is_refused(proxied, caller, path, headers):
    upgrade = {"connection": "upgrade", "upgrade": FRAMES} if path == "/frames" else {}
    assert raw_status(proxied, caller, path, {**headers, **upgrade}) == 403


@pytest.mark.parametrize(("caller", "path", "status"), [(AGENT, "/healthz", 200), (ROUTER, "/frames", 101)])
def test_a_host_is_reached_at_an_address_other_than_loopback(proxied, caller, path, status):
    upgrade = {"connection": "upgrade", "upgrade": FRAMES} if path == "/frames" else {}
    assert raw_status(proxied, caller, path, upgrade, host="10.1.2.3:8443") == status


def raw_status(proxied, caller, path, headers, host="localhost"):
    """Return the status of a request whose path no client normalizes."""
    port = int(proxied.url.rpartition(":")[2])
    lines = [f"GET {path} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as link,
        client_context(proxied.issuer.files(caller), lambda peer: peer == HOST).wrap_socket(link) as secured,
    ):
        secured.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(secured.recv(4096).split()[1])


def test_an_upgrade_on_the_path_of_another_route_reaches_no_frames(proxied):
    """Hosts judge an upgrade by its protocol: an agent that upgrades on its own path gets none."""
    assert raw_status(proxied, AGENT, "/healthz", {"connection": "upgrade", "upgrade": FRAMES}) == 403


async def test_new_certificates_replace_connections_and_lose_no_call(proxied, held, published):
    loop = asyncio.get_running_loop()
    contexts = ClientContexts(proxied.issuer.files(ROUTER), HOST, clock=iter(range(10**9)).__next__)
    client = HostClient(HostLoadBalancer(loop.time), loop.time, contexts=contexts)
    try:
        former = await client.reach(held)
        assert client.connection(held) is former
        proxied.issuer.renew()
        await eventually(lambda: client.connection(held) not in {None, former})
        assert client.connection(held).context is contexts.current()
        await eventually(lambda: not former.open)
    finally:
        client.close()


@pytest.fixture(autouse=True)
def _umask():
    """The program makes its new files private; the processes of the tests keep their own umask."""
    former = os.umask(0o022)
    yield
    os.umask(former)


def test_a_proxy_without_a_certificate_says_which_setting_lacks(tmp_path, monkeypatch, capsys):
    for name in settings_of(Issuer(None, tmp_path, lasts_seconds=1, renewed_at=1).files(HOST)):
        monkeypatch.delenv(name, raising=False)
    assert ComponentSettings().certificate_files is None
    arguments = ["--region", "r", "--host", "127.0.0.1", "--port", "1", "--sockets", "s", "--state", "t"]
    assert host_proxy_process.main(arguments) != 0
    assert "IPNEXT_COMPONENT_CERTIFICATE_FILE" in capsys.readouterr().out


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Arguments of a proxy that has a certificate, and its files."""
    files = issuer_in(tmp_path / "c", (HOST, AGENT), CertificateAuthority.create()).files(HOST)
    for name, value in settings_of(files).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("became Envoy"))
    make_private_directory(tmp_path / "h")
    arguments = {"--region": REGION, "--host": "127.0.0.1", "--port": "1", "--state": str(tmp_path / "proxy")}
    return {**arguments, "--sockets": str(tmp_path / "h")}, files


def words(arguments):
    return [word for pair in arguments.items() for word in pair]


def test_a_proxy_whose_key_is_of_another_certificate_ends(given, capsys):
    arguments, files = given
    files.key.write_bytes((files.key.parent.parent / "agent-north" / "key.pem").read_bytes())
    assert host_proxy_process.main(words(arguments)) == InvalidInput("").exit_status
    assert str(files.key) in capsys.readouterr().out


def test_a_proxy_names_the_directory_that_it_may_not_use(given, capsys, tmp_path):
    arguments, _ = given
    (tmp_path / "link").symlink_to(tmp_path / "h")
    assert host_proxy_process.main(words({**arguments, "--sockets": str(tmp_path / "link")})) == 1
    assert str(tmp_path / "link") in capsys.readouterr().out


@pytest.mark.parametrize("proof", ["%ENVIRONMENT(HOME)%", "abc%", "a b", ""])
def test_a_proof_that_the_host_has_made_a_format_of_is_refused(given, capsys, proof):
    arguments, _ = given
    url = socket_url(Path(arguments["--sockets"]))
    keep_caller_proof(url, Component.AGENT, proof or "x")
    proof_file(Path(socket_path(url, Component.AGENT))).write_text(proof)
    status = host_proxy_process.main(words(arguments))
    assert status == InvalidInput("").exit_status
    assert "proof of agent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"), [("--host", "host-1"), ("--port", "0"), ("--port", "65536"), ("--port", "x")]
)
def test_a_proxy_refuses_what_is_no_address(capsys, name, value):
    given = {"--region": "r", "--host": "127.0.0.1", "--port": "1", "--sockets": "s", "--state": "t", name: value}
    with pytest.raises(SystemExit):
        host_proxy_process.main([word for pair in given.items() for word in pair])
    assert f"{name}: invalid" in capsys.readouterr().err


def prepared(monkeypatch, tmp_path, files, state):
    for name, value in settings_of(files).items():
        monkeypatch.setenv(name, value)
    given = {"--region": REGION, "--host": "127.0.0.1", "--port": "1", "--sockets": tmp_path / "h", "--state": state}
    words = [str(word) for pair in given.items() for word in pair]
    return host_proxy_process.prepare(host_proxy_process.read_arguments(words))


def test_a_proxy_with_the_certificate_of_another_component_is_refused(monkeypatch, tmp_path):
    files = issuer_in(tmp_path / "c", (AGENT,), CertificateAuthority.create()).files(AGENT)
    with pytest.raises(InvalidInput, match=f"names {AGENT.uri}; allowed: {HOST.uri}"):
        prepared(monkeypatch, tmp_path, files, tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_directory_of_others_stays_as_it_is_and_that_of_a_former_proxy_is_used_again(monkeypatch, tmp_path):
    files = issuer_in(tmp_path / "c", (HOST,), CertificateAuthority.create()).files(HOST)
    others = tmp_path / "others"
    others.mkdir()
    others.chmod(0o755)
    (others / "letter").touch()
    with pytest.raises(InvalidInput, match="has files of others"):
        prepared(monkeypatch, tmp_path, files, others)
    assert others.stat().st_mode & 0o777 == 0o755
    first = prepared(monkeypatch, tmp_path, files, tmp_path / "state")
    assert prepared(monkeypatch, tmp_path, files, tmp_path / "state") == first


def test_a_router_whose_certificate_is_missing_says_so_in_one_line(proxied, tmp_path):
    environment = {**os.environ, "IPNEXT_COMPONENT_CERTIFICATE_FILE": str(tmp_path / "none")}
    command = [
        sys.executable,
        "-m",
        "serving.router",
        "--port",
        "0",
        "--region",
        REGION,
        "--table",
        str(tmp_path / "t"),
    ]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "component_key_file" in ended.stderr
    assert "Traceback" not in ended.stderr
