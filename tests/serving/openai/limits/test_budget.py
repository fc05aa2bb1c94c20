"""An OpenAI body counts as what its JSON becomes while it is read, and as its bytes while an engine works on it."""

import asyncio
import gc
import random
import re
import weakref

import orjson
import pytest

from ipnext.errors import TooLarge
from ipnext.model.deployment.router_table import RoutedModel
from serving.http.connection import HttpProtocol
from serving.http.limits import BodyBudget, HttpLimits
from serving.http.messages import Request
from serving.openai.engine_request import hint_of
from serving.protocol import json_size
from serving.protocol.json_size import MAX_ELEMENTS, MAX_MEMBERS, MAX_STRUCTURES, check_elements, parsed_bytes
from serving.router.router import RouterLimits
from tests.serving.openai.conftest import endpoint, raw_engine, running_edge, served
from tests.serving.openai.test_routes import CHAT, ask
from tests.waiting import eventually

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
JSON = {"content-type": "application/json"}
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


PARTS = {
    "tokens": b"1," * MAX_ELEMENTS,
    "members": b",".join(b'{"a":1}' for _ in range(MAX_MEMBERS)) + b",",
    "after text": b'"a\\\\","\\"b\\\\\\"",' + b"1," * MAX_ELEMENTS,
    "quotes": b'"",' * MAX_ELEMENTS,
}


@pytest.mark.parametrize("part", PARTS)
async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(small, engine, client, monkeypatch, part):
    small.serve(engine)
    monkeypatch.setattr("serving.openai.engine_request.orjson.loads", lambda _: pytest.fail("it was parsed"))
    content = b'{"model":"absent","prompt":[' + PARTS[part] + b"1]}"
    answer = await client.post(small.url + "/v1/completions", content=content, headers=JSON)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (413, "body")
    assert f"more than {MAX_MEMBERS if part == 'members' else MAX_ELEMENTS} " in error["message"]


@pytest.mark.parametrize(
    "prompt",
    [[1] * (MAX_ELEMENTS - 1), "1,2: " * MAX_ELEMENTS, '",\\' * MAX_ELEMENTS, [{"a": "b::,,"}] * (MAX_MEMBERS - 2)],
    ids=["tokens", "text", "escapes", "members"],
)
def test_a_prompt_of_a_million_tokens_and_any_text_are_taken(prompt):
    check_elements(orjson.dumps({"model": "llm", "prompt": prompt}))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("piece", "few"), [(1, 0), (2, 9), (7, 0), (50, 9), (2**20, 2**14)])
def test_only_what_is_outside_strings_is_counted(monkeypatch, seed, piece, few):
    monkeypatch.setattr("serving.protocol.json_size._PIECE_BYTES", piece)
    monkeypatch.setattr("serving.protocol.json_size._FEW_QUOTES", few)
    drawn = random.Random(seed)
    texts = ["".join(drawn.choice('a,:"\\\n[é') for _ in range(drawn.randrange(9))) for _ in range(6)]
    values = [texts, {text: [text, {text: n}] for n, text in enumerate(texts)}]
    content = orjson.dumps(values)
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content)
    for character, limit in ((b",", "MAX_ELEMENTS"), (b":", "MAX_MEMBERS")):
        monkeypatch.setattr(f"serving.protocol.json_size.{limit}", bare.count(character))
    check_elements(content)
    for limit in ("MAX_ELEMENTS", "MAX_MEMBERS"):
        with monkeypatch.context() as less:
            less.setattr(f"serving.protocol.json_size.{limit}", getattr(json_size, limit) - 1)
            with pytest.raises(TooLarge, match="outside strings"):
                check_elements(content)


@pytest.mark.parametrize("field", ["user", "prompt_cache_key"])
def test_only_a_text_is_a_session(field):
    class Unprintable(list):
        def __str__(self):
            raise AssertionError

        __repr__ = __str__

    def session(value):
        return hint_of(Request("POST", CHAT), {"model": "llm", field: value}).session

    assert session(Unprintable([1])) is None
    assert session("u" * 1000) == f"llm\0{'u' * 1000}"[:256]


class Values(dict):
    """A parsed body that a weak reference can follow."""


@pytest.mark.parametrize("model", ["llm", "llm:style"])
async def test_a_body_is_gone_while_its_answer_streams_and_its_values_before(small, client, monkeypatch, model):
    parsed, while_asked, go_on = [], [], asyncio.Event()
    loads = orjson.loads
    former = [one for one in gc.get_objects() if issubclass(type(one), Request | HttpProtocol)]  # of other tests

    class Watched:
        def loads(self, content):
            values = Values(loads(content))
            parsed.append(weakref.ref(values))
            return values

        def __getattr__(self, name):
            return getattr(orjson, name)

    monkeypatch.setattr("serving.openai.engine_request.orjson", Watched())

    async def script(_, __, ___, writer):
        while_asked.append([values() for values in parsed])
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
        )
        await go_on.wait()
        writer.write(b"0\r\n\r\n")

    async with raw_engine(script) as engine:
        held = served(1, adapters={"style": ("style@1", 3)})
        small.table(RoutedModel(model="llm", served=(held,), endpoints=(endpoint(engine.url, 1),)))
        body = ask(stream=True, words=["word"] * 20_000) | {"model": model}
        async with client.stream("POST", small.url + CHAT, json=body) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"x"
            found = [one for one in gc.get_objects() if issubclass(type(one), Request | HttpProtocol)]
            found = [one for one in found if not any(one is other for other in former)]
            requests = [one for one in found if isinstance(one, Request)]
            bodies = [len(one._body) for one in found if isinstance(one, HttpProtocol)]
            go_on.set()
            assert [piece async for piece in pieces] == []
    assert while_asked == [[None]], "the values were still there as the engine had the request"
    assert [request for request in requests if request.content] == [], "only what the checks of a stream need may stay"
    assert set(bodies) == {0}
