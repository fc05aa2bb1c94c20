"""Connections of the API: clients without a credential that keep them don't lock the others out."""

import socket
import ssl
import time
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from ipnext.api.requests.stream import MOST_SUBSCRIBERS
from ipnext.api.server import limits_of
from ipnext.client import Client
from ipnext.errors import InvalidInput
from ipnext.model.access.rights import Role
from ipnext.model.fleet import FleetManifest
from ipnext.network.connections import ConnectionLimits, room_for_connections, source_of
from ipnext.settings import PlatformSettings
from tests.forked_programs import ForkServer
from tests.ipnext.api.test_process import environment
from tests.ipnext.conftest import open_rooms
from tests.ipnext.infra.envoy.test_public_listener import write_pair
from tests.waiting import PATIENCE_SECONDS, until

HALF = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
"""The beginning of a handshake of TLS."""
STRANGER = "127.0.0.2"
"""Another loopback address: another source than that of the client who shall be served."""
FILES = 300
API = "ipnext.api"
FORKS = ForkServer((API,))
"""Of the APIs: an interpreter of its own takes three seconds of processor time."""


@pytest.fixture(scope="module", autouse=True)
def _forked():
    """Ends the process that they are forks of."""
    yield
    FORKS.close()


@contextmanager
def api(directory, **settings):
    """An API process that may open FILES files, and its address."""
    env = environment(directory, **settings)
    scheme = "https" if "IPNEXT_API_TLS_KEY_FILE" in settings else "http"
    url = f"{scheme}://127.0.0.1:{env['IPNEXT_API_PORT']}"
    with (directory / "api.log").open("wb") as log:
        process = FORKS.spawn_in(API, (), env, log, files=FILES)
    try:

        def answers():
            assert process.poll() is None, (directory / "api.log").read_text()
            return is_served(url)

        until(answers)
        yield url
    finally:
        process.kill()
        process.wait()


def get(url, path):
    return httpx.get(url + path, verify=False, trust_env=False, timeout=PATIENCE_SECONDS)


def is_served(url):
    """Whether a client by a new connection is answered."""
    with suppress(httpx.TransportError):
        return get(url, "/healthz").status_code == 200


def tls_of(directory):
    """Settings with which the API speaks TLS."""
    certificate, key = write_pair(directory)
    return {"IPNEXT_API_TLS_CERTIFICATE_FILE": str(certificate), "IPNEXT_API_TLS_KEY_FILE": str(key)}


def connect(url, source=STRANGER):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), PATIENCE_SECONDS, source_address=(source, 0))


def take(stack, url, count, sent, source=STRANGER):
    """So many connections that send only this."""
    found = []
    for _ in range(count):
        client = stack.enter_context(connect(url, source))
        with suppress(OSError):  # it may be closed already
            client.sendall(sent)
        found.append(client)
    return found


def read_all(client):
    """What comes until the other side closes."""
    received = b""
    with suppress(ConnectionError):
        while data := client.recv(65536):
            received += data
    return received


@pytest.fixture(scope="module")
def usual_rooms(tmp_path_factory, migrated, room_settings):
    """What lies behind `usual`."""
    found = open_rooms(tmp_path_factory.mktemp("usual") / "rooms", migrated, room_settings)
    found.admin_key = found.add_key("admin", Role.ADMIN)
    yield found
    found.store.close()


@pytest.fixture(scope="module")
def usual(usual_rooms, platforms):
    """The address of an API with the usual limits."""
    with api(usual_rooms.directory) as url:
        yield url


@pytest.fixture
def stream_request(usual_rooms):
    """The bytes of a request for the stream of events, by the administrator."""
    head = f"GET /v1/events/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {usual_rooms.admin_key}\r\n\r\n"
    return head.encode()


@pytest.fixture(scope="module")
def patient(tmp_path_factory, platforms):
    """The same of one that waits long for headers."""
    with api(tmp_path_factory.mktemp("patient"), IPNEXT_API_HEADER_SECONDS="300") as url:
        yield url


@pytest.fixture(scope="module")
def patient_by_tls(tmp_path_factory, platforms):
    """The same by TLS."""
    directory = tmp_path_factory.mktemp("patient-by-tls")
    with api(directory, **tls_of(directory), IPNEXT_API_HEADER_SECONDS="300") as url:
        yield url


@pytest.mark.parametrize("sent", [HALF, b""], ids=["half a header", "nothing"])
def test_connections_without_a_request_lock_no_other_client_out(patient, sent):
    with ExitStack() as stack:
        held = take(stack, patient, 2 * FILES, sent)
        for _ in range(5):
            assert get(patient, "/readyz").json()["store"] == "ok"
        refused = read_all(held[-1])
        assert refused == b"" or refused.startswith(b"HTTP/1.1 503 "), refused


@pytest.mark.parametrize("sent", [HALF_A_HELLO, b""], ids=["half a hello", "nothing"])
def test_handshakes_that_do_not_end_lock_no_other_client_out(patient_by_tls, sent):
    with ExitStack() as stack:
        held = take(stack, patient_by_tls, 2 * FILES, sent)
        for _ in range(5):
            assert get(patient_by_tls, "/readyz").json()["store"] == "ok"
        assert read_all(held[-1]) == b""


@pytest.mark.usefixtures("platforms")
def test_handshakes_that_are_late_give_their_room_back(tmp_path):
    """Although there is room for no one else: every connection of the limit is half open."""
    limits = {"IPNEXT_API_CONNECTIONS": "20", "IPNEXT_API_CONNECTIONS_PER_SOURCE": "20"}
    with api(tmp_path, **tls_of(tmp_path), **limits, IPNEXT_API_HEADER_SECONDS="1") as url, ExitStack() as stack:
        held = take(stack, url, 40, HALF_A_HELLO)
        until(lambda: is_served(url))
        assert [read_all(client) for client in held] == [b""] * len(held)
        parts = urlsplit(url)
        client = stack.enter_context(connect(url))
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(client, server_hostname=parts.hostname) as secure:
            secure.sendall(HALF)
            assert secure.recv(4096).startswith(b"HTTP/1.1 408 "), "its headers are waited for after that"


@pytest.mark.usefixtures("platforms")
def test_a_client_of_the_same_address_is_served_once_the_headers_are_late(tmp_path):
    with api(tmp_path, IPNEXT_API_HEADER_SECONDS="1") as url, ExitStack() as stack:
        held = take(stack, url, 2 * FILES, HALF, source="127.0.0.1")
        until(lambda: is_served(url))
        answer = read_all(held[0])
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "TooSlow"' in answer


@pytest.mark.usefixtures("platforms")
def test_deadlines_of_headers_and_silence_close_no_stream_and_no_upload(tmp_path, rooms):
    settings = {"IPNEXT_API_HEADER_SECONDS": "5", "IPNEXT_API_KEEP_ALIVE_SECONDS": "5"}
    with (
        api(tmp_path, **settings) as url,
        Client(url, api_key=rooms.admin_key) as client,
        client._http.stream("GET", "/v1/events/stream") as stream,
    ):
        messages = stream.iter_lines()
        assert next(messages) == "event: changed"

        def slow():
            for _ in range(8):
                yield b"x"
                time.sleep(1)  # longer in all than the server's limits

        answer = client._http.put("/v1/artifacts/blobs/" + "0" * 64, content=slow())
        assert (answer.status_code, answer.json()["code"]) == (422, "ArtifactDigestMismatch"), answer.text
        client.put_fleet(FleetManifest.model_validate(rooms.fleet_document()))
        assert any(line == "event: changed" for line in messages), "the stream goes on"


def test_the_rest_of_a_body_that_is_refused_unread_counts_as_no_headers(usual):
    rest = 2**20
    with connect(usual) as client:
        head = f"PUT /v1/fleet HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {rest}\r\n\r\n"
        client.sendall(head.encode())
        received = b""
        while b'"code"' not in received:
            received += client.recv(65536)
        assert received.startswith(b"HTTP/1.1 401 ")
        client.sendall(b"x" * rest)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 200 " in read_all(client)


def test_headers_of_any_size_are_not_read_while_a_former_request_is_answered(usual, stream_request):
    with connect(usual) as client:
        client.sendall(stream_request)
        received = b""
        while b"event: changed" not in received:
            received += client.recv(65536)
        with suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(1024):
                client.sendall(b"a" * 65536)
            pytest.fail("64 MiB of one header were taken")
        assert is_served(usual)


@pytest.mark.parametrize("trailers", [b"A: " + b"a" * 2**16, b"A: a\r\n" * 2**14], ids=["one", "many"])
def test_trailers_of_any_size_are_not_read(usual, trailers):
    with connect(usual) as client:
        client.sendall(b"POST /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with suppress(ConnectionError):
            for _ in range(1024):
                client.sendall(trailers)
            pytest.fail("64 MiB of trailers were taken")
        assert is_served(usual)


def test_a_body_in_many_chunks_is_taken_whole(usual, usual_rooms):
    with connect(usual) as client:
        head = f"PUT /v1/fleet HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {usual_rooms.admin_key}\r\n"
        head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + b"1\r\n \r\n" * 100_000 + b"2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n")
        received = read_all(client)
    assert b"apiVersion: Field required" in received, "the body is the object"


def test_what_follows_a_request_for_another_protocol_is_no_request(usual):
    with connect(usual) as client:
        client.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
            b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        )
        with suppress(ConnectionError):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received = read_all(client)
    assert received.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in received


def test_a_stream_ends_with_its_connection_whatever_was_asked_after_it(usual, stream_request):
    for _ in range(MOST_SUBSCRIBERS):
        with connect(usual) as client:
            client.sendall(stream_request)
            received = b""
            while b"\r\n\r\n" not in received:
                received += client.recv(65536)
            if received.startswith(b"HTTP/1.1 429 "):
                break
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

    def is_streamed():
        with connect(usual) as client:
            client.sendall(stream_request)
            return client.recv(65536).startswith(b"HTTP/1.1 200 ")

    until(is_streamed, every_seconds=0.5)


@pytest.mark.usefixtures("platforms")
def test_an_idle_connection_is_closed(tmp_path):
    with api(tmp_path, IPNEXT_API_KEEP_ALIVE_SECONDS="1") as url, connect(url) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        received = read_all(client)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        (("10.0.0.7", 1), "10.0.0.7"),
        (("::ffff:10.0.0.7", 1, 0, 0), "10.0.0.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_source_is_an_address_or_an_ipv6_network(peer, source):
    assert source_of(peer) == source


def test_connections_leave_room_for_other_files(monkeypatch):
    names = {"field": "api_connections", "variable": "IPNEXT_API_CONNECTIONS"}
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    assert room_for_connections(None, **names) == 1024 - 256
    assert room_for_connections(5, **names) == 5
    with pytest.raises(InvalidInput, match=r"IPNEXT_API_CONNECTIONS.*1024 \(ulimit -n\); allowed: at most 768"):
        room_for_connections(769, **names)
    limits = limits_of(PlatformSettings())
    assert (limits.connections, limits.per_source) == (768, 384)
    monkeypatch.setattr("resource.getrlimit", lambda _: (1_048_576, 1_048_576))
    assert room_for_connections(None, **names) == ConnectionLimits().connections


@pytest.mark.parametrize(
    "line", [b"X: " + b"a" * 2**20, b"X: a\r\n" * 2**18], ids=["a line without an end", "lines without an end"]
)
def test_headers_of_any_size_are_not_read(usual, line):
    with connect(usual) as client:
        with suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + line)
        received = read_all(client)
        assert received.startswith(b"HTTP/1.1 413 ") or not received, received[
            :200
        ]  # the answer may be lost in what was sent after it
        assert is_served(usual)
