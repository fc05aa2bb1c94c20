"""What one client, or many, may ask of a gateway: real agent, real Envoy."""

import json
import socket
import ssl
from contextlib import ExitStack, suppress

import httpx
import pytest

from ipnext.components.settings import ComponentSettings
from ipnext.dev.certificates import DevCertificates
from ipnext.settings import DevSettings
from tests.ipnext.api.requests.test_connections import HALF_A_HELLO, read_all
from tests.ipnext.infra.envoy.test_public_listener import write_pair
from tests.waiting import PATIENCE_SECONDS, until

CONNECTIONS = 6
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a client of HTTP/2 sends first: its preface, and empty settings."""
LIMITS = {
    "IPNEXT_AGENT_GATEWAY_HEADER_SECONDS": "0.5",
    "IPNEXT_AGENT_GATEWAY_CONNECTIONS": str(CONNECTIONS),
    "IPNEXT_AGENT_GATEWAY_CONNECTIONS_PER_SOURCE": str(CONNECTIONS),
}
KEEP_ALIVE_SECONDS = 0.5
OF_ONE_SOURCE = 4
QUIET = {
    "IPNEXT_AGENT_GATEWAY_HEADER_SECONDS": str(2 * PATIENCE_SECONDS),
    "IPNEXT_AGENT_GATEWAY_KEEP_ALIVE_SECONDS": str(KEEP_ALIVE_SECONDS),
    "IPNEXT_AGENT_GATEWAY_CONNECTIONS_PER_SOURCE": str(OF_ONE_SOURCE),
}
ENVOY_CLOSES_SECONDS = 6
"""After which Envoy has closed a connection whose time is over, if it ever had a request: it drains it first."""
SOME_SOURCES = tuple(f"127.0.0.{n}" for n in range(2, 12))
"""That all of these share the group of 127.0.0.1 happens once in 32 ** 10 times."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, running_agent):
    """Its port."""
    agent = running_agent("eu", tmp_path_factory.mktemp("limits"), environment=LIMITS)
    try:
        yield httpx.URL(agent.start().gateway).port
    finally:
        agent.close()


@pytest.fixture(scope="module")
def quiet_agent(tmp_path_factory, running_agent):
    """Its gateway waits for requests for half a second, and takes few connections of one source."""
    agent = running_agent("eu", tmp_path_factory.mktemp("quiet"), environment=QUIET)
    try:
        yield agent.start()
    finally:
        agent.close()


@pytest.fixture
def quiet(quiet_agent):
    """The port of its gateway."""
    return httpx.URL(quiet_agent.gateway).port


def connect(port, source="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS, source_address=(source, 0))


def answered(port, source="127.0.0.1"):
    """The status of a request by a new connection; 0 where it is turned away."""
    with suppress(OSError), connect(port, source) as one:
        one.sendall(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        return int((one.recv(4096).split() or [b"", b"0"])[1])
    return 0


def test_headers_that_do_not_come_whole_are_408_and_the_connection_ends(gateway):
    with connect(gateway) as one:
        one.sendall(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        assert one.recv(4096).startswith(b"HTTP/1.1 408 ")
        while one.recv(4096):
            pass


def test_a_handshake_that_does_not_end_is_ended(tmp_path, running_agent):
    """Of clients, and of who says that it is another gateway."""
    certificate, key = write_pair(tmp_path)
    files = {"CERTIFICATE": certificate, "KEY": key}
    tls = {f"IPNEXT_AGENT_GATEWAY_TLS_{name}_FILE": str(file) for name, file in files.items()}
    certificates = DevCertificates(tmp_path / "certificates", ("eu",), ComponentSettings(), DevSettings())
    agent = running_agent("eu", tmp_path, environment=LIMITS | tls, certificates=certificates)
    agent.client = httpx.Client(trust_env=False, timeout=60, verify=False)
    try:
        agent.start()
        for url in (agent.gateway, agent.peer_url):
            assert url.startswith("https://")
            with connect(httpx.URL(url).port) as one:
                one.sendall(HALF_A_HELLO)
                assert read_all(one) == b""
    finally:
        agent.close()


def test_http2_is_not_spoken(gateway):
    """One connection would carry any number of requests, and connections are what is limited."""
    with connect(gateway) as one:
        one.sendall(HTTP2)
        assert not one.recv(4096).startswith(b"\x00"), "a frame of HTTP/2"


def test_http2_is_not_spoken_with_tls(tmp_path, running_agent):
    certificate, key = write_pair(tmp_path)
    files = {"CERTIFICATE": certificate, "KEY": key}
    tls = {f"IPNEXT_AGENT_GATEWAY_TLS_{name}_FILE": str(file) for name, file in files.items()}
    agent = running_agent("eu", tmp_path, environment=tls)
    agent.client = httpx.Client(trust_env=False, timeout=60, verify=False)
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        agent.start()
        with connect(httpx.URL(agent.gateway).port) as one, context.wrap_socket(one) as secured:
            assert secured.selected_alpn_protocol() is None
            secured.sendall(HTTP2)
            assert not secured.recv(4096).startswith(b"\x00"), "a frame of HTTP/2"
    finally:
        agent.close()


def test_connections_beyond_the_limit_are_turned_away_and_others_go_on(gateway):
    until(lambda: answered(gateway) == 404, why=lambda: "the gateway answers")
    with ExitStack() as stack:
        first = stack.enter_context(connect(gateway))
        for _ in range(4 * CONNECTIONS):
            stack.enter_context(connect(gateway))
        until(lambda: answered(gateway) == 0, why=lambda: "one more is turned away")
        first.sendall(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert first.recv(4096).startswith(b"HTTP/1.1 404 ")
    until(lambda: answered(gateway) == 404, why=lambda: "there is room again")


def test_a_connection_that_never_asks_is_ended(quiet):
    with connect(quiet) as one:
        assert one.recv(4096) == b""


def test_a_connection_is_kept_between_requests_and_ended_some_time_after_the_last(quiet):
    with connect(quiet) as one:
        for _ in range(2):
            one.sendall(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 404 ")
        while one.recv(4096):
            pass


def test_a_request_under_way_is_not_ended_however_long_nothing_comes(quiet_agent, builder, tmp_path):
    """Long generations are like this: the time of a connection counts only while it has no request."""
    quiet_agent.serve(builder("slow"), {1: (1,)}, {1: 1.0})
    answers = tmp_path / "answers"
    body = json.dumps({"until": str(answers)}).encode()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    with connect(httpx.URL(quiet_agent.gateway).port) as one:
        one.sendall(head.encode() + body)
        one.settimeout(KEEP_ALIVE_SECONDS + ENVOY_CLOSES_SECONDS + 1)
        with pytest.raises(TimeoutError):
            one.recv(4096)
        answers.touch()
        one.settimeout(PATIENCE_SECONDS)
        assert one.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_one_source_takes_its_share_and_others_are_answered(quiet):
    until(lambda: answered(quiet) == 404, why=lambda: "the gateway answers")
    with ExitStack() as stack:
        for _ in range(OF_ONE_SOURCE):
            one = stack.enter_context(connect(quiet))
            one.sendall(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        until(lambda: answered(quiet) == 0, why=lambda: "one more of this source is turned away")
        assert 404 in {answered(quiet, source) for source in SOME_SOURCES}
    until(lambda: answered(quiet) == 404, why=lambda: "there is room again")
