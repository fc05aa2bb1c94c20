"""Prefill and decode apart.

Which engine sees what of a request, and that a prefill engine's trouble is no request's.
"""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import httpx
import pytest

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.disaggregated import handoff_graph
from ipnext.model.settings.kv_transfer import Handoff
from tests.serving.openai.conftest import mock_engine, raw_engine
from tests.waiting import eventually

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
GIVEN = {"do_remote_prefill": True, "remote_engine_id": "p", "remote_block_ids": [[1, 2]], "remote_port": 5600}


def pair(prefill, decode, *, connector="nixl", routing=None):
    handoff = Handoff(prefill="prefill", decode="decode", connector=connector)
    served = ServedGeneration(
        generation=1,
        graph=handoff_graph(handoff),
        snapshots={"prefill": 4, "decode": 5},
        engines={"prefill": "vllm", "decode": "vllm"},
        routing=routing or {},
        handoff=handoff,
    )
    places = [("prefill", url) for url in prefill] + [("decode", url) for url in decode]
    endpoints = tuple(PartEndpoint(part=part, url=url, generations=(1,)) for part, url in places)
    return RoutedModel(model="llm", served=(served,), endpoints=endpoints)


def answered(body, status=200):
    content = json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


def answering(body, status=200):
    async def script(_, __, ___, writer):
        writer.write(answered(body, status))

    return script


async def closing(_, __, ___, writer):
    writer.transport.abort()


async def silent(*_):
    """It has read the request, and says nothing."""


@asynccontextmanager
async def engines(*scripts):
    """Engines that answer as the scripts say: the last decodes, the others prefill."""
    async with raw_engine(scripts[0]) as first:
        if len(scripts) == 1:
            yield (first,)
            return
        async with engines(*scripts[1:]) as rest:
            yield (first, *rest)


def bodies(engine):
    return [json.loads(body) for _, body in engine.requests]


def ask(**more):
    return {"model": "llm", "prompt": "once upon a time", "max_tokens": 9, **more}


READS = answering({"choices": [{"text": "x"}], "kv_transfer_params": GIVEN})
WRITES = answering({"choices": [{"text": "answer"}]})


async def test_a_prompt_is_read_by_one_engine_and_answered_by_the_other_with_what_it_was_handed(edge, client):
    async with engines(READS, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        asked = ask(stream=True, stream_options={"include_usage": True}, min_tokens=3, temperature=0, seed=7)
        answer = await client.post(edge.url + COMPLETIONS, json=asked, headers={"x-request-id": "r1"})
    assert answer.json() == {"choices": [{"text": "answer"}]}
    assert answer.headers["x-ipnext-snapshots"] == "decode=5,prefill=4"
    [first] = bodies(prefill)
    wanted = first.pop("kv_transfer_params")
    assert first == {**ask(temperature=0, seed=7), "max_tokens": 1, "stream": False}
    assert (wanted["do_remote_decode"], wanted["do_remote_prefill"]) == (True, False)
    assert bodies(decode) == [asked | {"kv_transfer_params": GIVEN}]
    assert all(b"x-request-id: r1" in engine.requests[0][0] for engine in (prefill, decode))
    assert edge.counts().prefills == {"handed": 1}
    assert edge.counts().answers[200].seconds.count == 1
    assert (
        b'ipnext_prefills_total{generation="1",model="llm",outcome="handed",region="north"} 1.0' in edge.metrics.text()
    )


async def test_where_files_are_handed_over_the_body_is_passed_on_byte_by_byte(edge, client):
    content = b'{"model":"llm",  "prompt":"once", "seed":123456789012345678901234567890}'
    async with engines(answering({"choices": [], "kv_transfer_params": None}), WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url], connector="example"))
        headers = {"content-type": "application/json"}
        assert (await client.post(edge.url + COMPLETIONS, content=content, headers=headers)).status_code == 200
    [(_, body)] = decode.requests
    assert body == content
    assert "kv_transfer_params" not in bodies(prefill)[0]
    assert edge.counts().prefills == {"handed": 1}


@pytest.mark.parametrize(
    ("limits", "one"),
    [
        ({}, {"max_tokens": 1}),
        ({"max_completion_tokens": 50}, {"max_completion_tokens": 1}),
        ({"max_tokens": 5, "max_completion_tokens": 50}, {"max_tokens": 1, "max_completion_tokens": 1}),
    ],
)
async def test_a_chat_is_read_for_one_token_by_whatever_field_it_limits_its_answer(edge, client, limits, one):
    chat = {"model": "llm", "messages": [{"role": "user", "content": "hello"}], "tools": [{"type": "function"}]}
    async with engines(READS, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        assert (await client.post(edge.url + CHAT, json=chat | limits)).status_code == 200
    [first] = bodies(prefill)
    del first["kv_transfer_params"]
    assert first == chat | one | {"stream": False}
    assert bodies(decode) == [chat | limits | {"kv_transfer_params": GIVEN}]


async def test_a_stream_of_the_decode_engine_reaches_the_client_unchanged(edge, client):
    with (
        mock_engine(name="read", connector="nixl") as prefill,
        mock_engine(name="write", connector="nixl") as decode,
    ):
        edge.table(pair([prefill], [decode]))
        words = " ".join(f"w{number}" for number in range(40))
        asked = {"model": "llm", "messages": [{"role": "user", "content": words}], "max_tokens": 3, "stream": True}
        answer = await client.post(edge.url + CHAT, json=asked)
        told = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        metrics = (await client.get(decode + "/metrics")).text
        read = (await client.get(prefill + "/metrics")).text
    assert told[-1] == "[DONE]"
    assert [json.loads(event)["choices"][0]["delta"]["content"].strip() for event in told[:-1]] == [
        f"write-{number}" for number in range(3)
    ]
    assert 'vllm:external_prefix_cache_hits_total{engine="0",model_name="llm"} 40' in metrics
    assert 'vllm:generation_tokens_total{engine="0",model_name="llm"} 1' in read


async def test_another_prefill_engine_is_asked_where_one_fails(edge, client):
    for broken in (closing, answering({"error": {}}, 500)):
        async with engines(broken, READS, WRITES) as (bad, good, decode):
            edge.table(pair([bad.url, good.url], [decode.url], routing={"prefill": "round-robin"}))
            for _ in range(2):
                assert (await client.post(edge.url + COMPLETIONS, json=ask())).status_code == 200
        assert bad.requests
        assert all("kv_transfer_params" in body for body in bodies(decode))
    assert edge.counts().prefills == {"handed": 4}


@pytest.mark.parametrize("broken", [closing, answering({"error": {}}, 503), answering([1])])
async def test_where_nobody_reads_the_prompt_the_decode_engine_does(edge, client, broken):
    async with engines(broken, broken, WRITES) as (one, other, decode):
        edge.table(pair([one.url, other.url], [decode.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=ask())
    assert (answer.status_code, answer.json()) == (200, {"choices": [{"text": "answer"}]})
    assert bodies(decode) == [ask()]
    assert edge.counts().prefills == {"failed": 1}


async def test_a_prompt_that_ends_its_prefill_engine_goes_to_no_other_engine(edge, client):
    async with engines(closing, closing, WRITES) as (one, other, decode):
        one.ended = other.ended = True
        edge.table(pair([one.url, other.url], [decode.url]))
        answers = [await client.post(edge.url + COMPLETIONS, json=ask()) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert len(one.requests) + len(other.requests) == 1
    assert decode.requests == []


async def test_a_generation_without_prefill_engines_answers(edge, client):
    async with engines(WRITES) as (decode,):
        edge.table(pair([], [decode.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=ask(), headers={"x-ipnext-generation": "1"})
    assert answer.status_code == 200
    assert edge.counts().prefills == {"failed": 1}


async def test_a_generation_without_decode_engines_does_not(edge, client):
    async with engines(READS) as (prefill,):
        edge.table(pair([prefill.url], []))
        answer = await client.post(edge.url + COMPLETIONS, json=ask())
    assert answer.status_code == 503
    assert "no host ready for decode" in answer.text


async def test_a_request_that_a_prefill_engine_refuses_is_the_decode_engines_to_refuse(edge, client):
    refuses = answering({"error": {"message": "too long"}}, 400)
    async with engines(refuses, refuses, refuses) as (one, other, decode):
        edge.table(pair([one.url, other.url], [decode.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=ask())
    assert (answer.status_code, answer.json()) == (400, {"error": {"message": "too long"}})
    assert len(one.requests) + len(other.requests) == 1
    assert edge.counts().prefills == {"refused": 1}


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (COMPLETIONS, {"n": 2}),
        (COMPLETIONS, {"best_of": 3}),
        (COMPLETIONS, {"use_beam_search": True}),
        (COMPLETIONS, {"prompt": ["one", "other"]}),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
        ("/v1/responses", {"input": "x"}),
        ("/tokenize", {}),
    ],
)
async def test_what_is_not_one_prompt_with_one_answer_is_the_decode_engines_alone(edge, client, path, more):
    async with engines(READS, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        assert (await client.post(edge.url + path, json=ask(**more))).status_code == 200
    assert prefill.requests == []
    assert bodies(decode) == [ask(**more)]
    assert edge.counts().prefills == ({"alone": 1} if path == COMPLETIONS else {})


async def test_tokens_as_a_prompt_are_one_prompt(edge, client):
    async with engines(READS, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        await client.post(edge.url + COMPLETIONS, json=ask(prompt=[1, 2, 3], n=1))
    assert bodies(prefill)[0]["prompt"] == [1, 2, 3]
    assert "kv_transfer_params" in bodies(decode)[0]


@pytest.mark.parametrize("connector", ["nixl", "example"])
async def test_no_client_says_where_keys_and_values_come_from(edge, client, connector):
    forged = {"do_remote_prefill": True, "remote_host": "elsewhere"}
    async with engines(READS, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url], connector=connector))
        for more in ({"kv_transfer_params": forged}, {"vllm_xargs": {"kv_transfer_params": 0}, "n": 2}):
            answer = await client.post(edge.url + COMPLETIONS, json=ask(**more))
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(more)))
        assert (await client.post(edge.url + COMPLETIONS, json=ask(kv_transfer_params=None))).status_code == 200
    assert "elsewhere" not in repr(prefill.requests) + repr(decode.requests)
    assert bodies(decode)[0].get("kv_transfer_params") == (GIVEN if connector == "nixl" else None)


async def test_a_prefill_engine_that_is_silent_has_half_of_the_deadline(edge, client):
    async with engines(silent, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        began = time.monotonic()
        answer = await client.post(edge.url + COMPLETIONS, json=ask(), headers={"x-ipnext-deadline-ms": "6000"})
        assert answer.status_code == 200, "the other half is left"
        assert time.monotonic() - began > 2.9
        await eventually(lambda: prefill.left == 1, why=lambda: "the prefill engine is told")
    assert edge.counts().prefills == {"failed": 1}


async def test_a_deadline_holds_over_both(edge, client):
    async def slow(_, __, ___, writer):
        await asyncio.sleep(0.2)
        writer.write(answered({"kv_transfer_params": GIVEN}))

    async with engines(slow, silent) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=ask(), headers={"x-ipnext-deadline-ms": "3000"})
        assert answer.status_code == 504
        assert "within the deadline of 3000 ms" in answer.json()["error"]["message"], "not what an engine may be silent"
        assert decode.requests


async def test_a_client_that_leaves_while_its_prompt_is_read_ends_that(edge):
    async with engines(silent, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.create_task(client.post(edge.url + COMPLETIONS, json=ask()))
            await eventually(lambda: prefill.requests, why=lambda: "the prompt is being read")
            assert edge.in_flight() == 1
            asking.cancel()
        await eventually(lambda: prefill.left == 1, why=lambda: "the prefill engine is told")
        await eventually(lambda: edge.in_flight() == 0, why=lambda: "the request counts as ended")
        assert decode.requests == []
    assert edge.counts().answers[499].seconds.count == 1


async def test_a_prefill_connection_that_was_closed_while_idle_is_no_failure(edge, client):
    connections = []

    async def once(_, __, ___, writer):
        if writer in connections:
            writer.transport.abort()
            return
        connections.append(writer)
        writer.write(answered({"kv_transfer_params": GIVEN}))

    async with engines(once, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        for _ in range(2):
            await client.post(edge.url + COMPLETIONS, json=ask())
    assert len(connections) == 2
    assert edge.counts().prefills == {"handed": 2}


async def test_prompts_that_begin_alike_are_read_by_one_engine_and_answered_where_there_is_room(edge, client):
    reading = asyncio.Event()

    async def busy(_, __, ___, writer):
        await reading.wait()
        writer.write(answered({"choices": []}))

    long = "the same beginning of all prompts " * 30
    async with engines(READS, READS, busy, busy) as (one, other, *decode):
        edge.table(pair([one.url, other.url], [engine.url for engine in decode]))
        posts = [client.post(edge.url + COMPLETIONS, json=ask(prompt=long + str(number))) for number in range(2)]
        tasks = []
        for post in posts:
            tasks.append(asyncio.create_task(post))
            await eventually(
                lambda: sum(len(e.requests) for e in decode) == len(tasks), why=lambda: "it is being answered"
            )
        assert sorted(len(engine.requests) for engine in (one, other)) == [0, 2]
        assert [len(engine.requests) for engine in decode] == [1, 1]
        reading.set()
        await asyncio.gather(*tasks)


async def test_engines_of_both_parts_are_followed(edge):
    async with engines(READS, WRITES) as (prefill, decode):
        edge.table(pair([prefill.url], [decode.url]))
        assert edge.follower.routes.engine_urls.keys() == {prefill.url, decode.url}
