"""Clients that send too much, too slowly, or take nothing.

Each gets its answer and its end, the others notice nothing.
"""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from ipnext.errors import TooSlow
from serving.http import connection as http_connection
from serving.http import limits as http_limits
from serving.http.connection import http_factory
from serving.http.limits import HttpLimits, RequestPace
from serving.http.messages import Response
from tests.waiting import PATIENCE_SECONDS, eventually

LIMITS = HttpLimits(
    body_bytes=100_000,
    held_bytes=5_000_000,
    small_bytes=20_000,
    head_bytes=4096,
    read_seconds=0.2,
    read_bytes_per_second=1_000,
    write_seconds=0.2,
    linger_seconds=0.2,
)


@pytest.fixture(autouse=True)
def _rounds_follow_fast(monkeypatch):
    monkeypatch.setattr(http_limits, "SWEEP_SECONDS", 0.02)


@pytest.fixture
async def server(listeners):
    """Answers with the body it got, or with `x-size` bytes; `connect` gives a reader and a writer."""

    class Server:
        requests = None

    def handle(request):
        Server.requests.append(request)
        return Response(200, bytes(int(request.header("x-size") or 0)) or bytes(request.content))

    Server.requests = []
    factory, Server.connections = http_factory(handle, limits=LIMITS)
    listening = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)

    @asynccontextmanager
    async def connect():
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), limit=2**16)
        try:
            yield reader, writer
        finally:
            writer.close()

    Server.connect = staticmethod(connect)
    yield Server
    listening.close()


async def answer(reader):
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)).decode()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def ends(reader):
    assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /x HT",
        b"POST /x HTTP/1.1\r\nhost: localhost\r\nx-slow: ",
        b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8\r\n\r\n",
        b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 8\r\n\r\n1234567",
        b"POST /x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n4\r\n1234\r\n",
    ],
    ids=["line", "header", "no body", "body too short", "chunks"],
)
async def test_a_request_that_does_not_come_whole_is_408_and_the_connection_ends(server, sent):
    async with server.connect() as (reader, writer):
        writer.write(sent)
        status, body = await answer(reader)
        assert (status, b"has not come whole in" in body) == (408, True)
        await ends(reader)
    assert not server.requests


async def test_a_client_that_trickles_gets_time_for_what_it_has_sent_and_no_more(server):
    async with server.connect() as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000\r\n\r\n")

        async def trickle():
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        assert (await answer(reader))[0] == 408
        trickling.cancel()


async def test_a_large_body_that_keeps_coming_is_given_longer(server):
    async with server.connect() as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50001\r\n\r\n" + bytes(50_000))
        await asyncio.sleep(3 * LIMITS.read_seconds)
        writer.write(b"x")
        status, body = await answer(reader)
        assert (status, len(body)) == (200, 50_001)


async def test_an_idle_connection_stays(server):
    async with server.connect() as (reader, writer):
        for _ in range(2):
            writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx")
            assert await answer(reader) == (200, b"x")
            await asyncio.sleep(3 * LIMITS.read_seconds)


async def test_a_slow_request_behind_a_good_one_spoils_only_itself(server):
    async with server.connect() as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nxPOST /x HT")
        assert await answer(reader) == (200, b"x")
        assert (await answer(reader))[0] == 408


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (
            b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100001\r\n\r\n",
            b"at most 100000 bytes, got 100001 bytes",
        ),
        (b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999999\r\n\r\n", b""),
        (
            b"POST /x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n20000\r\n" + bytes(0x20000),
            b"at most 100000 bytes",
        ),
        (b"POST /x HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 5000, b"headers are larger than 4096 bytes"),
        (b"POST /" + b"a" * 5000, b"headers are larger than 4096 bytes"),
        (
            b"POST /x HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 5000 + b"\r\n\r\n",
            b"headers are larger than 4096 bytes",
        ),
    ],
    ids=["declared", "absurd", "chunked", "headers", "target", "headers at once"],
)
async def test_what_is_too_large_is_refused_as_soon_as_it_is_known(server, sent, words):
    async with server.connect() as (reader, writer):
        writer.write(sent)
        status, body = await answer(reader)
        assert status in ((413,) if words else (400, 413))
        assert words in body
        await ends(reader)
    assert not server.requests


async def test_a_refusal_arrives_though_the_client_goes_on_sending(server):
    async with server.connect() as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000000\r\n\r\n")
        for _ in range(20):
            writer.write(bytes(100_000))
            await asyncio.sleep(0)
        assert (await answer(reader))[0] == 413


async def test_a_refused_client_that_stays_is_cut_off(server):
    async with server.connect() as (reader, writer):
        writer.write(b"nonsense\r\n\r\n")
        assert (await answer(reader))[0] == 400
        await eventually(lambda: not server.connections)


async def test_what_is_longer_than_its_content_length_is_another_request_and_a_bad_one(server):
    async with server.connect() as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nabcdef\r\n\r\n")
        assert await answer(reader) == (200, b"ab")
        assert (await answer(reader))[0] == 400
        await ends(reader)


async def test_a_client_that_takes_none_of_its_answer_is_cut_off(server):
    async with server.connect() as (_, writer):
        for _ in range(8):
            writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\nx-size: 4000000\r\n\r\n")
        await eventually(lambda: server.requests)
        await eventually(lambda: not server.connections)
    assert len(server.requests) < 8, "nothing more is computed for a client that takes nothing"


@pytest.fixture
def clock(monkeypatch):
    """What limits are measured by, in place of the time: it goes on as the test says."""
    clock = SimpleNamespace(now=1.0, monotonic=lambda: clock.now)
    for module in (http_limits, http_connection):
        monkeypatch.setattr(module, "time", clock)
    return clock


async def test_a_client_that_takes_its_answers_slowly_gets_them_all(server, clock):
    async with server.connect() as (reader, writer):
        for _ in range(3):
            writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\nx-size: 16000000\r\n\r\n")
        for _ in range(3):
            await eventually(lambda: [one for one in server.connections if one._choked])
            clock.now += 0.9 * LIMITS.write_seconds
            await asyncio.sleep(3 * http_limits.SWEEP_SECONDS)
            assert len((await answer(reader))[1]) == 16_000_000


async def test_requests_that_wait_take_bounded_memory(server, clock):
    async with server.connect() as (reader, writer):
        await eventually(lambda: server.connections)
        [connection] = server.connections
        connection.pause_writing()
        piece = b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000\r\n\r\n" + bytes(90_000)
        sending = asyncio.create_task(_send(writer, piece, 200))
        await eventually(lambda: connection._paused)
        waiting = sum(len(request.content) for request, _ in connection._waiting)
        assert waiting < 2 * 2**20
        connection.resume_writing()
        for _ in range(200):
            assert len((await answer(reader))[1]) == 90_000
        await sending


async def test_bodies_of_all_connections_together_are_bounded_and_counted_down_again(server):
    server.connections.budget.held_bytes = before = LIMITS.held_bytes - LIMITS.held_bytes // 8 - 200_000
    half = b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 80000\r\n\r\n" + bytes(79_999)
    async with server.connect() as (reader, writer), server.connect() as (_, other):
        for one in (writer, other):
            one.write(half)
        await eventually(lambda: server.connections.budget.held_bytes == before + 2 * 79_999)
        async with server.connect() as (refused, third):
            third.write(half)
            status, body = await answer(refused)
            assert (status, b"are under way; try again" in body) == (503, True)
        other.close()
        await eventually(lambda: server.connections.budget.held_bytes == before + 79_999)
        writer.write(b"x")
        assert (await answer(reader))[0] == 200
        assert server.connections.budget.held_bytes == before


async def test_large_bodies_leave_room_for_small_ones(server):
    small, large = LIMITS.small_bytes, LIMITS.held_bytes - LIMITS.held_bytes // 8
    server.connections.budget.held_bytes = large - 100
    head = "POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n"
    async with server.connect() as (reader, writer):
        writer.write(head.format(small + 1).encode())
        status, body = await answer(reader)
        assert (status, b"are under way; try again" in body) == (503, True), "before it is read"
    async with server.connect() as (reader, writer):
        writer.write(head.format(small).encode() + bytes(small))
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize("behind", [b"1;x=", b"0\r\nx: "], ids=["size of a piece", "behind the body"])
async def test_text_behind_the_head_is_bounded_too(server, clock, behind):
    """A header there is read to its end by the parser, in quadratic time."""
    async with server.connect() as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        writer.write(behind)
        sending = asyncio.create_task(_send(writer, b"a" * 1000, 100))
        status, body = await answer(reader)
        assert (status, b"behind the body" in body) == (413, True)
        await sending


def test_a_body_that_turns_slow_is_given_up_however_fast_it_was():
    limits = HttpLimits()
    reading = RequestPace(since=0.0)
    rate = limits.read_bytes_per_second

    for second in range(1, 31):
        reading.check(float(second), second * 50 * rate, limits)
    for second in (31, 41):
        reading.check(float(second), 30 * 50 * rate + second, limits)
    with pytest.raises(TooSlow, match="has not come whole in 52 s"):
        reading.check(52.0, 30 * 50 * rate + 52, limits)


def test_no_body_is_waited_for_beyond_the_longest_time():
    limits = HttpLimits()
    reading = RequestPace(since=0.0)
    longest = int(limits.longest_read_seconds)
    for second in range(1, longest + 1):
        reading.check(float(second), second * 2 * limits.read_bytes_per_second, limits)
    with pytest.raises(TooSlow):
        reading.check(longest + 1.0, longest * 2 * limits.read_bytes_per_second, limits)


async def _send(writer, piece, count):
    for _ in range(count):
        writer.write(piece)
        await writer.drain()


async def test_the_round_ends_with_the_last_connection(server):
    async with server.connect():
        await eventually(lambda: server.connections._round is not None)
    await eventually(lambda: server.connections._round is None)
