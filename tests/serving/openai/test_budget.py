"""An OpenAI body counts as what its JSON becomes while it is read, and as its bytes while an engine works on it."""

import asyncio

import pytest

from serving.http.limits import BodyBudget, HttpLimits
from serving.protocol.json_size import MAX_STRUCTURES, parsed_bytes
from serving.router.router import RouterLimits
from tests.serving.openai.test_routes import CHAT, ask
from tests.waiting import eventually

from .conftest import raw_engine, running_edge

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
LIMITS = HttpLimits(held_bytes=8 * 2**20)


@pytest.fixture
async def small(tmp_path, listeners):
    limits = RouterLimits(budget=BodyBudget(LIMITS))
    async with running_edge(tmp_path / "router.json", limits) as edge:
        edge.budget = limits.budget
        yield edge


async def test_values_of_a_body_are_let_go_of_before_the_engine_answers(small, client):
    answered = asyncio.Event()
    counted = []

    async def script(_, __, ___, writer):
        counted.append(small.budget.held_bytes)
        await answered.wait()
        writer.write(ANSWER)

    body = ask(words=["word"] * 20_000)
    async with raw_engine(script) as engine:
        small.serve(engine.url)
        call = asyncio.create_task(client.post(small.url + CHAT, json=body))
        await eventually(lambda: counted)
        answered.set()
        answer = await call
    assert answer.status_code == 200
    assert parsed_bytes(engine.requests[0][1]) > 1_000_000
    assert counted == [0]
    assert small.budget.held_bytes == 0


async def test_a_body_whose_values_find_no_room_is_refused(small, client):
    async def script(_, __, ___, writer):
        writer.write(ANSWER)

    async with raw_engine(script) as engine:
        small.serve(engine.url)
        full = await client.post(small.url + CHAT, json=ask(words=["w"] * 200_000))
        bomb = await client.post(small.url + CHAT, json=ask(words=[{}] * MAX_STRUCTURES))
        good = await client.post(small.url + CHAT, json=ask(words=["w"]))
    assert (full.status_code, full.json()["error"]["type"]) == (503, "ServiceUnavailableError")
    assert (bomb.status_code, bomb.json()["error"]["type"]) == (413, "BadRequestError")
    assert f"at most {MAX_STRUCTURES}" in bomb.json()["error"]["message"]
    assert good.status_code == 200
    assert (len(engine.requests), small.budget.held_bytes) == (1, 0)
