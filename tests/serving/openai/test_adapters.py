"""Adapters at the edge.

Asked for as MODEL:PART, answered by the engine's own name for the chosen generation's snapshot.
"""

import asyncio
import json

import httpx
import openai
import pytest

from ipnext.model.deployment.router_table import RoutedModel
from serving.openai.adapters import Alias
from tests.genai.support.checkpoints import write_adapter
from tests.waiting import eventually

from .conftest import endpoint, mock_engine, raw_engine, served

COMPLETIONS = "/v1/completions"
FIRST, SECOND = {"style": ("style@1", 1)}, {"style": ("style@2", 2)}


def ask(model="llm:style", **more):
    return {"model": model, "prompt": "say something", "max_tokens": 3, **more}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine with the adapters style@1 and style@2."""
    directory = write_adapter(tmp_path_factory.mktemp("adapter") / "lora")
    with mock_engine(name="word") as url:
        for name in ("style@1", "style@2"):
            body = {"lora_name": name, "lora_path": str(directory)}
            assert httpx.post(f"{url}/v1/load_lora_adapter", json=body, timeout=60).status_code == 200
        yield url


@pytest.fixture
async def both(edge, engine):
    """Generation 1 with the first adapter and generation 2 with the second, on one engine."""
    generations = (served(1, snapshot=10, adapters=FIRST), served(2, snapshot=10, adapters=SECOND))
    edge.table(RoutedModel(model="llm", served=generations, endpoints=(endpoint(engine, 1, 2),)))


@pytest.mark.parametrize("generation", [1, 2])
async def test_the_generation_chooses_the_adapter_and_the_answer_has_the_clients_name(edge, both, client, generation):
    answer = await client.post(edge.url + COMPLETIONS, json=ask(), headers={"x-ipnext-generation": str(generation)})
    assert answer.json()["choices"][0]["text"].split() == [f"style@{generation}-{n}" for n in range(3)]
    assert answer.json()["model"] == "llm:style"
    assert answer.headers["x-ipnext-snapshots"] == f"llm=10,style={generation}"


async def test_the_model_itself_is_asked_as_it_is(edge, both, client):
    answer = (await client.post(edge.url + COMPLETIONS, json=ask("llm"))).json()
    assert (answer["model"], answer["choices"][0]["text"]) == ("llm", "word-0 word-1 word-2")


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
async def test_a_stream_has_the_clients_name_in_each_event(edge, both, client, path):
    more = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {}
    answer = await client.post(edge.url + path, json=ask(stream=True, **more))
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert {json.loads(event)["model"] for event in events[:-1]} == {"llm:style"}
    assert "style@2-2" in answer.text


async def test_an_answer_in_pieces_is_restored_and_the_engine_sees_its_own_name(edge, client):
    body = b'data: {"model":"style@1"}\n\n'

    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(2):
            writer.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with raw_engine(script) as engine:
        edge.serve(engine.url, adapters=FIRST)
        answer = await client.post(edge.url + COMPLETIONS, json=ask(stream=True))
        [(_, asked)] = engine.requests
    assert json.loads(asked) == ask("style@1", stream=True)
    assert answer.content == b'data: {"model":"llm:style"}\n\n' * 2


class Pieces:
    """A flow of given pieces, and the sink that they come to."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.got = []
        self.over = None

    def start(self, sink):
        for piece in self.pieces:
            sink.write(piece)
        sink.end()

    def pause(self):
        self.over = "paused"

    resume = cancel = pause

    def write(self, piece):
        assert piece, "a piece is not empty"
        self.got.append(piece)

    def end(self, last=b""):
        self.got += [last] if last else []
        self.over = "whole"

    def abort(self):
        self.over = "aborted"


def restored(*pieces):
    flow = Pieces(*pieces)
    Alias("llm:style", "style@1").follow(flow).start(flow)
    assert flow.over == "whole"
    return flow.got


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_name_that_comes_in_two_pieces_is_restored(cut):
    body = b'data: {"model":"style@1","text":"\\"style@1\\""}\n\n'
    assert b"".join(restored(body[:cut], body[cut:])) == body.replace(b':"style@1"', b':"llm:style"')


def test_what_is_no_name_is_held_back_no_longer_than_needed():
    assert restored(b'a "st', b'ory"', b'x "s') == [b"a ", b'"story', b'"x ', b'"s']


def test_a_client_that_is_slow_or_gone_is_told_to_the_engine():
    flow = Pieces()
    Alias("llm:style", "style@1").follow(flow).pause()
    assert flow.over == "paused"


async def test_a_client_that_leaves_an_adapters_stream_ends_it(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")

    async with raw_engine(script) as engine:
        edge.serve(engine.url, adapters=FIRST)
        async with client.stream("POST", edge.url + COMPLETIONS, json=ask(stream=True)) as answer:
            async for _ in answer.aiter_raw():
                break
        await eventually(lambda: engine.left == 1, why=lambda: "the engine's connection has ended")
    await eventually(lambda: edge.in_flight() == 0, why=lambda: "the request counts as ended")


async def test_an_unknown_adapter_is_refused_with_the_known_ones(edge, both, client):
    answer = await client.post(edge.url + COMPLETIONS, json=ask("llm:tone"))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'llm:tone' does not exist here" in error["message"]
    assert "Adapters: llm:style" in error["message"]


async def test_the_engines_own_names_are_nobodys(edge, both, client):
    for name in ("style@1", "llm:style@1", "llm:"):
        assert (await client.post(edge.url + COMPLETIONS, json=ask(name))).status_code == 404


async def test_the_routes_that_load_adapters_are_not_reachable(edge, both, client, engine):
    for what in ("load", "unload"):
        body = {"model": "llm:style", "lora_name": "style@1", "lora_path": "/x"}
        assert (await client.post(f"{edge.url}/v1/{what}_lora_adapter", json=body)).status_code == 404
    assert len((await client.get(f"{engine}/v1/models")).json()["data"]) == 3


async def test_adapters_are_listed_as_openais_client_expects(edge, both):
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=0) as asking:
        cards = {card.id: card.model_dump() async for card in asking.models.list()}
        one = (await asking.models.retrieve("llm:style")).model_dump()
        with pytest.raises(openai.NotFoundError, match="llm:style"):
            await asking.models.retrieve("llm:tone")
        whole = await asking.completions.create(model="llm:style", prompt="x", max_tokens=2)
    assert list(cards) == ["llm", "llm:style"]
    assert (one["parent"], one["root"]) == ("llm", "llm:style")
    assert one == cards["llm:style"]
    assert [each["snapshots"] for each in one["ipnext"]["generations"]] == [
        {"llm": 10, "style": 1},
        {"llm": 10, "style": 2},
    ]
    assert "parent" not in cards["llm"]
    assert whole.model == "llm:style"


async def test_the_beginning_of_a_prompt_is_remembered_for_each_adapter_apart(edge, client, engine):
    """The same prompt goes to the engine that has it in its cache for this adapter.

    For another one no engine has it.
    """
    with mock_engine(name="other") as other:
        generations = (served(1, adapters=FIRST), served(2, snapshot=10, adapters=SECOND))
        edge.table(
            RoutedModel(model="llm", served=generations, endpoints=(endpoint(engine, 1, 2), endpoint(other, 1, 2)))
        )
        loads = edge.router.engines.loads
        asked = []
        choose = loads.choose

        def noted(urls, wish, **more):
            asked.append(wish.blocks)
            return choose(urls, wish, **more)

        loads.choose = noted
        for model, generation in (("llm", 1), ("llm:style", 1), ("llm:style", 2), ("llm:style", 1)):
            headers = {"x-ipnext-generation": str(generation)}
            await client.post(edge.url + COMPLETIONS, json=ask(model, prompt="word " * 200), headers=headers)
    base, first, second, again = (asked[n] for n in (0, 1, -2, -1))
    assert first == again
    assert not set(base) & set(first)
    assert not set(first) & set(second)


def test_nothing_but_a_whole_value_is_renamed():
    alias = Alias("llm:style", "style@1")
    text = b'{"model":"style@1","text":"style@1 and \\"style@1\\"","id":"style@12"}'
    assert alias.restore(text) == text.replace(b'"model":"style@1"', b'"model":"llm:style"')


async def test_a_request_on_its_way_to_the_engine_holds_its_generation_in_the_answer_that_tells_the_new_table(
    edge, client
):
    """What a host waits for before it unloads an adapter: the revision without its generation, and no request of it."""
    answered = asyncio.Event()

    async def script(_, __, ___, writer):
        await answered.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def told():
        state = (await client.get(f"{edge.url}/control/state")).json()
        return state["revision"], sum(one["in_flight"] for one in state["traffic"] if one["generation"] == 1)

    async with raw_engine(script) as engine:
        generations = (served(1, snapshot=10, adapters=FIRST), served(2, snapshot=10, adapters=SECOND))
        edge.table(RoutedModel(model="llm", served=generations, endpoints=(endpoint(engine.url, 1, 2),)))
        headers = {"x-ipnext-generation": "1"}
        asking = asyncio.create_task(client.post(edge.url + COMPLETIONS, json=ask(), headers=headers))
        await eventually(lambda: engine.requests, why=lambda: "the engine has it, and has said nothing yet")
        edge.table(RoutedModel(model="llm", served=generations, endpoints=(endpoint(engine.url, 2),)))
        assert await told() == (2, 1)
        answered.set()
        await asking
        assert await told() == (2, 0)
