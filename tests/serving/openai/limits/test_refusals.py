"""Errors of the OpenAI side: their status, and OpenAI's form."""

import asyncio

import pytest

from ipnext.model.deployment.router_table import RoutedModel
from serving.openai.routes import PATHS
from tests.serving.openai.conftest import endpoint, raw_engine, served

CHAT = "/v1/chat/completions"
BODY = {"model": "llm", "messages": [{"role": "user", "content": "hello"}]}


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]


async def test_an_unknown_model_is_refused_with_the_known_ones(edge, engine, client):
    edge.serve(engine)
    found = error(await client.post(edge.url + CHAT, json={**BODY, "model": "absent"}), 404)
    assert found["code"] == "model_not_found"
    assert found["param"] == "model"
    assert "Served: llm" in found["message"]


async def test_a_ranking_model_is_no_model_here_and_one_that_generates_none_of_v2(edge, engine, client):
    ranker = RoutedModel(model="ranker", served=(served(1, engines={}),), endpoints=(endpoint(engine, 1),))
    llm = RoutedModel(model="llm", served=(served(1),), endpoints=(endpoint(engine, 1),))
    edge.table(ranker, llm)
    found = error(await client.post(edge.url + CHAT, json={**BODY, "model": "ranker"}), 404)
    assert "/v2/models/ranker/infer" in found["message"]
    listed = (await client.get(edge.url + "/v1/models")).json()
    assert [one["id"] for one in listed["data"]] == ["llm"]
    assert "ask at /v1" in (await client.post(edge.url + "/v2/models/llm/infer", json={})).json()["error"]
    assert "/v1/models/llm" in (await client.get(edge.url + "/v2/models/llm")).json()["error"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "field"),
    [
        (b"{", "application/json", 400, "body"),
        (b"[]", "application/json", 400, "body"),
        (b"{}", "application/json", 400, "model"),
        (b'{"model": 3}', "application/json", 400, "model"),
        (b"{}", "text/plain", 415, "content-type"),
    ],
)
async def test_a_body_without_a_model_is_refused(edge, engine, client, content, kind, status, field):
    edge.serve(engine)
    answer = await client.post(edge.url + CHAT, content=content, headers={"content-type": kind})
    assert error(answer, status)["param"] == field


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("field", ["kv_transfer_params", "ec_transfer_params", "vllm_xargs"])
async def test_what_only_the_platform_sends_to_engines_is_refused_and_named(edge, client, path, field):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        for value in (0, {}, {"kv_transfer_params": 0}, "x"):
            found = error(await client.post(edge.url + path, json={**BODY, field: value, "n": 2}), 400)
            assert (found["param"], found["message"].partition(":")[0]) == (field, field)
        assert engine.requests == []
        assert (await client.post(edge.url + path, json={**BODY, field: None})).status_code == 200


async def test_headers_that_steer_an_engine_are_not_passed(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    steering = {"x-data-parallel-rank": "7", "x-vllm-priority": "-9", "x-session-id": "s", "x-any-other": "1"}
    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + CHAT, json=BODY, headers={**steering, "traceparent": "00-1-2-01"})
        assert answer.status_code == 200
        [(head, _)] = engine.requests
    assert b"traceparent: 00-1-2-01" in head
    assert not any(name.encode() in head.lower() for name in steering)


async def test_a_packed_body_is_refused_by_the_header_that_says_so(edge, engine, client):
    edge.serve(engine)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    found = error(await client.post(edge.url + CHAT, content=b"..", headers=headers), 415)
    assert found["param"] == "content-encoding"
    assert "got 'gzip'" in found["message"]


async def test_a_path_of_another_task_than_the_engines_is_refused_in_words(edge, client):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 22\r\n\r\n")
        await writer.drain()
        writer.write(b'{"detail":"Not Found"}')

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + "/v1/embeddings", json={"model": "llm", "input": "a"})
    assert "model llm does not answer /v1/embeddings" in error(answer, 404)["message"]
    assert answer.headers["x-ipnext-generation"] == "1"
    assert edge.counts().answers[404].seconds.count == 1


async def test_what_an_engine_itself_does_not_find_is_passed_on_as_it_says_it(edge, client):
    told = b'{"error":{"message":"no such response","type":"x","param":null,"code":404}}'

    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n%s" % (len(told), told))

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + "/v1/responses", json={"model": "llm", "input": "a"})
    assert answer.content == told


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "model is required: the name of a model. Served: llm"),
        ({"model": None}, "model is required: the name of a model. Served: llm"),
        ({"model": ""}, "model is required: the name of a model. Served: llm"),
        ({"model": 3}, "model must be a text, got 3: the name of a model. Served: llm"),
    ],
)
async def test_a_body_without_a_model_is_told_which_there_are(edge, engine, client, body, words):
    edge.serve(engine)
    assert error(await client.post(edge.url + CHAT, json=body), 400)["message"] == words


async def test_what_a_refusal_repeats_of_the_request_is_cut(edge, engine, client):
    ranker = RoutedModel(model="ranker", served=(served(1, engines={}),), endpoints=(endpoint(engine, 1),))
    llm = RoutedModel(model="llm", served=(served(1),), endpoints=(endpoint(engine, 1),))
    edge.table(ranker, llm)
    text = "k" * 2**20
    bodies = (
        {"model": text},
        {"model": f"ranker:{text}"},
        {"model": f"llm:{text}"},
        {"model": [text]},
        {"model": {text: text}},
        {"model": "llm", text: {"image_url": "http://h/"}},
    )
    for body in bodies:
        answer = await client.post(edge.url + CHAT, json=body)
        assert answer.status_code in {400, 404}
        assert len(answer.content) < 1000


async def test_a_generation_that_is_not_served_is_refused(edge, engine, client):
    edge.serve(engine)
    answer = await client.post(edge.url + CHAT, json=BODY, headers={"x-ipnext-generation": "7"})
    assert "served: 1" in error(answer, 404)["message"]


async def test_without_an_engine_the_client_is_to_come_back(edge, client):
    edge.serve()
    answer = await client.post(edge.url + CHAT, json=BODY)
    assert error(answer, 503)["type"] == "ServiceUnavailableError"
    assert answer.headers["retry-after"] == "1"


async def test_a_full_model_says_so(edge, engine, client):
    edge.serve(engine)
    body = {**BODY, "max_tokens": 300}
    asking = [asyncio.create_task(client.post(edge.url + CHAT, json=body)) for _ in range(12)]
    answers = await asyncio.gather(*asking)
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 8 + [429] * 4
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error(refused, 429)["type"] == "RateLimitError"
    assert refused.headers["retry-after"] == "1"


async def test_a_bad_deadline_is_refused(edge, engine, client):
    edge.serve(engine)
    answer = await client.post(edge.url + CHAT, json=BODY, headers={"x-ipnext-deadline-ms": "soon"})
    assert error(answer, 400)["param"] == "x-ipnext-deadline-ms"


async def test_what_is_not_there_is_refused_in_the_same_form(edge, engine, client):
    edge.serve(engine)
    for method, path in (("GET", CHAT), ("POST", "/v1/models"), ("GET", "/v1"), ("GET", "/v1/files")):
        message = error(await client.request(method, edge.url + path), 404)["message"]
        assert message.startswith(f"{method} {path} is not served here; served: GET /v1/models, ")
        assert CHAT in message


async def test_models_are_told_with_their_generations(edge, engine, client):
    both = (served(3, context=4096), served(4, context=2048))
    edge.table(RoutedModel(model="llm", served=both, endpoints=(endpoint(engine, 3),)))
    card = (await client.get(edge.url + "/v1/models/llm")).json()
    assert card["object"] == "model"
    assert card["max_model_len"] == 2048, "what is certain of every generation that may answer"
    assert [(one["generation"], one["ready"]) for one in card["ipnext"]["generations"]] == [(3, True), (4, False)]
    error(await client.get(edge.url + "/v1/models/absent"), 404)


async def test_an_adapter_of_a_model_without_any_is_refused(edge, engine, client):
    edge.serve(engine)
    found = error(await client.post(edge.url + CHAT, json={**BODY, "model": "llm:polite"}), 404)
    assert found["code"] == "model_not_found"
    assert (
        "'llm:polite' does not exist here: generation 1 of llm has no such adapter. Adapters: none" in found["message"]
    )
