"""The phases of a connection of the agent: a body that comes in pieces is never taken for headers."""

import asyncio

import pytest
from aiohttp import web

from ipnext.infra.agent.listener import _phase_of
from ipnext.network.connections import LARGEST_HEAD_BYTES, BoundedConnection, ConnectionLimits, Phase, ServerConnections

BODY = b"x" * (2 * LARGEST_HEAD_BYTES)
HEAD = b"PUT /access HTTP/1.1\r\nHost: agent\r\nContent-Length: %d\r\n\r\n" % len(BODY)
LIMITS = ConnectionLimits(connections=4, per_source=4, header_seconds=300, keep_alive_seconds=300)


class Transport(asyncio.Transport):
    """Takes what is written."""

    def __init__(self):
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data):
        self.written += bytes(data)

    def writelines(self, pieces):
        self.written += b"".join(map(bytes, pieces))

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        """See `asyncio.Transport`."""

    def resume_reading(self):
        """See `asyncio.Transport`."""


@pytest.fixture
async def connection():
    """A connection of an aiohttp server that answers with the size of a body, and its transport."""

    async def answer(request):
        return web.Response(text=str(len(await request.read())))

    server = web.Server(answer)
    made = BoundedConnection(ServerConnections(LIMITS), server, _phase_of)
    transport = Transport()
    made.connection_made(transport)
    yield made, transport
    made.connection_lost(None)
    await server.shutdown(1)


@pytest.mark.parametrize("steps", range(8))
async def test_a_body_may_come_at_any_step_of_the_loop_after_its_headers(connection, steps):
    made, transport = connection
    for number in (1, 2):
        made.data_received(HEAD)
        for _ in range(steps):
            await asyncio.sleep(0)
        made.data_received(BODY[: len(BODY) // 2 + 1])
        made.data_received(BODY[len(BODY) // 2 + 1 :])
        while transport.written.count(str(len(BODY)).encode()) < number:
            assert b" 413 " not in transport.written
            await asyncio.sleep(0)
    assert not transport.closed


async def test_a_connection_waits_for_headers_until_they_are_whole_and_after_each_answer(connection):
    made, transport = connection
    assert _phase_of(made._inner) is Phase.HEAD, "its task has not begun"
    made.data_received(HEAD[:20])
    assert _phase_of(made._inner) is Phase.HEAD
    made.data_received(HEAD[20:])
    assert _phase_of(made._inner) is Phase.ANSWER
    made.data_received(BODY)
    while _phase_of(made._inner) is Phase.ANSWER:  # noqa: ASYNC110 - there is no event of its changes
        await asyncio.sleep(0)
    assert transport.written.startswith(b"HTTP/1.1 200")
