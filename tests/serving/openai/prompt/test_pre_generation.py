"""Embedding, ranking, generation in one request: through a real router in this process and a real torch host."""

import asyncio
import base64
import json
import math
import re
import struct
from contextlib import asynccontextmanager

import openai
import pytest

from ipnext.model.deployment.router_table import RoutedModel
from ipnext.model.registry.registry import GraphNode, PartGraph, SyncPolicy, TensorSpec
from tests.serving.openai.conftest import endpoint, mock_engine, raw_engine
from tests.serving.openai.mixed import (
    CHAT,
    COMPLETIONS,
    DEAD,
    DOCUMENTS,
    MODEL,
    chat,
    completion,
    embedding,
    generating,
    hanging,
    refusing,
    routed,
    served,
    wanted_prompt,
    write,
)
from tests.waiting import eventually


@pytest.fixture(scope="module")
def ranker_host(ranker_hosts):
    """A host with rankers 1 and 2, each for the generation of its number."""
    return ranker_hosts[1]


@pytest.fixture(scope="module")
def embedder():
    with mock_engine(model=MODEL, stamp=1) as url:
        yield url


@pytest.fixture(scope="module")
def llm():
    with mock_engine(model=MODEL, name="so") as url:
        yield url


@asynccontextmanager
async def raw(embed=None, generate=generating):
    async with raw_engine(embed or embedding()) as embedder, raw_engine(generate) as llm:
        yield embedder, llm


def prompts(llm):
    return [json.loads(body)["prompt"] for _, body in llm.requests]


async def test_the_top_documents_stand_in_the_prompt_of_one_generation(edge, client, ranker_host, embedder, llm):
    edge.table(routed(1, embedder=[embedder], ranker=[ranker_host], llm=[llm]))
    answer = await client.post(edge.url + COMPLETIONS, json=completion(echo=True))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == wanted_prompt() + "so-0 so-1"
    assert answer.headers["x-ipnext-generation"] == "1"
    assert answer.headers["x-ipnext-snapshots"] == "embedder=1,llm=1,ranker=1"
    assert edge.counts(1, MODEL).before.count == 1
    assert b"ipnext_before_generation_seconds_count" in edge.metrics.text()
    assert (edge.in_flight(), edge.counts(1, MODEL).retries) == (0, 0)


async def test_the_unmodified_client_streams_a_chat(edge, ranker_host, embedder, llm):
    edge.table(routed(1, embedder=[embedder], ranker=[ranker_host], llm=[llm]))
    asking = chat(stream=True)
    inputs = asking.pop("inputs")
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=0) as client:
        assert [card.id async for card in client.models.list()] == [MODEL]
        stream = await client.chat.completions.create(**asking, extra_body={"inputs": inputs})
        assert [event.choices[0].delta.content async for event in stream] == ["so-0", " so-1"]
        with pytest.raises(openai.BadRequestError, match=r"inputs\.documents: missing") as refused:
            await client.chat.completions.create(**asking)
    assert refused.value.param == "inputs.documents"


async def test_the_engine_gets_every_field_but_inputs_and_the_composed_prompt(edge, client, ranker_host):
    more = {"top_k": 3, "stream": False, "structured_outputs": {"choice": ["a"]}, "user": "ann"}
    async with raw() as (embedder, llm):
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm.url]))
        await client.post(edge.url + COMPLETIONS, json=completion(**more))
        await client.post(edge.url + CHAT, json=chat(**more))
        (_, first), (head, second) = llm.requests
    assert json.loads(first) == {"model": MODEL, "prompt": wanted_prompt(), "max_tokens": 2, **more}
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": wanted_prompt()}]
    assert json.loads(second) == {"model": MODEL, "messages": messages, "max_tokens": 2, **more}
    assert head.startswith(b"POST /v1/chat/completions ")
    assert f"content-length: {len(second)}".encode() in head


async def test_nodes_that_do_not_wait_for_each_other_run_at_once_and_texts_go_in_one_request(edge, client, ranker_host):
    both = asyncio.Event()

    async def script(method, path, body, writer):
        if len(embedder.requests) == 2:
            both.set()
        await both.wait()
        await embedding()(method, path, body, writer)

    async with raw(script) as (embedder, llm):
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=completion())
        assert answer.status_code == 200
        asked = [json.loads(body) for _, body in embedder.requests]
    assert sorted(map(str, (one["input"] for one in asked))) == sorted(map(str, (["which?"], DOCUMENTS)))
    assert {one["model"] for one in asked} == {MODEL}


@pytest.mark.parametrize(
    ("change", "param", "text"),
    [
        ({"inputs": {}}, "inputs.documents", "inputs.documents: missing; this model takes: documents BYTES[-1]"),
        ({"inputs": {"documents": ["a"], "titles": ["b"]}}, "inputs.titles", "inputs.titles: this model takes no such"),
        ({"inputs": {"documents": "a"}}, "inputs.documents", "got a str"),
        ({"inputs": {"documents": []}}, "inputs.documents", "at least one element"),
        ({"prompt": [1, 2]}, "prompt", "prompt: must be one text"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_before_anything_is_asked(
    edge, client, ranker_host, change, param, text
):
    async with raw() as (embedder, llm):
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=completion(**change))
        assert embedder.requests == llm.requests == []
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", param, 400)
    assert text in error["message"]


async def test_other_paths_and_protocols_are_refused_by_name(edge, client, ranker_host, embedder, llm):
    edge.table(routed(1, embedder=[embedder], ranker=[ranker_host], llm=[llm]))
    for path in ("/v1/embeddings", "/v1/responses", "/tokenize", "/v1/chat/completions/batch"):
        answer = await client.post(edge.url + path, json={"model": MODEL, "input": "a"})
        assert answer.status_code == 400
        assert "answers at /v1/chat/completions and /v1/completions only" in answer.json()["error"]["message"]
    for method, path in (("POST", f"/v2/models/{MODEL}/infer"), ("GET", f"/v2/models/{MODEL}")):
        answer = await client.request(method, edge.url + path)
        assert answer.status_code == 400
        assert f"model {MODEL} generates" in answer.json()["error"]


async def test_the_model_is_listed_with_what_its_requests_bring(edge, client, ranker_host, embedder, llm):
    edge.table(routed(1, embedder=[embedder], ranker=[ranker_host], llm=[llm]))
    (card,) = (await client.get(edge.url + "/v1/models")).json()["data"]
    (generation,) = card["ipnext"]["generations"]
    assert generation["inputs"] == [{"name": "documents", "datatype": "BYTES", "shape": [-1]}]
    assert (generation["ready"], generation["snapshots"]) == (True, {"embedder": 1, "ranker": 1, "llm": 1})


async def test_all_parts_are_those_of_the_generation_that_was_chosen(edge, client, ranker_host, llm):
    async with raw_engine(embedding(1)) as first, raw_engine(embedding(2)) as second:
        embedders = {first.url: (1,), second.url: (2,)}
        edge.table(routed(1, 2, embedder=embedders, ranker=[ranker_host], llm=[llm]))
        for number in (1, 2, 1):
            headers = {"x-ipnext-generation": str(number)}
            answer = await client.post(edge.url + COMPLETIONS, json=completion(echo=True), headers=headers)
            assert answer.json()["choices"][0]["text"].startswith(wanted_prompt(number=number))
            assert answer.headers["x-ipnext-snapshots"] == f"embedder={number},llm={number},ranker={number}"


@pytest.mark.parametrize("fault", ["dead", "ends", 500, 503])
async def test_an_embedding_engine_that_fails_is_asked_no_more_but_another_of_the_generation_is(
    edge, client, ranker_host, llm, fault
):
    async def ends(_, __, ___, writer):
        writer.close()

    script = ends if fault == "ends" else refusing(500 if fault == "dead" else fault)
    async with raw_engine(script) as failing, raw_engine(embedding()) as well:
        bad = DEAD if fault == "dead" else failing.url
        edge.table(routed(1, embedder=[bad, well.url], ranker=[ranker_host], llm=[llm]))
        for _ in range(4):  # whichever the router takes first
            answer = await client.post(edge.url + COMPLETIONS, json=completion(echo=True))
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"].startswith(wanted_prompt())
        assert len(well.requests) == 8
    assert edge.counts(1, MODEL).retries >= 1


async def test_where_no_embedding_engine_answers_it_is_503(edge, client, ranker_host, llm):
    edge.table(routed(1, embedder=[DEAD], ranker=[ranker_host], llm=[llm]))
    answer = await client.post(edge.url + COMPLETIONS, json=completion())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "no host or engine answers; part 'embedder': " in answer.json()["error"]["message"]
    await eventually(lambda: edge.in_flight() == 0, why=lambda: "nothing is left under way")


async def test_a_host_that_is_dead_is_asked_no_more_but_another_is(edge, client, ranker_host, llm):
    async with raw_engine(embedding()) as embedder:
        edge.table(routed(1, embedder=[embedder.url], ranker=[DEAD, ranker_host], llm=[llm]))
        for _ in range(4):
            answer = await client.post(edge.url + COMPLETIONS, json=completion())
            assert answer.status_code == 200, answer.text
        assert len(embedder.requests) == 8, "what embedded well is not asked again"


async def test_a_generator_that_is_dead_leaves_its_prompt_to_another(edge, client, ranker_host):
    async def ends(_, __, ___, writer):
        writer.close()

    async with raw() as (embedder, llm), raw_engine(ends) as dead:
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[dead.url, llm.url]))
        for number in range(4):  # prompts that begin otherwise: each may go to either
            inputs = {"documents": [f"{number} is the number of this document"]}
            answer = await client.post(edge.url + COMPLETIONS, json=completion(inputs=inputs))
            assert answer.status_code == 200
        assert len(embedder.requests) == 8
        assert [re.search(r"\[1\] (\d)", prompt)[1] for prompt in prompts(llm)] == ["0", "1", "2", "3"]
        assert dead.requests
        assert set(prompts(dead)) <= set(prompts(llm))
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[dead.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=completion())
    assert answer.status_code == 503
    assert "no engine answers" in answer.json()["error"]["message"]


async def test_an_engine_that_came_meanwhile_is_asked_where_the_former_one_ends(edge, client, ranker_host, llm):
    async with raw_engine(embedding()) as well:

        async def ends(_, __, ___, writer):
            edge.table(routed(1, embedder=[well.url], ranker=[ranker_host], llm=[llm]))
            writer.close()

        async with raw_engine(ends) as former:
            edge.table(routed(1, embedder=[former.url], ranker=[ranker_host], llm=[llm]))
            answer = await client.post(edge.url + COMPLETIONS, json=completion())
        assert answer.status_code == 200, answer.text
        assert (len(former.requests), len(well.requests)) == (2, 2)


async def test_where_the_policy_lets_another_snapshot_stand_in_it_does_for_all_calls_of_its_part(
    edge, client, ranker_host, llm
):
    headers = {"x-ipnext-generation": "2"}
    async with raw_engine(embedding(1)) as older:
        embedders = {DEAD: (2,), older.url: (1,)}
        sync = SyncPolicy(policy="unsynced")
        edge.table(routed(1, 2, sync=sync, embedder=embedders, ranker=[ranker_host], llm=[llm]))
        for _ in range(4):  # whichever the router takes first
            answer = await client.post(edge.url + COMPLETIONS, json=completion(echo=True), headers=headers)
            assert answer.status_code == 200, answer.text
            assert "embedder=1 question=1 ranker=2" in answer.json()["choices"][0]["text"]
            assert answer.headers["x-ipnext-snapshots"] == "embedder=1,llm=2,ranker=2"
    assert edge.counts(2, MODEL).substituted == 4
    assert edge.counts(2, MODEL).retries >= 1


async def test_a_rank_that_is_no_number_is_an_error_that_counts_as_non_finite(edge, client, ranker_host):
    async def script(_, __, body, writer):
        vector = base64.b64encode(struct.pack("<4f", math.nan, 1, 1, 1)).decode()
        count = len(json.loads(body)["input"])
        write(writer, 200, {"data": [{"index": place, "embedding": vector} for place in range(count)]})

    async with raw(script) as (embedder, llm):
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm.url]))
        answer = await client.post(edge.url + COMPLETIONS, json=completion())
        assert llm.requests == []
    assert answer.status_code == 500
    assert "holds NaN or infinity" in answer.json()["error"]["message"]
    assert edge.counts(1, MODEL).non_finite == 1


async def test_engines_of_all_parts_are_followed_and_hosts_are_not(edge, ranker_host, embedder, llm):
    edge.table(routed(1, embedder=[embedder], ranker=[ranker_host], llm=[llm]))
    assert edge.follower.routes.engine_urls.keys() == {embedder, llm}


async def test_what_an_embedding_engine_refuses_the_client_is_told(edge, client, ranker_host, llm):
    async with raw_engine(refusing(400, "the text has 900 tokens")) as embedder:
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm]))
        answer = await client.post(edge.url + COMPLETIONS, json=completion())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "part 'embedder': the text has 900 tokens"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"data": []}, "no vectors"),
        ({"data": [{"index": 0, "embedding": [1, 2, 3, 4]}]}, "1 vectors for 3 texts"),
        ([], "no vectors"),
    ],
)
async def test_an_answer_without_the_vectors_is_an_error_and_never_a_prompt(
    edge, client, ranker_host, llm, answer, text
):
    async def script(_, __, ___, writer):
        write(writer, 200, answer)

    async with raw_engine(script) as embedder:
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm]))
        given = await client.post(edge.url + COMPLETIONS, json=completion())
    assert given.status_code == 500
    assert "part 'embedder'" in given.json()["error"]["message"]


async def test_a_client_that_leaves_ends_the_steps_before(edge, client, ranker_host):
    async with raw(hanging) as (embedder, llm):
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm.url]))
        asking = asyncio.create_task(client.post(edge.url + COMPLETIONS, json=completion()))
        await eventually(lambda: len(embedder.requests) == 2, why=lambda: "both nodes are under way")
        assert edge.in_flight() == 1
        asking.cancel()
        await eventually(lambda: edge.in_flight() == 0, why=lambda: "the request has ended")
        await eventually(lambda: embedder.left == 2, why=lambda: "the engine's connections have ended")
        assert llm.requests == []
    assert edge.counts(1, MODEL).answers[499].seconds.count == 1


async def test_the_deadline_is_for_the_steps_before_too(edge, client, ranker_host):
    async with raw(hanging) as (embedder, llm):
        edge.table(routed(1, embedder=[embedder.url], ranker=[ranker_host], llm=[llm.url]))
        headers = {"x-ipnext-deadline-ms": "1500"}
        answer = await client.post(edge.url + COMPLETIONS, json=completion(), headers=headers)
        assert answer.status_code == 504
        assert "no answer has begun within the deadline of 1500 ms" in answer.json()["error"]["message"]
        await eventually(lambda: embedder.left == 2, why=lambda: "the engine's connections have ended")


async def test_a_model_of_one_part_may_have_a_prompt_too(edge, client, llm):
    prompt = {"template": "Be {tone}. {prompt}"}
    node = GraphNode(name="llm", part="llm", inputs={"prompt": "request.prompt", "tone": "request.tone"}, prompt=prompt)
    graph = PartGraph(nodes=(node,), outputs={"text": "llm.text"}).model_dump()
    one = served(1, graph=graph, inputs=(TensorSpec(name="tone", datatype="BYTES", shape=(-1,)),))
    edge.table(RoutedModel(model=MODEL, served=(one,), endpoints=(endpoint(llm, 1),)))
    answer = await client.post(edge.url + COMPLETIONS, json=completion(inputs={"tone": ["kind"]}, echo=True))
    assert answer.json()["choices"][0]["text"] == "Be kind. which?so-0 so-1"


async def test_inputs_of_a_model_without_such_nodes_go_to_its_engine_as_they_came(edge, client):
    async with raw_engine(generating) as llm:
        edge.serve(llm.url)
        await client.post(edge.url + COMPLETIONS, json=completion(model="llm"))
        ((_, body),) = llm.requests
    assert json.loads(body) == completion(model="llm")


@pytest.mark.parametrize("served_on", [True, False], ids=["still served", "served no more"])
async def test_an_engine_that_went_over_while_the_prompt_was_made_is_not_asked(edge, client, ranker_host, served_on):
    """It has the weights of another generation by then."""
    made = asyncio.Event()

    async def script(method, path, body, writer):
        await made.wait()
        await embedding()(method, path, body, writer)

    async with raw(script) as (embedder, llm):
        parts = {"embedder": [embedder.url], "ranker": [ranker_host]}
        begun, gone = (routed(1, **parts, llm=engines).model_copy(update={"swap": True}) for engines in ([llm.url], []))
        edge.table(begun)
        asking = asyncio.create_task(client.post(edge.url + COMPLETIONS, json=completion()))
        await eventually(lambda: embedder.requests, why=lambda: "the prompt is being made")
        edge.table(gone if served_on else begun.model_copy(update={"served": ()}))
        made.set()
        assert (await asking).status_code == 503
        assert llm.requests == []
