"""Engines are looked at while the table has them, and requests find the one that has their beginning cached."""

import asyncio
from collections import Counter

import pytest

from .conftest import eventually, mock_engine, raw_engine

CHAT = "/v1/chat/completions"


def ask(text, **more):
    return {"model": "llm", "messages": [{"role": "user", "content": text}], "max_tokens": 2, **more}


async def test_engines_of_the_table_tell_their_load(edge, engine):
    edge.serve(engine)
    loads = edge.router.engines.loads
    await eventually(lambda: loads._of(engine).reported_at > 0, "it was asked")
    edge.serve()
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
        await eventually(lambda: engine.requests, "it is under way")
        edge.serve()
        answered.set()
        assert (await asking).status_code == 200
        await eventually(lambda: engine.left >= 1, "the connection has ended")
