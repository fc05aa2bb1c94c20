"""How the client reads what an agent answers."""

import contextlib
import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ipnext import errors
from ipnext.infra import local_agents
from ipnext.infra.local_agents import LocalProcessInfrastructure
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def answering(listeners):
    """A server that gives one answer to everything; an infrastructure that speaks to it."""
    opened = []

    def answering(status, body, delay=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if delay:
                    delay.wait(PATIENCE_SECONDS)
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        agents, seconds = {"eu": f"http://127.0.0.1:{server.server_port}/"}, 0.3 if delay else 60.0
        infra = LocalProcessInfrastructure(agents, timeout_seconds=seconds)
        opened.append((server, thread, infra))
        return infra

    yield answering
    for server, thread, infra in opened:
        infra.close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", [errors.StaleWrite, errors.InvalidInput, errors.ArtifactMissing, errors.LoadFailed])
def test_an_error_comes_back_as_itself(answering, kind):
    body = f'{{"code": "{kind.code}", "message": "what was wrong"}}'.encode()
    with pytest.raises(kind, match="what was wrong") as caught:
        answering(kind.http_status, body).observe("eu")
    assert type(caught.value) is kind


@pytest.mark.parametrize(("status", "retryable"), [(500, False), (502, True), (503, True), (504, True), (404, False)])
def test_an_error_without_a_code_is_judged_by_its_status_and_names_the_region(answering, status, retryable):
    with pytest.raises(errors.IPnextError, match=f"region 'eu' answered {status}: oops") as caught:
        answering(status, b"oops").observe("eu")
    assert caught.value.retryable is retryable


def test_an_agent_that_does_not_answer_in_time_is_unavailable(answering):
    release = threading.Event()
    infra = answering(200, b"{}", delay=release)
    with pytest.raises(errors.Unavailable, match="region 'eu'"):
        infra.observe("eu")
    release.set()


@pytest.fixture
def saying(listeners):
    """An agent that was taken over: it sends these pieces, one after another, until they end or nobody reads on."""
    opened = []

    def saying(pieces, **settings):
        listener = socket.create_server(("127.0.0.1", 0))

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    for piece in pieces:
                        connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        infra = LocalProcessInfrastructure({"eu": f"http://127.0.0.1:{listener.getsockname()[1]}"}, **settings)
        opened.append((listener, thread, infra))
        return infra

    yield saying
    for listener, thread, infra in opened:
        infra.close()
        listener.close()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
MEBIBYTE = b"100000\r\n" + bytes(2**20) + b"\r\n"
CALLS = {
    "state": lambda infra: infra.observe("eu"),
    "applied": lambda infra: infra.read_applied("eu"),
    "access": lambda infra: infra.access_revision("eu"),
    "uses": lambda infra: infra.key_uses("eu"),
    "unroute": lambda infra: infra.unroute("ranker", "eu"),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_without_an_end_is_read_up_to_the_limit(saying, call, monkeypatch):
    monkeypatch.setattr(local_agents, "LARGEST_STATE_BYTES", 2**21)
    sent = []

    def endless():
        yield CHUNKED
        for _ in range(1000):
            sent.append(1)
            yield MEBIBYTE

    most = 2**20 if call == "unroute" else 2**21
    with pytest.raises(errors.RegionUnreachable, match=f"region 'eu'.* larger than {most} bytes"):
        CALLS[call](saying(endless()))
    assert len(sent) < 100


def test_an_error_without_an_end_is_read_up_to_the_limit(saying):
    head = CHUNKED.replace(b"200 OK", b"500 Oops")
    with pytest.raises(errors.RegionUnreachable, match="larger than 1048576 bytes"):
        saying([head, *[MEBIBYTE] * 3]).unroute("ranker", "eu")


def test_a_packed_answer_is_not_unpacked(saying):
    bomb = gzip.compress(bytes(2**24))
    head = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    with pytest.raises(errors.RegionUnreachable, match=r"region 'eu'.* packed \('gzip'\)"):
        saying([head, bomb]).observe("eu")


@pytest.mark.parametrize("of", ["headers", "body"])
def test_an_answer_that_comes_a_byte_at_a_time_ends_with_the_call(saying, of):
    """Each byte comes within the limit of one read."""
    stopped = threading.Event()

    def trickling():
        yield HEAD if of == "headers" else CHUNKED
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE_SECONDS and not stopped.wait(0.05):
            yield b"x" if of == "headers" else b"1\r\nx\r\n"
        stopped.set()

    infra = saying(trickling(), answer_seconds=0.5)
    try:
        with pytest.raises(errors.RegionUnreachable, match=r"region 'eu'.* whole within 0\.5 s"):
            infra.observe("eu")
        assert not stopped.is_set(), "the call ended, not the answer"
    finally:
        stopped.set()


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"revision": -1}', b'{"revision": "many"}', b'{"revision": 4611686018427387904}']
)
def test_an_invalid_answer_is_that_of_a_region_that_can_not_be_reached(answering, body):
    with pytest.raises(errors.RegionUnreachable, match=r"region 'eu'.* invalid value"):
        answering(200, body).access_revision("eu")
