"""A router process that is told to end.

It takes nothing new, and finishes the streams that it has, within their model's drain.
"""

import asyncio
import json
import signal

import httpx
import pytest

from tests.waiting import eventually

from .conftest import raw_engine, started_router

CHAT = "/v1/chat/completions"
LONG, SHORT = 5000, 3
"""Tokens of a stream that goes on until its engine may end it; of one that comes at once."""
WHOLE = "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"


@pytest.fixture
async def engine(listeners):
    """Its long streams end once `may_end` is set."""
    may_end = asyncio.Event()

    async def script(_, __, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        if json.loads(body)["max_tokens"] == LONG:
            await may_end.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async with raw_engine(script) as engine:
        engine.may_end = may_end
        yield engine


@pytest.fixture
async def router(engine, tmp_path, request, subprocesses):
    with started_router(tmp_path, engine.url, drain_seconds=getattr(request, "param", 600.0)) as started:
        yield started


def ask(tokens):
    return {"model": "llm", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "stream": True}


async def streamed(client, url, begun):
    """The whole stream as text; `begun` is set with its first piece."""
    text = b""
    async with client.stream("POST", url + CHAT, json=ask(LONG)) as answer:
        async for piece in answer.aiter_raw():
            text += piece
            begun.set()
    return text.decode()


async def stopped(client, router):
    """A stream that had begun when its router was told to end."""
    url, process = router
    begun = asyncio.Event()
    stream = asyncio.create_task(streamed(client, url, begun))
    await begun.wait()
    process.send_signal(signal.SIGTERM)
    return stream


async def ended(process):
    await eventually(lambda: process.poll() is not None, why=lambda: "the router ends")
    return process.returncode


async def state(client, url):
    return (await client.get(f"{url}/control/state")).json()


async def closed(client, url):
    """Returns once it takes nothing new. Its state is not asked for: that is what an agent does that follows it."""
    while (await client.get(f"{url}/v2/health/ready")).status_code == 200:  # noqa: ASYNC110 - another process is asked
        await asyncio.sleep(0.01)


async def draining(client, url):
    while not (await state(client, url))["draining"]:  # noqa: ASYNC110 - another process is asked
        await asyncio.sleep(0.01)


async def test_a_stream_that_had_begun_arrives_whole_and_the_process_ends_after_it(router, engine, client):
    url, process = router
    stream = await stopped(client, router)
    await closed(client, url)
    assert not stream.done()
    assert process.poll() is None
    engine.may_end.set()
    assert await stream == WHOLE
    assert await ended(process) == 0


async def test_what_comes_meanwhile_is_told_to_ask_another_router(router, engine, client):
    url, process = router
    stream = await stopped(client, router)
    await closed(client, url)
    ready = await client.get(f"{url}/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    refused = await client.post(url + CHAT, json=ask(SHORT))
    assert (refused.status_code, refused.headers["x-ipnext-refused"]) == (503, "1")
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
    assert refused.json()["error"]["type"] == "ServiceUnavailableError"
    other = await client.post(f"{url}/v2/models/llm/infer", json={"inputs": []})
    assert (other.status_code, other.headers["x-ipnext-refused"]) == (503, "1")
    assert "takes nothing new" in other.json()["error"]
    [count] = (await state(client, url))["traffic"]
    assert (count["in_flight"], count["requests"]) == (1, 0), "what it refused unread counts for nobody"
    engine.may_end.set()
    assert await stream == WHOLE
    assert await ended(process) == 0


async def cut(stream):
    with pytest.raises(httpx.RemoteProtocolError):
        await stream


@pytest.mark.parametrize("router", [0.5], indirect=True)
async def test_a_stream_that_goes_on_beyond_the_drain_is_cut_and_seen_to_be(router, client):
    _, process = router
    stream = await stopped(client, router)
    await cut(stream)
    assert await ended(process) == 0


async def test_a_second_signal_ends_it_at_once(router, client):
    url, process = router
    stream = await stopped(client, router)
    await closed(client, url)
    process.send_signal(signal.SIGTERM)
    await cut(stream)
    assert await ended(process) == 0


async def test_without_a_request_under_way_it_ends_at_once(router):
    _, process = router
    process.send_signal(signal.SIGTERM)
    assert await ended(process) == 0


async def test_one_that_an_agent_follows_answers_until_the_agent_lets_it_go(router, client):
    url, process = router
    await state(client, url)  # as an agent asks all the time
    process.send_signal(signal.SIGTERM)
    await draining(client, url)
    for _ in range(3):
        await asyncio.sleep(0.2)
        assert (await client.post(url + CHAT, json=ask(SHORT))).status_code == 200
    assert (await client.get(f"{url}/v2/health/ready")).status_code == 200
    let_go, late = await asyncio.gather(client.post(f"{url}/control/drain"), client.post(url + CHAT, json=ask(SHORT)))
    assert let_go.json()["draining"]
    assert late.status_code == 200, "what was just on its way is answered"
    assert await ended(process) == 0
