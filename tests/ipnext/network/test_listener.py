"""Connections count as they are accepted, those in a handshake of TLS too; on both event loops that serve."""

import asyncio
import contextlib
import socket
import ssl

import pytest
import uvloop

from ipnext.errors import Conflict, InvalidInput
from ipnext.network.bounded_server import server_context
from ipnext.network.connections import ConnectionLimits, ServerConnections
from ipnext.network.listener import BoundedListener, bound_sockets
from tests.ipnext.infra.envoy.test_public_listener import write_pair
from tests.waiting import PATIENCE_SECONDS, eventually

pytestmark = pytest.mark.usefixtures("listeners")

HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
STRANGER = "127.0.0.2"
OPENED = []
"""Clients of the test that runs."""


class Answering(asyncio.Protocol):
    """Answers once a request is whole."""

    def __init__(self):
        self.given, self.transport = b"", None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.given += data
        if self.given.endswith(b"\r\n\r\n"):
            self.given = b""
            self.transport.write(ANSWER)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine function to its end, within the patience of tests."""

    def run(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(main(), PATIENCE_SECONDS))

    return run


@pytest.fixture
def tls(tmp_path):
    """Both ends of TLS."""
    certificate, key = write_pair(tmp_path)
    client = ssl.create_default_context(cafile=str(certificate))
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server_context(certificate, key, field="f", variable="F"), client


@contextlib.asynccontextmanager
async def listening(context=None, **limits):
    """A listener, its connections and its port."""
    [bound] = bound_sockets("127.0.0.1", 0)
    connections = ServerConnections(ConnectionLimits(**limits))
    listener = BoundedListener(bound, connections, Answering, lambda _: False, context=lambda: context)
    port = bound.getsockname()[1]
    listener.start()
    try:
        yield connections, port
    finally:
        listener.close()
        await listener.wait_closed()
        while OPENED:
            await leave(OPENED.pop())


async def connect(port, source=STRANGER, **given):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), **given)
    OPENED.append(writer)
    return reader, writer


async def leave(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def half_open(port, source=STRANGER):
    reader, writer = await connect(port, source)
    writer.write(HALF_A_HELLO)
    return reader, writer


async def ends(reader):
    """Wait until the other side has closed; what came until then."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


async def answer(port, context, source="127.0.0.1"):
    reader, writer = await connect(port, source, ssl=context)
    writer.write(REQUEST)
    found = await reader.readexactly(len(ANSWER))
    await leave(writer)
    return found


async def count(connections, wanted):
    await eventually(lambda: len(connections) == wanted, why=lambda: len(connections))


def test_half_open_handshakes_of_one_source_leave_room_for_others(run, tls):
    async def main():
        server, client = tls
        async with listening(server, connections=4, per_source=2, header_seconds=300) as (connections, port):
            held = [await half_open(port) for _ in range(8)]
            done, _ = await asyncio.wait([asyncio.ensure_future(ends(reader)) for reader, _ in held[2:]])
            assert {each.result() for each in done} == {b""}
            assert len(connections) == 2
            assert await answer(port, client) == ANSWER

    run(main)


def test_half_open_handshakes_count_among_all(run, tls):
    async def main():
        server, client = tls
        async with listening(server, connections=2, header_seconds=300) as (connections, port):
            held = [await half_open(port, f"127.0.0.{number}") for number in (2, 3)]
            await count(connections, 2)
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await answer(port, client)
            held[0][1].close()
            await count(connections, 1)
            assert await answer(port, client) == ANSWER

    run(main)


@pytest.mark.parametrize("sent", [b"", HALF_A_HELLO], ids=["nothing", "half a hello"])
def test_a_handshake_that_is_late_is_ended_and_counts_no_longer(run, tls, sent):
    async def main():
        server, client = tls
        async with listening(server, per_source=1, header_seconds=0.2) as (connections, port):
            reader, writer = await connect(port)
            writer.write(sent)
            await ends(reader)
            await count(connections, 0)
            assert await answer(port, client, STRANGER) == ANSWER

    run(main)


def test_who_speaks_no_tls_counts_no_longer(run, tls):
    async def main():
        async with listening(tls[0]) as (connections, port):
            reader, writer = await connect(port)
            writer.write(REQUEST)
            await ends(reader)
            await count(connections, 0)

    run(main)


def test_who_has_shaken_hands_counts_until_it_goes(run, tls):
    async def main():
        server, client = tls
        async with listening(server) as (connections, port):
            _, writer = await connect(port, ssl=client)
            await count(connections, 1)
            writer.close()
            await count(connections, 0)

    run(main)


def test_one_too_many_in_clear_text_is_told_so(run):
    async def main():
        async with listening(per_source=1) as (_, port):
            first = await connect(port)
            reader, _ = await connect(port)
            found = await ends(reader)
            assert found.startswith(b"HTTP/1.1 503 ")
            assert b"1 connections of 127.0.0.2 are open" in found
            first[1].write(REQUEST)
            assert await first[0].readexactly(len(ANSWER)) == ANSWER

    run(main)


def test_the_end_of_a_listener_ends_handshakes_and_gives_the_port_back(run, tls):
    async def main():
        async with listening(tls[0], header_seconds=300) as (connections, port):
            reader, _ = await half_open(port)
            await count(connections, 1)
        await ends(reader)
        assert len(connections) == 0
        [again] = bound_sockets("127.0.0.1", port)
        again.close()

    run(main)


def test_accepting_goes_on_after_the_system_gave_no_connection(run, monkeypatch):
    monkeypatch.setattr("ipnext.network.listener.PAUSE_SECONDS", 0.01)

    async def main():
        loop, faults = asyncio.get_running_loop(), [OSError(24, "Too many open files"), ConnectionAbortedError()]
        real = loop.sock_accept

        async def sock_accept(one):
            if faults:
                raise faults.pop(0)
            return await real(one)

        with pytest.MonkeyPatch.context() as patch:
            listening_loop = Loop(loop, sock_accept)
            patch.setattr("ipnext.network.listener.asyncio.get_running_loop", lambda: listening_loop)
            async with listening() as (_, port):
                reader, writer = await connect(port)
                writer.write(REQUEST)
                assert await reader.readexactly(len(ANSWER)) == ANSWER
        assert faults == []

    run(main)


class Loop:
    """An event loop with another `sock_accept`."""

    def __init__(self, loop, sock_accept):
        self._loop, self.sock_accept = loop, sock_accept

    def __getattr__(self, name):
        return getattr(self._loop, name)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            bound_sockets("127.0.0.1", port)


def test_a_certificate_that_is_none_is_named(tmp_path):
    certificate, _ = write_pair(tmp_path)
    with pytest.raises(InvalidInput, match=r"api_tls_certificate_file \(IPNEXT_API_TLS_CERTIFICATE_FILE\)"):
        server_context(
            certificate, certificate, field="api_tls_certificate_file", variable="IPNEXT_API_TLS_CERTIFICATE_FILE"
        )


def test_a_listener_that_ends_before_it_began_gives_the_port_back(run):
    async def main():
        [bound] = bound_sockets("127.0.0.1", 0)
        port = bound.getsockname()[1]
        listener = BoundedListener(bound, ServerConnections(ConnectionLimits()), Answering, lambda _: False)
        listener.start()
        listener.close()
        await listener.wait_closed()
        [again] = bound_sockets("127.0.0.1", port)
        again.close()

    run(main)
