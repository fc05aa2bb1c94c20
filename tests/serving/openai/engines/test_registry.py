"""Engines are looked at while the table has them, and requests find the one that has their beginning cached."""

import asyncio
from collections import Counter

import httpx
import pytest

from ipnext.model.deployment.router_table import RoutedModel
from tests.serving.openai.conftest import endpoint, mock_engine, raw_engine, served
from tests.waiting import eventually

CHAT = "/v1/chat/completions"


def ask(text, **more):
    return {"model": "llm", "messages": [{"role": "user", "content": text}], "max_tokens": 2, **more}


async def reported(edge, *engines):
    loads = edge.router.engines.loads
    await eventually(lambda: all(loads._of(url).reported_at > 0 for url in engines), why=lambda: "they were asked")


async def test_engines_that_a_request_may_choose_between_tell_their_load(edge, engine, other_engine):
    edge.serve(engine, other_engine)
    await reported(edge, engine, other_engine)
    edge.serve()
    assert not edge.router.engines._polls


async def test_an_engine_without_another_one_is_left_alone(edge, engine, other_engine):
    edge.serve(engine)
    assert not edge.router.engines._polls
    edge.serve(engine, other_engine)
    await reported(edge, engine, other_engine)
    edge.serve(other_engine)
    assert not edge.router.engines._polls


async def test_prompts_with_one_beginning_meet_one_engine(edge, engine, other_engine, client):
    edge.serve(engine, other_engine)
    seen = {}
    for number in range(24):
        group = number % 4
        answer = await client.post(edge.url + CHAT, json=ask(f"{group} {'shared ' * 60} {number}"))
        name = answer.json()["choices"][0]["message"]["content"].partition("-")[0]
        seen.setdefault(group, set()).add(name)
    assert all(len(names) == 1 for names in seen.values()), seen
    assert {name for names in seen.values() for name in names} == {"word", "other"}


@pytest.mark.parametrize("how", ["header", "user", "prompt_cache_key"])
async def test_a_session_meets_one_engine(edge, engine, other_engine, client, how):
    edge.serve(engine, other_engine)
    counts = Counter()
    for _ in range(8):
        headers = {"x-ipnext-session": "s1"} if how == "header" else {}
        more = {} if how == "header" else {how: "s1"}
        answer = await client.post(edge.url + CHAT, json=ask("hi", **more), headers=headers)
        counts[answer.json()["choices"][0]["message"]["content"].partition("-")[0]] += 1
    assert len(counts) == 1


async def test_by_round_robin_engines_take_turns(edge, engine, other_engine, client):
    edge.serve(engine, other_engine, routing="round-robin")
    counts = Counter()
    for _ in range(8):
        answer = await client.post(edge.url + CHAT, json=ask("x" * 1000, user="s1"))
        counts[answer.json()["choices"][0]["message"]["content"].partition("-")[0]] += 1
    assert counts == {"word": 4, "other": 4}


async def test_an_engine_that_is_killed_is_replaced_at_once(edge, engine, client):
    with mock_engine(name="dying") as dying:
        edge.serve(dying, engine, routing="round-robin")
        for _ in range(4):
            assert (await client.post(edge.url + CHAT, json=ask("hi"))).status_code == 200
    answers = [await client.post(edge.url + CHAT, json=ask("hi")) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}


async def test_a_connection_to_an_engine_that_left_the_table_ends_with_its_answer(edge, client):
    answered = asyncio.Event()

    async def script(_, __, ___, writer):
        await answered.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        asking = asyncio.create_task(client.post(edge.url + CHAT, json=ask("hello")))
        await eventually(lambda: engine.requests, why=lambda: "it is under way")
        edge.serve()
        answered.set()
        assert (await asking).status_code == 200
        await eventually(lambda: engine.left >= 1, why=lambda: "the connection has ended")


def table(*urls, drain_seconds):
    """One generation with engines at these URLs."""
    endpoints = tuple(endpoint(url, 1) for url in urls)
    return RoutedModel(model="llm", served=(served(1),), endpoints=endpoints, drain_seconds=drain_seconds)


class Reading:
    """A stream that has begun, read to its end or its break."""

    def __init__(self, client, edge, tokens):
        self.text, self._begun = b"", asyncio.Event()
        self._task = asyncio.create_task(self._read(client, edge.url, tokens))

    async def _read(self, client, url, tokens):
        async with client.stream("POST", url + CHAT, json=ask("hi", stream=True, max_tokens=tokens)) as answer:
            async for piece in answer.aiter_raw():
                self.text += piece
                self._begun.set()

    async def begun(self):
        await self._begun.wait()
        return self

    async def ended(self):
        await self._task
        return self.text


async def test_a_stream_on_an_engine_that_left_the_table_is_cut_after_the_drain_and_seen_to_be(edge, engine, client):
    edge.table(table(engine, drain_seconds=0.3))
    running = await Reading(client, edge, 20_000).begun()
    edge.table(table(drain_seconds=60.0))
    with pytest.raises(httpx.RemoteProtocolError):
        await running.ended()
    assert b"[DONE]" not in running.text
    assert edge.counts().streams.broken == 1
    assert edge.router.engines.loads.under_way == {}


async def test_a_stream_that_ends_within_the_drain_is_whole(edge, engine, client):
    edge.table(table(engine, drain_seconds=30.0))
    running = await Reading(client, edge, 150).begun()
    edge.table()
    assert (await running.ended()).endswith(b"data: [DONE]\n\n")


async def test_a_stream_on_an_engine_that_is_back_within_the_drain_goes_on(edge, engine, client):
    edge.table(table(engine, drain_seconds=0.2))
    running = await Reading(client, edge, 400).begun()
    edge.table(table(drain_seconds=0.2))
    edge.table(table(engine, drain_seconds=0.2))
    assert (await running.ended()).endswith(b"data: [DONE]\n\n")


async def test_a_request_that_waits_for_its_first_piece_is_answered_by_another_engine_after_the_drain(
    edge, engine, client
):
    async def silent(*_):
        await asyncio.sleep(600)

    async with raw_engine(silent) as other:
        edge.table(table(other.url, drain_seconds=0.2))
        asking = asyncio.create_task(client.post(edge.url + CHAT, json=ask("hello")))
        await eventually(lambda: other.requests, why=lambda: "it is under way")
        edge.table(table(engine, drain_seconds=0.2))
        assert (await asking).status_code == 200
