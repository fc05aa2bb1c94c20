"""What a client sees of the OpenAI side of a router.

Whole answers, streams as they come, and one engine for the other.
"""

import asyncio
import json

import httpx
import pytest

from ipnext.model.deployment.router_table import RoutedModel
from serving.http.limits import HttpLimits
from serving.router.router import RouterLimits
from tests.serving.openai.conftest import endpoint, raw_engine, running_edge, served
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("listeners")

CHAT = "/v1/chat/completions"


def ask(**more):
    return {"model": "llm", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 4, **more}


def events(text):
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


async def read_into(pieces, client, url):
    async with client.stream("POST", url, json=ask(stream=True)) as answer:
        async for piece in answer.aiter_raw():
            pieces.append(piece)


async def test_an_answer_comes_as_the_engine_gave_it(edge, engine, client):
    edge.serve(engine)
    answer = await client.post(edge.url + CHAT, json=ask())
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "word-0 word-1 word-2 word-3"
    assert answer.headers["x-ipnext-generation"] == "1"
    assert answer.headers["x-ipnext-snapshots"] == "llm=10"
    assert answer.headers["x-ipnext-region"] == "north"


async def test_an_event_reaches_the_client_before_the_engine_makes_the_next_one(edge, client):
    was_read = asyncio.Event()

    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await was_read.wait()
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        pieces = []
        async with client.stream("POST", edge.url + CHAT, json=ask(stream=True)) as answer:
            async for piece in answer.aiter_raw():
                pieces.append(piece)
                was_read.set()
    assert b"".join(pieces) == b"data: 1\n\ndata: [DONE]\n\n"


async def test_a_stream_has_every_event_and_ends_with_done(edge, engine, client):
    edge.serve(engine)
    pieces = []
    async with client.stream("POST", edge.url + CHAT, json=ask(stream=True, max_tokens=8)) as answer:
        assert answer.headers["x-ipnext-generation"] == "1"
        assert answer.headers["content-type"].startswith("text/event-stream")
        pieces = [piece async for piece in answer.aiter_raw()]
    told = events(b"".join(pieces).decode())
    assert told[-1] == "[DONE]"
    assert [json.loads(event)["choices"][0]["delta"]["content"].strip() for event in told[:-1]] == [
        f"word-{number}" for number in range(8)
    ]
    await eventually(lambda: edge.in_flight() == 0, why=lambda: "the request counts as ended")
    counts = edge.counts()
    assert counts.answers[200].seconds.count == 1
    assert counts.streams.pieces >= 9
    assert counts.streams.first_seconds.count == 1
    told = counts.traffic("m", 1)
    assert (sum(told.first_token.values()), sum(told.token.values())) == (1, 1)
    assert b"ipnext_first_byte_seconds_count" in edge.metrics.text()


async def test_a_stream_counts_as_under_way_until_its_last_byte(edge, engine, client):
    edge.serve(engine)
    async with client.stream("POST", edge.url + CHAT, json=ask(stream=True, max_tokens=20)) as answer:
        async for _ in answer.aiter_raw():
            assert edge.in_flight() == 1
            break
    await eventually(lambda: edge.in_flight() == 0, why=lambda: "the client has left")


async def test_many_requests_share_a_connection_one_after_the_other(edge, engine, client):
    edge.serve(engine)
    for stream in (True, False, True, False):
        answer = await client.post(edge.url + CHAT, json=ask(stream=stream))
        assert answer.status_code == 200
    assert edge.counts().answers[200].seconds.count == 4


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize"])
async def test_other_paths_of_the_engine_are_passed_on(edge, engine, client, path):
    edge.serve(engine)
    answer = await client.post(edge.url + path, json={"model": "llm", "input": "a b", "prompt": "a b"})
    assert answer.status_code == 200
    assert "x-ipnext-generation" in answer.headers


async def test_tokens_of_a_message_are_counted_by_the_engine(edge, client):
    async def script(_, path, __, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(path), path))

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + "/v1/messages/count_tokens", json={"model": "llm", "messages": []})
    assert answer.text == "/v1/messages/count_tokens"


async def test_routes_that_change_an_engine_are_not_reachable(edge, engine, client):
    edge.serve(engine)
    for path in ("/v1/load_lora_adapter", "/pause", "/collective_rpc", "/v1/unload_lora_adapter"):
        answer = await client.post(edge.url + path, json={"model": "llm"})
        assert answer.status_code == 404
        assert "not served here" in answer.text


async def test_the_engine_sees_neither_credentials_nor_our_headers_but_the_clients_own(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-request-id: r2\r\n\r\n{}")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        headers = {"authorization": "Bearer secret", "x-ipnext-session": "s", "x-request-id": "r1"}
        answer = await client.post(edge.url + CHAT, json=ask(), headers=headers)
        [(head, body)] = engine.requests
    assert answer.headers["x-request-id"] == "r2"
    assert b"x-request-id: r1" in head
    assert b"secret" not in head
    assert b"x-ipnext" not in head
    assert json.loads(body) == ask()


async def test_pieces_that_come_together_leave_together_the_last_ones_with_the_end(edge):
    seen = asyncio.Event()

    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await seen.wait()
        seen.clear()
        writer.write(b"1\r\nb\r\n2\r\ncd\r\n")
        await seen.wait()
        writer.write(b"1\r\ne\r\n1\r\nf\r\n0\r\n\r\n")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        reader, writer = await asyncio.open_connection(*edge.url.removeprefix("http://").split(":"))
        body = json.dumps(ask(stream=True)).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
            f"{len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await reader.readuntil(b"\r\n\r\n1\r\na\r\n")
        seen.set()
        assert await reader.readexactly(8) == b"3\r\nbcd\r\n"
        seen.set()
        assert await reader.readexactly(12) == b"2\r\nef\r\n0\r\n\r\n"
        writer.close()
    assert edge.counts().streams.pieces == 5


async def test_a_client_that_leaves_ends_the_engines_work(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        async with client.stream("POST", edge.url + CHAT, json=ask(stream=True)) as answer:
            async for _ in answer.aiter_raw():
                break
        await eventually(lambda: engine.left == 1, why=lambda: "the engine's connection has ended")
    await eventually(lambda: edge.in_flight() == 0, why=lambda: "the request counts as ended")
    assert edge.counts().answers[499].seconds.count == 1


async def test_a_client_that_leaves_before_the_first_byte_ends_it_too(edge, client):
    asked = asyncio.Event()

    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        asked.set()

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        asking = asyncio.create_task(client.post(edge.url + CHAT, json=ask()))
        await asked.wait()
        asking.cancel()
        await eventually(lambda: engine.left == 1, why=lambda: "the engine's connection has ended")
    await eventually(lambda: 499 in edge.counts().answers, why=lambda: "it counts as cancelled")
    assert edge.in_flight() == 0


async def test_an_engine_that_dies_in_a_stream_breaks_it_without_done(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await writer.drain()
        writer.close()

    async with raw_engine(script) as engine:
        edge.serve(engine.url, engine.url + "/")
        text = []
        with pytest.raises(httpx.RemoteProtocolError):
            await read_into(text, client, edge.url + CHAT)
    assert b"".join(text) == b"data: 1\n\n"
    assert len(engine.requests) == 1, "asked again after the first byte"
    assert edge.counts().streams.broken == 1
    assert edge.counts().traffic("m", 1).first_token == {}  # how quick it began says nothing of it
    assert edge.counts().answers[502].seconds.count == 1
    assert edge.in_flight() == 0


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        b"no HTTP at all\r\n\r\n",
    ],
)
async def test_an_engine_that_ends_before_the_first_byte_is_replaced_by_another(edge, engine, client, first):
    async def script(_, __, ___, writer):
        writer.write(first)
        await writer.drain()
        writer.close()

    async with raw_engine(script) as bad:
        edge.serve(bad.url, engine)
        answers = [await client.post(edge.url + CHAT, json=ask(stream=True)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len(bad.requests) == 1, "asked again though it had failed just now"
    assert edge.counts().retries == 1


async def test_a_request_that_fails_on_every_engine_ejects_none(edge, client):
    """vLLM answers 500 to a grammar that refers to itself; each engine goes on with all others."""

    async def script(_, __, body, writer):
        if b"$ref" in body:
            writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")

    async with raw_engine(script) as one, raw_engine(script) as other:
        edge.serve(one.url, other.url, routing="round-robin")
        attack = ask(structured_outputs={"json": {"$ref": "#"}})
        for seed in range(6):
            assert (await client.post(edge.url + CHAT, json=attack | {"seed": seed})).status_code == 500
            one.requests.clear()
            other.requests.clear()
            for _ in range(4):
                assert (await client.post(edge.url + CHAT, json=ask())).status_code == 200
            assert (len(one.requests), len(other.requests)) == (2, 2)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}"])
async def test_a_request_that_ends_an_engine_is_sent_to_no_other_one(edge, engine, client, first):
    async def dies(_, __, ___, writer):
        dying.ended = other.ended = True
        writer.write(first)
        await writer.drain()
        writer.close()

    async with raw_engine(dies) as dying, raw_engine(dies) as other:
        edge.serve(dying.url, other.url)
        body = ask(seed=1)
        answers = [await client.post(edge.url + CHAT, json=body) for _ in range(3)]
        asked = len(dying.requests) + len(other.requests)
        edge.serve(engine)
        good = await client.post(edge.url + CHAT, json=ask(seed=2))
        still = await client.post(edge.url + CHAT, json=body)
    assert asked == 1
    assert [answer.status_code for answer in answers] == [500 if first else 503, 503, 503]
    assert answers[-1].headers["x-ipnext-error"] == "HostLost"
    assert "the same request" in answers[-1].json()["error"]["message"]
    assert (good.status_code, still.status_code) == (200, 503)
    assert edge.counts().retries == 0


@pytest.mark.parametrize(
    "again",
    [
        b'{ "model":"llm",\n\t"seed": 1, "messages":[{"role":"user","content":"say it"}] }',
        b'{"messages":[{"content":"say it","role":"user"}],"seed":1,"model":"llm"}',
        b'{"model":"l\\u006cm","seed":1,"messages":[{"role":"user","content":"\\u0073ay it"}]}',
        b'{"model":"llm","seed":1.0,"messages":[{"role":"user","content":"say it"}]}',
        b'{"model":"llm","seed":10e-1,"messages":[{"role":"user","content":"say it"}]}',
        b'{"model":"x","model":"llm","seed":7,"seed":1,"messages":[{"role":"user","content":"say it"}]}',
        b'{"model":"llm","seed":1,"n":null,"messages":[{"role":"user","content":"say it"}]}',
        (
            b'{"model":"llm","seed":1,"user":"u","metadata":{"a":"b"},"stream":true,'
            b'"messages":[{"role":"user","content":"say it"}]}'
        ),
    ],
    ids=[
        "spaces",
        "order",
        "escapes",
        "a float",
        "an exponent",
        "names given twice",
        "null",
        "fields that nothing reads",
    ],
)
async def test_another_way_to_write_a_request_gets_no_second_victim(edge, engine, client, again):
    async def dies(_, __, ___, writer):
        dying.ended = True
        writer.close()

    async def post(content):
        return await client.post(edge.url + CHAT, content=content, headers={"content-type": "application/json"})

    first = b'{"model":"llm","seed":1,"messages":[{"role":"user","content":"say it"}]}'
    async with raw_engine(dies) as dying:
        edge.serve(dying.url)
        assert (await post(first)).headers["x-ipnext-error"] == "HostLost"
    edge.serve(engine)
    answer = await post(again)
    assert (answer.status_code, answer.headers["x-ipnext-error"]) == (503, "HostLost")
    assert "the same request" in answer.json()["error"]["message"]
    assert (await post(first.replace(b":1,", b":2,"))).status_code == 200


@pytest.mark.parametrize("seed", [b"1e300", b"-1e300", b"18446744073709551616", b"9223372036854775808.0"])
async def test_numbers_beyond_64_bits_hide_no_request_that_ends_an_engine(edge, engine, client, seed):
    async def dies(_, __, ___, writer):
        dying.ended = True
        writer.close()

    async def post(seed, text):
        content = b'{"model":"llm","seed":%s,"messages":[{"role":"user","content":"%s"}]}' % (seed, text)
        return await client.post(edge.url + CHAT, content=content, headers={"content-type": "application/json"})

    async with raw_engine(dies) as dying:
        edge.serve(dying.url)
        assert (await post(seed, b"end it")).headers["x-ipnext-error"] == "HostLost"
    edge.serve(engine)
    again = await post(seed, b"end it")
    assert (again.status_code, again.headers["x-ipnext-error"]) == (503, "HostLost")
    assert (await post(seed, b"another")).status_code == 200


@pytest.mark.parametrize(("levels", "status"), [(254, 200), (255, 400), (1000, 400), (5000, 400)])
async def test_a_body_of_too_many_levels_is_refused(edge, engine, client, levels, status):
    edge.serve(engine)
    deep = b"[" * (levels - 1) + b"]" * (levels - 1)
    content = b'{"model":"llm","messages":[{"role":"user","content":"x"}],"deep":' + deep + b"}"
    answer = await client.post(edge.url + CHAT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text


async def test_another_generation_never_stands_in(edge, engine, client):
    models = RoutedModel(
        model="llm",
        served=(served(1), served(2)),
        endpoints=(endpoint("http://127.0.0.1:9", 1), endpoint(engine, 2)),
    )
    edge.table(models)
    pinned = await client.post(edge.url + CHAT, json=ask(), headers={"x-ipnext-generation": "1"})
    assert pinned.status_code == 503
    assert pinned.headers["retry-after"] == "1"
    assert pinned.headers["x-ipnext-generation"] == "1"
    newest = await client.post(edge.url + CHAT, json=ask())
    assert newest.headers["x-ipnext-generation"] == "2"


async def test_the_last_refusal_of_an_engine_is_passed_on(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nfull")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + CHAT, json=ask())
    assert (answer.status_code, answer.text) == (503, "full")


async def test_a_deadline_ends_a_request_that_has_no_first_byte(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + CHAT, json=ask(), headers={"x-ipnext-deadline-ms": "1500"})
        await eventually(lambda: engine.left == 1, why=lambda: "the engine's connection has ended")
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "TimeoutError"
    assert edge.counts().answers[504].seconds.count == 1


async def test_a_deadline_does_not_end_a_stream_that_has_begun(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await asyncio.sleep(2.0)
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        headers = {"x-ipnext-deadline-ms": "1500"}
        answer = await client.post(edge.url + CHAT, json=ask(stream=True), headers=headers)
    assert events(answer.text) == ["1", "[DONE]"]
    assert answer.elapsed.total_seconds() > 1.5


async def test_an_engine_that_falls_silent_in_a_stream_breaks_it(tmp_path, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")

    async with (
        running_edge(tmp_path / "t.json", RouterLimits(silent_seconds=2.0)) as edge,
        raw_engine(script) as engine,
    ):
        edge.serve(engine.url)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(edge.url + CHAT, json=ask(stream=True))
        await eventually(lambda: engine.left == 1, why=lambda: "the engine's connection has ended")
        assert edge.counts().streams.broken == 1


async def test_a_slow_client_slows_the_engine_down_and_gets_all(edge):
    total = 24 * 2**20
    sent = 0

    async def script(_, __, ___, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * 2**16)
            sent += 2**16
            await writer.drain()

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        host, port = edge.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**16)
        body = json.dumps(ask()).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
            f"{len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await eventually(lambda: sent, why=lambda: "the engine begins")
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < total, "the engine was not held back"
        await reader.readuntil(b"\r\n\r\n")
        assert len(await reader.readexactly(total)) == total
        writer.close()
    await eventually(lambda: edge.in_flight() == 0, why=lambda: "the request counts as ended")
    assert edge.counts().answers[200].bytes_out == total


async def test_a_client_that_takes_nothing_is_cut_off(tmp_path):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
            await writer.drain()

    limits = HttpLimits(write_seconds=2.0)
    async with running_edge(tmp_path / "t.json", http_limits=limits) as edge, raw_engine(script) as engine:
        edge.serve(engine.url)
        host, port = edge.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=2**16)
        body = json.dumps(ask()).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
            f"{len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await eventually(lambda: edge.counts().answers.get(499), why=lambda: "it is cut off")
        await eventually(lambda: engine.left == 1, why=lambda: "the engine's connection has ended")
        writer.transport.abort()
        await asyncio.sleep(0.01)
