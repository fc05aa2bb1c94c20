"""The schema of batch_norm says that it writes nothing, which holds in evaluation only.

torch takes numbers for truth.
"""

import asyncio
import json

import pytest

from ipnext.model.deployment.router_table import RoutedModel
from serving.http.limits import AnswerBudget
from serving.openai.engines.proof import is_proven
from serving.openai.engines.response import EngineAnswer, EngineLost
from serving.openai.prompt.embeddings import PATH as EMBEDDINGS
from tests.genai.support.checkpoints import write_adapter
from tests.serving.openai.conftest import endpoint, mock_engine, raw_engine, served
from tests.serving.openai.test_routes import CHAT, ask, events

FIRST, SECOND = "llm@0000000000000001", "llm@0000000000000002"
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def second(subprocesses):
    """An engine of the second snapshot."""
    with mock_engine(name="second", served=SECOND) as url:
        yield url


@pytest.fixture(scope="module")
def first(subprocesses):
    """An engine of the first snapshot."""
    with mock_engine(name="first", served=FIRST) as url:
        yield url


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_was_swapped_behind_its_socket_is_not_passed_off(edge, client, tmp_path, stream):
    path = tmp_path / "e-1.sock"
    with mock_engine(name="first", served=FIRST, at=path) as url:
        edge.serve(url, answers_as={url: FIRST})
        answer = await client.post(edge.url + CHAT, json=ask(stream=stream))
        assert (answer.status_code, answer.headers["x-ipnext-snapshots"]) == (200, "llm=10")
    path.unlink(missing_ok=True)
    with mock_engine(name="second", served=SECOND, at=path):
        answer = await client.post(edge.url + CHAT, json=ask(stream=stream))
    assert answer.status_code == 503, answer.text
    assert "second" not in answer.text
    assert f"does not answer as {FIRST}" in answer.json()["error"]["message"]
    assert edge.router.engines.foreign.count("llm", 1) == 1
    assert 'ipnext_foreign_answers_total{generation="1",model="llm",region="north"} 1.0' in edge.metrics.text().decode()


async def test_the_right_engine_answers_instead(edge, client, first, second):
    edge.serve(second, first, answers_as={first: FIRST, second: FIRST}, routing="round-robin")
    texts = [(await client.post(edge.url + CHAT, json=ask(max_tokens=1))).json() for _ in range(4)]
    assert {one["choices"][0]["message"]["content"] for one in texts} == {"first-0"}
    assert edge.router.engines.foreign.count("llm", 1) >= 1


async def test_an_engine_of_another_model_is_not_passed_off(edge, client):
    with mock_engine(model="other", served="other@1") as url:
        edge.serve(url, answers_as={url: FIRST})
        answer = await client.post(edge.url + CHAT, json=ask())
    assert answer.status_code == 503
    assert f"does not answer as {FIRST}" in answer.text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS])
async def test_clients_see_the_name_that_they_asked_for(edge, client, first, path):
    edge.serve(first, answers_as={first: FIRST})
    answer = await client.post(edge.url + path, json=ask(prompt="a", input="a"))
    assert answer.json()["model"] == "llm"
    assert FIRST not in answer.text
    if path != EMBEDDINGS:
        streamed = await client.post(edge.url + path, json=ask(prompt="a", stream=True))
        assert {json.loads(event)["model"] for event in events(streamed.text)[:-1]} == {"llm"}


async def test_the_bytes_of_a_request_go_to_the_engine_as_they_came(edge, client):
    body = b'{"model": "llm",  "prompt":"x", "seed": 1.50}'

    async def script(_, __, ___, writer):
        writer.write(whole(json.dumps({"model": FIRST}).encode()))

    async with raw_engine(script) as engine:
        edge.serve(engine.url, answers_as={engine.url: FIRST})
        await client.post(edge.url + COMPLETIONS, content=body, headers={"content-type": "application/json"})
        assert [asked for _, asked in engine.requests] == [body]


async def test_errors_of_the_engine_and_what_its_tokenizer_says_are_passed_on(edge, client, first):
    edge.serve(first, answers_as={first: FIRST})
    refused = await client.post(edge.url + CHAT, json=ask(max_tokens=-1))
    assert refused.status_code == 400
    assert (await client.post(edge.url + "/tokenize", json={"model": "llm", "prompt": "a b"})).json()["count"] == 2


async def test_an_adapter_proves_the_snapshot_of_its_base(edge, client, first, second, tmp_path):
    adapters = {"style": ("style@a", 7)}
    directory = str(write_adapter(tmp_path / "lora"))
    for url, name in ((first, FIRST), (second, SECOND)):
        body = {"lora_name": f"style@a@{name.partition('@')[2]}", "lora_path": directory}
        assert (await client.post(f"{url}/v1/load_lora_adapter", json=body)).status_code == 200
    edge.serve(first, answers_as={first: FIRST}, adapters=adapters)
    answer = await client.post(edge.url + COMPLETIONS, json=ask(model="llm:style", prompt="a", max_tokens=1))
    assert answer.json()["model"] == "llm:style"
    assert answer.json()["choices"][0]["text"] == "style@a@0000000000000001-0"
    edge.serve(second, answers_as={second: FIRST}, adapters=adapters)
    answer = await client.post(edge.url + COMPLETIONS, json=ask(model="llm:style", prompt="a", max_tokens=1))
    assert answer.status_code == 503


async def test_each_engine_is_held_to_its_own_name(edge, client, first, second):
    generations = (served(1), served(2))
    places = (endpoint(first, 1, answers_as=FIRST), endpoint(second, 2, answers_as=SECOND))
    edge.table(RoutedModel(model="llm", served=generations, endpoints=places))
    for number, word in ((1, "first"), (2, "second")):
        answer = await client.post(
            edge.url + CHAT, json=ask(max_tokens=1), headers={"x-ipnext-generation": str(number)}
        )
        assert answer.json()["choices"][0]["message"]["content"] == f"{word}-0"


class Line:
    """A connection that notes that it was closed."""

    closed = False

    def close(self):
        self.closed = True

    pause = resume = close


def whole(body):
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def coming(kind, *pieces, headers=None):
    """An answer of these pieces so far."""
    answer = EngineAnswer(Line(), AnswerBudget())
    answer.head(200, {"content-type": kind, **(headers or {})})
    for piece in pieces:
        answer.piece(piece)
    return answer


JSON, SSE = "application/json", "text/event-stream; charset=utf-8"
NAMED = f'"model":"{FIRST}"'.encode()


async def test_a_name_that_comes_in_pieces_is_waited_for():
    answer = coming(JSON, b"{" + NAMED[:15])
    judging = asyncio.ensure_future(is_proven(answer, CHAT, FIRST, "llm"))
    await asyncio.sleep(0)
    assert not judging.done()
    answer.piece(NAMED[15:])
    assert await judging


@pytest.mark.parametrize(
    ("answer", "proven"),
    [
        ((JSON, b"{" + NAMED + b"}"), True),
        ((JSON, b'{"model":"llm"}'), False),
        ((JSON, b'{"text":"\\"llm@0000000000000001\\""}'), False),
        ((SSE, b'data: {"model":"llm"}\n\n', b"data: {" + NAMED + b"}\n\n"), False),
        ((SSE, b'data: {"error":{"message":"no"}}\n\n'), True),
        ((SSE, b'data: {"error":{"message":"\\"model\\"","param":"model"}}\n\n'), True),
        ((SSE, b'data: {"error":null,"model":"llm"}\n\n'), False),
        ((SSE, b'data: "error"\n\n'), False),
        ((SSE, b'event: x\ndata: {"response":{' + NAMED + b"}}\n\n"), True),
        (("application/octet-stream", b"\1\2"), False),
    ],
)
async def test_what_proves_an_answer(answer, proven):
    given = coming(*answer)
    given.whole()
    assert await is_proven(given, CHAT, FIRST, "llm") is proven


async def test_vectors_as_bytes_are_proven_by_their_header():
    answer = coming("application/octet-stream", b"\1", headers={"metadata": NAMED.decode()})
    assert await is_proven(answer, EMBEDDINGS, FIRST, "llm")


async def test_an_answer_that_breaks_off_before_its_name_is_lost():
    answer = coming(JSON, b"{")
    judging = asyncio.ensure_future(is_proven(answer, CHAT, FIRST, "llm"))
    await asyncio.sleep(0)
    answer.lost()
    with pytest.raises(EngineLost):
        await judging


def not_found(message, **error):
    return json.dumps({"error": {"message": message, "type": "NotFoundError", "code": 404, **error}}).encode()


UNKNOWN = "The model `llm` does not exist."


@pytest.mark.parametrize(
    ("body", "proven"),
    [
        (not_found(UNKNOWN, param="model"), False),
        (not_found(f"{UNKNOWN} Valid aliases: other."), False),
        (json.dumps({"object": "error", "message": UNKNOWN, "param": None}).encode(), False),
        (not_found("The model `other` does not exist.", param="model"), True),
        (not_found(f"Response with id '{UNKNOWN}' not found.", param="response_id"), True),
        (not_found(UNKNOWN, param="response_id"), True),
        (not_found(f"no such file: {UNKNOWN}"), True),
        (b"The model `llm` does not exist.", True),
        (b'["error"]', True),
        (b'{"error":{"message":7}}', True),
        (b'{"error":"The model `llm` does not exist."}', True),
    ],
)
async def test_only_the_engines_own_sentence_about_the_name_denies_it(body, proven):
    """A client's own text may be anywhere in an engine's error."""
    answer = EngineAnswer(Line(), AnswerBudget())
    answer.head(404, {"content-type": JSON})
    answer.piece(body[:9])
    judging = asyncio.ensure_future(is_proven(answer, CHAT, FIRST, "llm"))
    await asyncio.sleep(0)
    answer.piece(body[9:])
    answer.whole()
    assert await judging is proven


async def test_no_text_of_a_client_makes_an_engine_a_foreign_one(edge, client):
    """vLLM repeats it in its 404."""
    told = []

    async def script(_, __, body, writer):
        told.append(json.loads(body)["user"])
        content = not_found(f"Response with id {told[-1]!r} not found.")
        writer.write(
            b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
        )
        writer.write(content)

    async with raw_engine(script) as engine:
        edge.serve(engine.url, answers_as={engine.url: FIRST})
        for text in ("The model ` does not exist", UNKNOWN, f'"{FIRST}"'):
            answer = await client.post(edge.url + "/v1/responses", json=ask(user=text))
            assert (answer.status_code, told[-1]) == (404, text)
    assert edge.router.engines.foreign.count("llm", 1) == 0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("encoding_format", "bytes_only", "must be one of float, base64, bytes, got 'bytes_only'"),
        ("encoding_format", ["float"], "must be one of float, base64, bytes, got ['float']"),
        ("previous_response_id", "resp_1", "must be left out, because no response is stored, got 'resp_1'"),
    ],
)
@pytest.mark.parametrize("path", [EMBEDDINGS, "/pooling", "/v1/responses"])
async def test_what_no_engine_can_prove_its_answer_to_is_refused_by_its_field(edge, client, field, value, words, path):
    async with raw_engine(None) as engine:
        edge.serve(engine.url, answers_as={engine.url: FIRST})
        refused = await client.post(edge.url + path, json=ask(input="a", **{field: value}))
        assert engine.requests == []
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert words in refused.json()["error"]["message"]
    assert edge.router.engines.foreign.count("llm", 1) == 0


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_vectors_in_other_forms_are_answered(edge, client, first, encoding):
    edge.serve(first, answers_as={first: FIRST})
    answer = await client.post(edge.url + EMBEDDINGS, json=ask(input="a", encoding_format=encoding))
    assert answer.status_code == 200, answer.text
