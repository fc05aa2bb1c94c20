"""What a request gets while the engines of its model go over from one generation to another."""

import asyncio
import re
import time

import httpx
import pytest

from ipnext.model.deployment.router_table import RoutedModel
from serving.router.router import RouterLimits
from tests.serving.openai.conftest import SILENT_SECONDS, endpoint, running_edge, served
from tests.waiting import eventually

CHAT = "/v1/chat/completions"
WEIGHED = {"x-ipnext-generation": "1", "x-ipnext-chosen-by": "weight"}
"""As a gateway sends what it chose for the client."""
PINNED = {"x-ipnext-generation": "1"}


def ask(**more):
    return {"model": "llm", "messages": [{"role": "user", "content": "say something"}], "max_tokens": 2, **more}


def table(*endpoints, generations=(1, 2), **more):
    return RoutedModel(
        model="llm", served=tuple(served(g) for g in generations), endpoints=endpoints, **{"swap": True, **more}
    )


async def post(client, edge, headers, **more):
    return await client.post(edge.url + CHAT, json=ask(**more), headers=headers)


async def test_a_generation_without_an_engine_is_answered_by_the_one_that_has_one(edge, engine, client):
    edge.table(table(endpoint(engine, 2)))
    answer = await post(client, edge, WEIGHED)
    assert (answer.status_code, answer.headers["x-ipnext-generation"], answer.headers["x-ipnext-snapshots"]) == (
        200,
        "2",
        "llm=20",
    )
    assert (edge.counts(1).answers, edge.counts(2).answers[200].seconds.count) == ({}, 1)


@pytest.mark.parametrize(
    ("model", "headers", "status"),
    [
        ({}, PINNED, 503),
        ({"swap": False}, WEIGHED, 503),
        ({"generations": (2,)}, WEIGHED, 404),
    ],
    ids=["a client asked for this one", "nothing goes over", "it is not served"],
)
async def test_else_the_request_is_refused(edge, engine, client, model, headers, status):
    edge.table(table(endpoint(engine, 2), **model))
    assert (await post(client, edge, headers)).status_code == status


async def test_a_generation_that_has_an_engine_keeps_its_requests(edge, engine, other_engine, client):
    edge.table(table(endpoint(engine, 1), endpoint(other_engine, 2)))
    assert {(await post(client, edge, WEIGHED)).headers["x-ipnext-generation"] for _ in range(4)} == {"1"}


@pytest.mark.parametrize("headers", [WEIGHED, {}], ids=["weighed", "straight to the router"])
async def test_a_request_waits_for_the_engine_that_goes_over(edge, engine, client, headers):
    edge.table(table(coming=(2,)))
    asked = asyncio.create_task(post(client, edge, headers))
    await eventually(edge.has_requests)
    await asyncio.sleep(0.3)
    assert not asked.done()
    edge.table(table(coming=(2,)))
    await asyncio.sleep(0.1)
    assert not asked.done(), "another table that brings no engine"
    edge.table(table(endpoint(engine, 2)))
    answer = await asked
    assert (answer.status_code, answer.headers["x-ipnext-generation"]) == (200, "2")


async def test_a_client_that_asked_for_a_generation_does_not_wait(edge, client):
    edge.table(table(coming=(2,)))
    waiting = asyncio.create_task(post(client, edge, WEIGHED))
    await eventually(edge.has_requests)
    answer = await post(client, edge, PINNED)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert not waiting.done(), "one that came before it and may wait still does"
    waiting.cancel()


async def test_without_an_engine_that_goes_over_nobody_waits(edge, client):
    edge.table(table())
    assert (await post(client, edge, WEIGHED)).status_code == 503


async def test_a_wait_ends_when_the_engine_that_went_over_is_gone(edge, client):
    edge.table(table(coming=(2,)))
    asked = asyncio.create_task(post(client, edge, WEIGHED))
    await eventually(edge.has_requests)
    edge.table(table())
    assert (await asked).status_code == 503


async def test_a_wait_takes_at_most_half_of_a_deadline(edge, client):
    edge.table(table(coming=(2,)))
    began = time.monotonic()
    answer = await post(client, edge, {**WEIGHED, "x-ipnext-deadline-ms": "4000"})
    assert answer.status_code == 503
    told = re.search(r"none was ready within (\S+) s \(half of its deadline\)", answer.json()["error"]["message"])
    assert 1.0 < float(told[1]) <= 2.0
    assert time.monotonic() - began > 1.0


async def test_a_wait_without_a_deadline_is_as_long_as_the_model_says(edge, engine, client):
    edge.table(table(endpoint(engine, 1)))
    async with client.stream("POST", edge.url + CHAT, json=ask(stream=True, max_tokens=20_000)) as running:
        pieces = running.aiter_raw()
        await anext(pieces)
        edge.table(table(coming=(2,), swap_wait_seconds=0.3))
        began = time.monotonic()
        answer = await post(client, edge, WEIGHED)
        assert 0.25 < time.monotonic() - began < SILENT_SECONDS / 4, "not half of what an engine may be silent"
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("ServiceUnavailableError", 503)
    assert error["message"] == (
        "the engines of llm go over to another generation, and none was ready within 0.3 s (rollout.swapWaitSeconds); "
        "requests from before that they still answer: 1; try again"
    )


async def test_who_waits_counts_as_under_way_and_is_let_go_of_with_its_client(tmp_path, engine):
    async with running_edge(tmp_path / "router.json", RouterLimits(max_in_flight=1)) as edge:
        edge.table(table(coming=(2,)))
        async with httpx.AsyncClient(timeout=60) as client:
            waiting = asyncio.create_task(post(client, edge, WEIGHED))
            await eventually(edge.has_requests)
            assert (await post(client, edge, WEIGHED)).status_code == 429
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: not edge.has_requests(), why=lambda: "the router sees that the client has left")
        async with httpx.AsyncClient(timeout=60) as client:
            edge.table(table(endpoint(engine, 2)))
            assert (await post(client, edge, WEIGHED)).status_code == 200


async def test_the_router_says_which_engine_it_has_requests_at_also_when_the_table_names_it_no_more(
    edge, engine, client
):
    edge.table(table(endpoint(engine, 1)))

    async def state():
        return (await client.get(f"{edge.url}/control/state")).json()["engines"]

    async with client.stream("POST", edge.url + CHAT, json=ask(stream=True, max_tokens=20_000)) as answer:
        async for _ in answer.aiter_raw():
            assert await state() == {engine: 1}
            edge.table(table(coming=(2,)))
            assert await state() == {engine: 1}
            break
    await eventually(lambda: edge.in_flight() == 0, why=lambda: "the router sees that the client has left")
    assert await state() == {}
