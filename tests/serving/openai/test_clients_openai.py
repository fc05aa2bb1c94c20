"""The unmodified `openai` client against a router.

Its engines are the mock engine and a real vLLM with a tiny random Llama.
"""

import asyncio
import json

import httpx
import openai
import pytest

from tests.genai.support.plain_engine import plain_engine
from tests.waiting import eventually, until

from .conftest import mock_engine, router_process

MESSAGES = [{"role": "user", "content": "say something"}]


MOCK = pytest.param("mock", marks=pytest.mark.integration)
VLLM = pytest.param("vllm", marks=[pytest.mark.genai, pytest.mark.timeout(1500)])


@pytest.fixture(scope="module")
def real_engine(lasting, plain_vllm, vllm_cache, tmp_path_factory):
    """URL of an engine of a host, and the name it answers by."""
    held = lasting.get("plain engine", lambda: plain_engine(plain_vllm, tmp_path_factory.mktemp("plain"), vllm_cache))
    return held.url, held.answers_as


@pytest.fixture(scope="module")
def named_engine(subprocesses):
    with mock_engine(name="word", served="llm@1") as url:
        yield url, "llm@1"


@pytest.fixture(params=[MOCK, VLLM])
def real(request):
    return request.param


@pytest.fixture
def any_engine(request, real):
    return request.getfixturevalue("real_engine" if real == "vllm" else "named_engine")


@pytest.fixture
async def asking(edge, any_engine):
    url, name = any_engine
    edge.serve(url, answers_as={url: name})
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


async def test_models(asking):
    listed = [model async for model in asking.models.list()]
    assert [model.id for model in listed] == ["llm"]
    assert (await asking.models.retrieve("llm")).owned_by == "ipnext"
    with pytest.raises(openai.NotFoundError):
        await asking.models.retrieve("absent")


async def test_chat(asking):
    answer = await asking.chat.completions.create(model="llm", messages=MESSAGES, max_tokens=5)
    assert answer.model == "llm"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


async def test_completion_and_the_generation_that_answered(asking):
    raw = await asking.completions.with_raw_response.create(model="llm", prompt="once upon", max_tokens=5)
    assert raw.headers["x-ipnext-generation"] == "1"
    assert raw.headers["x-ipnext-snapshots"] == "llm=10"
    assert raw.parse().usage.completion_tokens == 5


async def test_a_stream_says_the_same_as_a_whole_answer_and_tells_usage(asking):
    wanted = {"model": "llm", "messages": MESSAGES, "max_tokens": 64, "temperature": 0}
    whole = await asking.chat.completions.create(**wanted)
    text, usage, pieces = "", None, 0
    stream = await asking.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True})
    async for event in stream:
        pieces += 1
        usage = event.usage or usage
        text += "".join(choice.delta.content or "" for choice in event.choices)
    assert text == whole.choices[0].message.content
    assert usage.completion_tokens == 64
    assert pieces > 4


async def test_a_streamed_completion(asking):
    stream = await asking.completions.create(model="llm", prompt="once", max_tokens=6, stream=True, temperature=0)
    text = "".join([event.choices[0].text async for event in stream])
    whole = await asking.completions.create(model="llm", prompt="once", max_tokens=6, temperature=0)
    assert text == whole.choices[0].text


async def test_many_at_once(asking):
    async def one(number):
        stream = await asking.chat.completions.create(
            model="llm", messages=[{"role": "user", "content": f"number {number}"}], max_tokens=8, stream=True
        )
        return [event.choices[0].finish_reason async for event in stream][-1]

    assert await asyncio.gather(*(one(number) for number in range(8))) == ["length"] * 8


@pytest.mark.parametrize("real", [MOCK], indirect=True)
async def test_embeddings(asking):
    """Of real ones: tests/genai/platform/test_embeddings.py."""
    answer = await asking.embeddings.create(model="llm", input=["a", "bc"], encoding_format="float")
    assert len(answer.data) == 2


@pytest.mark.parametrize("real", [VLLM], indirect=True)
async def test_structured_output_and_other_fields_of_vllm_pass(asking):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "boolean"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    answer = await asking.chat.completions.create(
        model="llm",
        messages=MESSAGES,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["n"], bool)
    chosen = await asking.chat.completions.create(
        model="llm",
        messages=MESSAGES,
        max_tokens=20,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}, "top_k": 3},
    )
    assert chosen.choices[0].message.content in {"yes", "no"}


async def test_extensions_of_vllm_pass(edge, asking, real, client):
    tokens = (await client.post(f"{edge.url}/tokenize", json={"model": "llm", "prompt": "a b c"})).json()
    assert tokens["count"] >= 3
    if real == "vllm":
        back = await client.post(f"{edge.url}/detokenize", json={"model": "llm", "tokens": tokens["tokens"]})
        assert "a b c" in back.json()["prompt"]
        answer = await asking.responses.create(model="llm", input="hello", max_output_tokens=8)
        assert answer.status in {"incomplete", "completed"}


async def test_errors_are_raised_as_the_clients_types(edge, asking):
    with pytest.raises(openai.NotFoundError, match="Served: llm") as unknown:
        await asking.chat.completions.create(model="absent", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await asking.chat.completions.create(model="llm", messages=MESSAGES, max_tokens=-1)
    with pytest.raises(openai.NotFoundError, match="served: 1"):
        await asking.chat.completions.create(model="llm", messages=MESSAGES, extra_headers={"x-ipnext-generation": "9"})
    edge.serve()
    with pytest.raises(openai.InternalServerError) as none:
        await asking.chat.completions.create(model="llm", messages=MESSAGES)
    assert none.value.status_code == 503


def value(text, name):
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def running(engine):
    return value(httpx.get(f"{engine}/metrics", timeout=60).text, "vllm:num_requests_running{")


async def test_a_stream_that_is_closed_ends_the_engines_work(asking, any_engine, client):
    """vLLM counts no request whose client has left, so what is seen is that it runs nothing and made few tokens."""

    async def metric(name):
        return value((await client.get(f"{any_engine[0]}/metrics")).text, name)

    before = await metric("vllm:generation_tokens_total{")
    stream = await asking.chat.completions.create(
        model="llm", messages=MESSAGES, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    until(
        lambda: running(any_engine[0]) == 1, why=lambda: "the engine does not count it"
    )  # the loop would end the stream
    await stream.close()
    await eventually(lambda: not running(any_engine[0]), why=lambda: "the engine goes on")
    assert await metric("vllm:generation_tokens_total{") - before < 1500


def test_the_blocking_client(any_engine, tmp_path):
    """Through a router process of its own."""
    with router_process(tmp_path, any_engine[0]) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        stream = client.chat.completions.create(model="llm", messages=MESSAGES, max_tokens=4, stream=True)
        assert [event.choices[0].finish_reason for event in stream][-1] == "length"
        client.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_no_answer_of_another_snapshots_engine_is_passed_on(edge, any_engine, real, stream):
    url, _ = any_engine
    edge.serve(url, answers_as={url: "llm@0000000000000000"})
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        with pytest.raises(openai.InternalServerError, match="does not answer as llm@0000000000000000"):
            await client.chat.completions.create(model="llm", messages=MESSAGES, max_tokens=8, stream=stream)
        if real == "vllm":  # the mock has no such path
            with pytest.raises(openai.InternalServerError, match="does not answer as"):
                await client.responses.create(model="llm", input="say something", max_output_tokens=8, stream=stream)
    assert edge.router.engines.foreign.count("llm", 1) == (2 if real == "vllm" else 1)
