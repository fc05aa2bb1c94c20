"""Connections of the control plane to agents: no longer used than their certificates are valid."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpcore
import pytest

from ipnext.components import bounded_http
from ipnext.components.bounded_http import CONNECTION_SECONDS, BoundedClient, _DeadlineStream
from ipnext.components.certificates import is_past
from ipnext.platform.access.key_uses import ASK_SECONDS
from ipnext.platform.access.lists import CHECK_SECONDS


@pytest.mark.parametrize(("now", "past"), [(99.9, False), (100.0, True), (200.0, True)])
def test_a_certificate_is_past_from_its_end_on(now, past):
    assert is_past(SimpleNamespace(peer_until=100.0), now) is past


def test_a_connection_without_a_certificate_has_no_end():
    assert not is_past(None, 1e12)


class Stream:
    """An open connection with a component, whose certificate is valid until then."""

    def __init__(self, until):
        self.link = SimpleNamespace(peer_until=until)

    def get_extra_info(self, info):
        return self.link if info == "ssl_object" else False


@pytest.mark.parametrize(
    ("seconds", "until", "closed"),
    [(1.0, 2000.0, False), (1.0, 1000.5, True), (CONNECTION_SECONDS + 1, 2000.0, True)],
    ids=["young and valid", "expired", "old"],
)
def test_a_connection_that_is_old_or_expired_is_used_no_more(monkeypatch, seconds, until, closed):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(bounded_http, "time", SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now))
    stream = _DeadlineStream(Stream(until))
    clock.now += seconds
    assert stream.get_extra_info("is_readable") is closed


@pytest.fixture
def server(listeners):
    """A server that keeps connections open; the ports of those that called it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            callers.append(self.client_address[1])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    callers = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/", callers=callers)
        server.shutdown()
        thread.join()


def test_checks_of_an_agent_at_their_intervals_share_a_connection(server, monkeypatch):
    """A connection of its own takes a handshake, which takes more than the check."""
    later, clock = SimpleNamespace(seconds=0.0), time.monotonic
    monkeypatch.setattr(httpcore._sync.http11, "time", SimpleNamespace(monotonic=lambda: clock() + later.seconds))
    client = BoundedClient()
    try:
        for pause in (0.0, CHECK_SECONDS + 1, ASK_SECONDS + 1):
            later.seconds += pause
            client.call("GET", server.url, most_bytes=10, seconds=60.0, connect_seconds=60.0)
    finally:
        client.close()
    assert len(server.callers) == 3
    assert len(set(server.callers)) == 1
