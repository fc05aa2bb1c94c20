"""Connections to engines are reused only while nothing of the last exchange is left on them."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from serving.openai.engines import connection
from serving.openai.engines.connection import EngineConnectionPool
from serving.openai.engines.response import EngineLost
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("listeners")

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REFUSAL = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno"
BODY = bytes(2**24)


class Peer:
    """A server whose `script` has each connection; `open` counts those that have not ended, `begun` all."""

    def __init__(self, script):
        self.script = script
        self.open = self.begun = 0
        self.pool = None

    async def connected(self, reader, writer):
        self.open += 1
        self.begun += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self.script(reader, writer)
        writer.transport.abort()
        self.open -= 1

    async def ask(self, body=b""):
        answer = await self.pool.ask("POST", "/x", {}, body)
        return answer.status, await answer.rest()


@asynccontextmanager
async def peer(script):
    made = Peer(script)
    tasks = set()

    async def connected(reader, writer):
        tasks.add(asyncio.current_task())
        await made.connected(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    made.pool = EngineConnectionPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield made
    finally:
        made.pool.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(early, *, then=None):
    """A script that reads no body: it answers `early` to each head, and `then` once `going` is set."""

    async def script(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(early)
            if then is not None:
                await going.wait()
                writer.write(then)

    going = script.going = asyncio.Event()
    return script


async def deaf(reader, writer):
    """Refuse each request unread, and never read its body."""
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()
    writer.write(REFUSAL)
    await asyncio.Event().wait()


async def test_a_connection_with_bytes_left_to_send_is_not_reused():
    async with peer(deaf) as engine:
        for number in (1, 2, 3):
            assert await engine.ask(BODY) == (413, b"no")
            assert (engine.begun, len(engine.pool._idle)) == (number, 0)


async def test_a_request_cannot_be_served_before_it_is_read():
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        await asyncio.Event().wait()

    async with peer(script) as engine:
        with pytest.raises(EngineLost):
            await engine.ask(BODY)
        assert not engine.pool.busy


async def test_a_connection_whose_request_was_read_is_reused(monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 3600.0)
    async with peer(answering(GOOD)) as engine:
        for _ in range(3):
            assert await engine.ask() == (200, b"ok")
        assert engine.begun == 1


async def test_a_connection_that_nothing_reuses_is_closed(monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.01)
    async with peer(answering(GOOD)) as engine:
        for _ in range(2):
            assert await engine.ask() == (200, b"ok")
            await eventually(lambda: not engine.open)
            assert not engine.pool._idle
        assert engine.begun == 2


async def test_bytes_for_which_nothing_asked_end_the_connection(monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 3600.0)
    script = answering(GOOD, then=GOOD)
    async with peer(script) as engine:
        assert await engine.ask() == (200, b"ok")
        assert engine.open == 1
        script.going.set()
        await eventually(lambda: not engine.open)


@pytest.mark.parametrize("more", [GOOD, GOOD[:20], REFUSAL[:-2]])
async def test_a_second_answer_to_one_request_is_none_to_the_next(more):
    async with peer(answering(GOOD + more)) as engine:
        for _ in range(3):
            assert await engine.ask() == (200, b"ok")
        assert engine.begun == 3
