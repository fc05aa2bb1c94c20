"""Answers of processes that may have been taken over: bounded in bytes and time, neither unpacked nor followed."""

import asyncio
import gzip
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from ipnext.components.bounded_http import AnswerRefused
from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import Unavailable

FOREVER = 3600.0


@asynccontextmanager
async def answering(script, path=None):
    """A server that answers each request as `script` says, on a port or on the socket `path`; its base URL."""

    async def connected(reader, writer):
        tasks.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                asked.append(head)
                await script(writer)
        writer.transport.abort()

    tasks, asked = set(), []
    start = (
        asyncio.start_server(connected, "127.0.0.1", 0) if path is None else asyncio.start_unix_server(connected, path)
    )
    server = await start
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" if path is None else f"unix://{path}"
    try:
        yield url, asked
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)


async def endless(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"%x\r\n%b\r\n" % (2**16, b" " * 2**16))
        await writer.drain()


async def drip(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await asyncio.sleep(0.001)


def whole(*heads, body=b""):
    async def script(writer):
        lines = b"".join(head + b"\r\n" for head in heads)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), lines, body))

    return script


@pytest.mark.parametrize("on_socket", [True, False])
async def test_an_answer_without_an_end_is_read_to_its_limit(tmp_path, on_socket, listeners):
    path = tmp_path / "a.sock" if on_socket else None
    async with answering(endless, path) as (url, _), aclosing(HttpSessions()) as sessions:
        with pytest.raises(AnswerRefused, match=r"larger than 100000 bytes"):
            await sessions.call("GET", f"{url}/state", most_bytes=100_000, seconds=FOREVER)


async def test_an_answer_of_exactly_the_limit_is_read(listeners):
    async with answering(whole(body=b"x" * 1000)) as (url, asked), aclosing(HttpSessions()) as sessions:
        for _ in range(2):
            answer = await sessions.call("PUT", f"{url}/x", body={"a": 1}, most_bytes=1000, seconds=FOREVER)
            assert answer == (200, b"x" * 1000)
    assert len(asked) == 2


async def test_an_answer_that_drips_ends_with_the_time_of_the_call(listeners):
    async with answering(drip) as (url, _), aclosing(HttpSessions()) as sessions:
        with pytest.raises(Unavailable, match=r"no whole answer to GET .*/state within 0\.5 s"):
            await sessions.call("GET", f"{url}/state", most_bytes=10**6, seconds=0.5)


async def test_a_packed_answer_is_not_unpacked(listeners):
    script = whole(b"content-encoding: gzip", body=gzip.compress(bytes(10**6)))
    async with answering(script) as (url, asked), aclosing(HttpSessions()) as sessions:
        with pytest.raises(AnswerRefused, match="packed"):
            await sessions.call("GET", f"{url}/state", most_bytes=10**7, seconds=FOREVER)
    assert b"accept-encoding: identity" in asked[0].lower()


async def test_a_redirect_is_not_followed(listeners):
    async def script(writer):
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")

    async with answering(script) as (url, asked), aclosing(HttpSessions()) as sessions:
        answer = await sessions.call("GET", f"{url}/state", most_bytes=10, seconds=FOREVER)
    assert (answer.status, len(asked)) == (302, 1)
