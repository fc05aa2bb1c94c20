"""Every door of a running platform.

Each listener is known, each of its routes answers who the tables name, and nobody else. A listener or a route that is
in no table here fails, so that it gets an answer to who may use it.
"""

import json
import os
import re
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from ipnext.api.authorization.authentication import is_public
from ipnext.components.authorisation import RULES, callers_of
from ipnext.components.authority import CertificateAuthority
from ipnext.components.certificates import client_context
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.infra.agent.http_api import agent_app
from ipnext.login.credentials import read_key
from ipnext.model.access.rights import KeyRequest, Role
from serving.openai.routes import ROOTS
from tests.processes import command_line, unix_transport
from tests.waiting import until

pytestmark = pytest.mark.e2e

NOBODY = 65534
"""A user of the machine that is not the platform's."""

PROCESSES = {
    "ipnext.api": "api",
    "ipnext.dev.temporal_ui": "proxy of the UI",
    "ipnext.infra.agent": "agent",
    "ipnext.infra.supervisor_process": "supervisor",
    "ipnext.infra.process.fork_server_process": "fork server",
    "serving.router": "router",
    "serving.host": "host",
    "workflows.worker": "worker",
    "ipnext.cli": "ipnext dev",
    "envoy": "envoy",
    "temporal": "temporal",
}
"""Word of a command line -> kind of process, the first that is found."""

PORTS = {"api": 1, "proxy of the UI": 1, "agent": 1, "envoy": 2, "worker": 1}
"""Kind of process -> TCP ports of one. A gateway has one for clients and one for gateways of other regions; a worker
gives out Temporal's metrics."""

ASKS_NOBODY = "temporal"
"""A development server with any number of ports (docs/components.md), its UI where no page finds it."""

SOCKETS = {
    "router": {"agent.sock", "gateway.sock"},
    "host": {"agent.sock", "router.sock"},
    "envoy": {"admin.sock", "router.sock"},
    "supervisor": {"supervisor.sock"},
}


class Door(NamedTuple):
    """A Unix socket that a process listens on."""

    kind: str
    path: Path


def kind_of(process: psutil.Process) -> str:
    line = command_line(process)
    return next((kind for word, kind in PROCESSES.items() if word in line), line)


def ports_of(platform: Any) -> dict[str, list[tuple[int, ...]]]:
    """Kind of process -> the ports of each."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for process in platform.family():
        ports = {one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
        if kind_of(process) == ASKS_NOBODY:
            hidden = {address for address in ports if address.ip != "127.0.0.1"}
            assert len(hidden) == 1, "the UI alone is elsewhere"
            assert re.fullmatch(r"127\.(?!0\.)\d+\.\d+\.\d+", min(hidden).ip)
            ports -= hidden
        if ports:
            assert {address.ip for address in ports} == {"127.0.0.1"}, command_line(process)
            found.setdefault(kind_of(process), []).append(tuple(sorted(address.port for address in ports)))
    return found


def doors_of(platform: Any) -> list[Door]:
    """Every Unix socket with a path.

    The kernel gives accepted connections the path of their listener; some are bound by a short path.
    """
    found = set()
    directories = {path.name: path for path in platform.state.rglob("supervisor.sock")}
    for process in platform.family():
        for one in process.net_connections("unix"):
            path = Path(one.laddr)
            if not path.is_absolute():
                continue
            if path.name == "supervisor.sock":
                found |= {Door(kind_of(process), each) for each in platform.state.rglob(path.name)}
            else:
                found.add(Door(kind_of(process), path))
    assert directories
    return sorted(found)


def test_nothing_that_the_platform_writes_is_for_others_to_read(platform: Any) -> None:
    """Weights, logs, databases. What the fixture of these tests makes itself is left out."""
    written = [path for path in platform.state.rglob("*") if path != platform.log and not path.is_symlink()]
    assert len(written) > 20
    modes = {path: path.stat().st_mode for path in written if path.exists()}
    assert [f"{stat.filemode(mode)} {path}" for path, mode in modes.items() if mode & 0o077] == []


def test_every_listener_is_known_and_on_this_machine_alone(platform: Any) -> None:
    workers = len(platform.endpoints["worker_metrics"])
    until(lambda: len(ports_of(platform).get("worker", ())) == workers, why=lambda: ports_of(platform))
    ports = ports_of(platform)
    assert ports.pop(ASKS_NOBODY), "the development server of Temporal"
    assert {kind: {len(each) for each in found} for kind, found in ports.items()} == {k: {n} for k, n in PORTS.items()}
    regions = len(platform.endpoints["gateways"])
    assert {kind: len(found) for kind, found in ports.items()} == {
        "api": 1,
        "proxy of the UI": 1,
        "agent": regions,
        "envoy": regions,
        "worker": workers,
    }
    named: dict[str, set[str]] = {}
    for door in doors_of(platform):
        named.setdefault(door.kind, set()).add(door.path.name)
    assert named == SOCKETS


def test_every_socket_is_of_the_platforms_user_alone(platform: Any) -> None:
    for door in doors_of(platform):
        found = door.path.stat()
        assert (stat.S_ISSOCK(found.st_mode), stat.S_IMODE(found.st_mode) & 0o077) == (True, 0), door
        assert found.st_uid == os.geteuid()


CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
link = socket.socket(socket.AF_UNIX)
link.settimeout(20)
try:
    link.connect(f"/proc/self/fd/{sys.argv[1]}/{sys.argv[2]}")
    if sys.argv[2] != "supervisor.sock":  # which ends what is none of its messages
        link.sendall(b"GET /healthz HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n\\r\\n")
    print(link.recv(64).decode() or "nothing")
except OSError as error:
    print(type(error).__name__)
"""


def connect(door: Door, user: int) -> str:
    """What a user of the machine gets at a socket: the name of an error, or how an answer begins.

    The way to its directory is open.
    """
    directory = os.open(door.path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        command = [sys.executable, "-I", "-c", CONNECT, str(directory), door.path.name, str(user)]
        done = subprocess.run(command, pass_fds=[directory], capture_output=True, text=True, check=True)
    finally:
        os.close(directory)
    return done.stdout.strip()


@pytest.fixture
def others() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")


def test_another_user_of_the_machine_reaches_no_socket(platform: Any, others: None) -> None:
    for door in doors_of(platform):
        assert connect(door, NOBODY) == "PermissionError", door


def test_a_process_answers_no_other_user_even_if_its_socket_is_open(platform: Any, others: None) -> None:
    for door in doors_of(platform):
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (door.path.parent, door.path)}
        try:
            for path in modes:
                path.chmod(0o777)
            answer = connect(door, NOBODY)
            refused = {"nothing", "ConnectionResetError", "BrokenPipeError"}
            assert answer in refused or answer.startswith("HTTP/1.1 403"), (door, answer)
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
    assert platform.ask("us-east").status_code == 200


STEPS = sorted({rule.steps[0] for rule in RULES} | set(ROOTS) | {"", "nothing", "admin", "debug", "docs"})
"""First steps of paths that any inner listener knows, and of some that none does."""


@pytest.mark.parametrize("kind", ["router", "host"])
def test_a_socket_answers_its_caller_on_the_routes_of_the_table_only(platform: Any, kind: str) -> None:
    listener = Component(kind)
    for door in doors_of(platform):
        if door.kind != kind:
            continue
        caller = Component(door.path.stem)
        with httpx.Client(transport=unix_transport(str(door.path)), timeout=60) as client:
            for step in STEPS:
                for path in (f"/{step}", f"/{step}/none/at-all"):
                    allowed = caller in callers_of(listener, path)
                    answer = client.get(f"http://localhost{path}")
                    assert (answer.status_code != 403) is allowed, (door, path, answer.text[:200])
                    assert allowed or "may not call" in answer.text, (door, path, answer.text[:200])


@pytest.fixture(scope="module")
def issued(platform: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Contexts of TLS by which a client is any component, by the platform's authority or by another one."""
    ours = CertificateAuthority.keep(platform.state / "certificates" / "authority")

    def context(
        identity: ComponentIdentity, *, authority: CertificateAuthority | None = None, seconds: float = 3600
    ) -> ssl.SSLContext:
        issuer = Issuer(authority or ours, tmp_path_factory.mktemp("issued"), lasts_seconds=seconds, renewed_at=0.5)
        issuer.issue([identity])
        files = issuer.files(identity)
        files.authorities.write_bytes(ours.certificate)
        return client_context(files, lambda _: True)

    return context


COMPONENTS = [
    ComponentIdentity("ipnext.local", Component.CONTROL_PLANE),
    *(
        ComponentIdentity("ipnext.local", component, "us-east")
        for component in Component
        if component is not Component.CONTROL_PLANE
    ),
]


def agent_routes() -> list[tuple[str, str]]:
    """(method, path) of everything that an agent answers, and of what it does not."""
    found = [(route.method, route.resource.canonical) for route in agent_app(None, region_name="x").router.routes()]  # type: ignore[arg-type,union-attr]
    names = {"{model}": "none", "{part}": "none", "{hardware}": "none"}
    for name, value in names.items():
        found = [(method, path.replace(name, value)) for method, path in found]
    return [*found, ("GET", "/"), ("GET", "/nothing"), ("GET", "/control/state"), ("GET", "/metrics")]


def test_an_agent_answers_the_components_of_the_table_only(platform: Any, issued: Any) -> None:
    for ports in ports_of(platform)["agent"]:
        for identity in COMPONENTS:
            with httpx.Client(verify=issued(identity), trust_env=False, timeout=60) as client:
                for method, path in agent_routes():
                    allowed = identity.component in callers_of(Component.AGENT, path)
                    if allowed and method not in {"GET", "HEAD"}:
                        continue
                    answer = client.request(method, f"https://127.0.0.1:{ports[0]}{path}", json={})
                    assert (answer.status_code != 403) is allowed, (identity, method, path, answer.text[:200])


def test_who_proves_itself_by_no_good_certificate_reaches_no_agent_and_no_gateway_of_gateways(
    platform: Any, issued: Any
) -> None:
    plain = ssl.create_default_context()
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    plane = COMPONENTS[0]
    refused = {
        "no certificate": plain,
        "forged": issued(plane, authority=CertificateAuthority.create()),
        "expired": issued(plane, seconds=-30),
        "another trust domain": issued(ComponentIdentity("other.example", Component.CONTROL_PLANE)),
    }
    found = ports_of(platform)
    gateways = {httpx.URL(url).port for url in platform.endpoints["gateways"].values()}
    doors = [port for ports in found["agent"] for port in ports]
    doors += [port for ports in found["envoy"] for port in ports if port not in gateways]
    assert len(doors) == 2 * len(gateways)
    for port in doors:
        for context in refused.values():
            with (
                httpx.Client(verify=context, trust_env=False, timeout=60) as client,
                pytest.raises(httpx.TransportError),
            ):
                client.get(f"https://127.0.0.1:{port}/healthz")
            with httpx.Client(trust_env=False, timeout=60) as client, pytest.raises(httpx.TransportError):
                client.get(f"http://127.0.0.1:{port}/healthz")
    for port in (port for ports in found["envoy"] for port in ports if port not in gateways):
        for identity in COMPONENTS:
            with httpx.Client(verify=issued(identity), trust_env=False, timeout=60) as client:
                if identity.component is Component.GATEWAY:
                    assert client.get(f"https://127.0.0.1:{port}/v2/health/live").status_code < 500
                else:
                    with pytest.raises(httpx.TransportError):
                        client.get(f"https://127.0.0.1:{port}/v2/health/live")


def test_a_gateway_gives_out_no_inner_route(platform: Any) -> None:
    inner = {rule.steps[0] for rule in RULES} - {"v2", "healthz", *ROOTS}
    for url in platform.endpoints["gateways"].values():
        for step in sorted(inner | {"", "nothing", "config_dump", "clusters", "quitquitquit"}):
            for path in (f"/{step}", f"/{step}/state", f"/v2/../{step}", f"//{step}", f"/v2/%2e%2e/{step}"):
                for method in ("GET", "POST"):
                    answer = httpx.request(method, url + path, trust_env=False, timeout=60)
                    assert answer.status_code in {400, 404, 405}, (
                        url,
                        method,
                        path,
                        answer.status_code,
                        answer.text[:200],
                    )


def test_the_metrics_of_a_worker_name_no_model_and_it_answers_nothing_else(platform: Any) -> None:
    for (port,) in ports_of(platform)["worker"]:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            metrics = client.get("/metrics")
            assert metrics.status_code == 200
            assert not re.search(r"\bpair\b", metrics.text)
            for method, path in (("GET", "/"), ("GET", "/debug"), ("POST", "/metrics"), ("DELETE", "/metrics")):
                answer = client.request(method, path)
                assert "temporal_" not in answer.text or (method, path) == ("POST", "/metrics"), (method, path)


NOTHING_PROVED = {
    "nobody": None,
    "forged": "ipnext_aaaaaaaaaaaaaaaa." + "A" * 43,
    "alg none": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
    "a token of no provider": "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJhIn0.AAAA",
}


@pytest.fixture
def proved(platform: Any) -> Iterator[Mapping[str, str | None]]:
    """Credentials that prove nobody: also a key that was revoked, and one that has expired."""
    revoked = platform.client.create_key(KeyRequest(name="doors-revoked", role=Role.ADMIN))
    expired = platform.client.create_key(KeyRequest(name="doors-expired", role=Role.ADMIN, expires_in_seconds=1))
    platform.client.revoke_key(revoked.id)
    url = f"{platform.endpoints['api']}/v1/models"
    for key in (revoked.key, expired.key):
        until(lambda key=key: status_of(url, key) == 401)  # type: ignore[misc]
    return {**NOTHING_PROVED, "revoked": revoked.key, "expired": expired.key}


def status_of(url: str, key: str | None, method: str = "GET") -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.request(method, url, headers=headers, json={}, trust_env=False, timeout=60).status_code


def api_routes(platform: Any) -> list[tuple[str, str]]:
    """(method, path) of every endpoint; the parameters name what there is where anything is there."""
    api = platform.endpoints["api"]
    schema = httpx.get(f"{api}/openapi.json", trust_env=False, timeout=60).json()
    values = {"name": "pair", "region": "us-east", "part": "first", "generation": "1", "number": "1", "owner": "tests"}
    found = []
    for path, operations in schema["paths"].items():
        steps = [values.get(step.strip("{}"), "a" * 16) if step.startswith("{") else step for step in path.split("/")]
        found += [(method.upper(), path, "/".join(steps)) for method in operations]
    return [(method, filled) for method, path, filled in found]


def test_the_api_answers_nobody_who_proves_nothing(platform: Any, proved: Mapping[str, str | None]) -> None:
    api = platform.endpoints["api"]
    with httpx.Client(base_url=api, trust_env=False, timeout=60) as client:
        for name, key in proved.items():
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            for method, path in [*api_routes(platform), ("GET", "/nothing"), ("GET", "/v1")]:
                if not is_public(path):
                    answer = client.request(method, path, json={}, headers=headers)
                    assert answer.status_code == 401, (name, method, path, answer.text[:200])


def test_temporal_s_ui_answers_administrators_alone(platform: Any, proved: Mapping[str, str | None]) -> None:
    url = platform.endpoints["temporal_ui"]
    operator = platform.client.create_key(KeyRequest(name="doors-operator", role=Role.OPERATOR)).key
    admin = read_key(platform.state / "admin-key")
    for path in ("/", "/namespaces/default/workflows", "/api/v1/namespaces", "/api/v1/settings"):
        for name, key in proved.items():
            assert status_of(url + path, key) == 401, (name, path)
        assert status_of(url + path, operator) == 403
        for host in ("evil.example", "evil.example:8233"):
            headers = {"authorization": f"Bearer {admin}", "host": host}
            assert httpx.get(url + path, headers=headers, trust_env=False, timeout=60).status_code == 421
    assert status_of(f"{url}/api/v1/namespaces", admin) == 200


def test_the_api_answers_a_caller_and_another_owner_nothing_of_a_model(platform: Any) -> None:
    """What each role may do is in tests/ipnext/api/authorization/test_access.py; here is that the running API asks."""
    keys = [
        platform.client.create_key(KeyRequest(name=f"doors-{role.value}-{owner}", role=role, owner=owner))
        for role, owner in ((Role.CALLER, "tests"), (Role.ADMIN, "others"))
    ]
    with httpx.Client(base_url=platform.endpoints["api"], trust_env=False, timeout=60) as client:
        for key in keys:
            for method, path in api_routes(platform):
                about_it = "/pair" in path or "/changes/" in path or path == "/v1/owners/tests"
                if about_it:
                    headers = {"authorization": f"Bearer {key.key}"}
                    answer = client.request(method, path, json={}, headers=headers)
                    allowed = {403, 404} | ({400} if (method, path) == ("PUT", "/v1/models/pair") else set())
                    assert answer.status_code in allowed, (key.name, method, path, answer.text[:200])
            platform.client.revoke_key(key.id)
    assert json.loads(platform.ask("us-east").text)["model_name"] == "pair"
