"""Embedding and generation by real vLLM, ranking by torch, as one model on the whole platform.

Published, and asked by the `openai` client.
"""

import httpx
import numpy as np
import openai
import pytest
import yaml

from tests.mixed import manifest
from tests.mixed_ranker import DotRanker, export_ranker
from tests.processes import unix_transport

pytestmark = [pytest.mark.genai, pytest.mark.timeout(1800)]

REGION = "us-east"
START_SECONDS = 900
"""A busy machine; on a quiet one half a minute for each engine."""
SIZE = 64
SETTINGS = {"maxModelLen": 512, "maxNumSeqs": 8, "kvCacheGib": 0.1, "enforceEager": True, "dtype": "bfloat16"}
DOCUMENTS = [
    "tides follow the moon",
    "llamas live in the Andes",
    "bread is baked from flour",
    "a prime has two divisors",
]
QUESTION = "where do llamas live?"
TOKENS = 128
"""Many: vLLM puts those into one event that were made while its server had no processor."""
PROMPT = {
    "template": "Documents:\n{documents}Question: {prompt}\n",
    "lists": {"documents": {"item": "[{number}] {text}\n", "order": "score", "top": 1}},
}


def document():
    """tests.mixed's manifest, with settings for tiny models and a ranker that multiplies vectors."""
    found = manifest(rollout={"canary": 1, "maxStep": 1, "deadlineSeconds": START_SECONDS})
    embedder, _, llm = found["spec"]["parts"]
    embedder["settings"] = {**SETTINGS, "runner": "pooling", "startSeconds": START_SECONDS}
    llm["settings"] = {**SETTINGS, "startSeconds": START_SECONDS}
    generate = found["spec"]["graph"]["nodes"][-1]
    generate["inputs"] = {"prompt": "request.prompt", "text": "request.documents", "score": "rank.score"}
    generate["prompt"] = PROMPT
    return found


@pytest.fixture(scope="module")
def platform(tmp_path_factory, vllm_platform, llamas):
    ranker = export_ranker(DotRanker(), tmp_path_factory.mktemp("mixed") / "ranker", size=SIZE)
    client = vllm_platform.client
    client.apply(yaml.safe_dump(document()))
    change = client.publish("answers", {"embedder": llamas[1], "ranker": ranker, "llm": llamas[2]})
    done = client.wait_change(change.id, timeout_seconds=START_SECONDS)
    assert done.state == "done", done
    yield vllm_platform
    client.wait_change(client.delete("answers").id, timeout_seconds=START_SECONDS)


@pytest.fixture
def client(platform):
    with openai.OpenAI(base_url=platform.endpoints["gateways"][REGION] + "/v1", api_key="none", timeout=120) as client:
        yield client


def wanted(platform):
    """The prompt, by the vectors of the embedding engine itself."""
    (replica,) = [r for r in platform.client.model("answers").status.replicas if r.key.part == "embedder"]
    asked = {"model": "answers", "input": [QUESTION, *DOCUMENTS], "encoding_format": "float"}
    transport = unix_transport(replica.engines[1].removeprefix("unix://"))
    with httpx.Client(base_url="http://localhost", transport=transport, timeout=120) as engine:
        told = engine.post("/v1/embeddings", json=asked).raise_for_status().json()["data"]
    query, *vectors = (np.array(one["embedding"], np.float32) for one in told)
    scores = [float(query @ vector) for vector in vectors]
    assert len(query) == SIZE
    second, first = sorted(scores)[-2:]
    assert first - second > 1e-3, "the documents' scores are too near each other to prove anything"
    return f"Documents:\n[1] {DOCUMENTS[int(np.argmax(scores))]}\nQuestion: {QUESTION}\n"


def test_the_top_document_by_the_ranker_is_in_the_prompt_of_a_streamed_completion(platform, client):
    prompt = wanted(platform)
    asked = {"model": "answers", "prompt": QUESTION, "max_tokens": TOKENS, "temperature": 0, "echo": True}
    more = {"extra_body": {"inputs": {"documents": DOCUMENTS}, "ignore_eos": True}}
    raw = client.completions.with_raw_response.create(**asked, **more, stream=True)
    pieces = [event.choices[0].text for event in raw.parse() if event.choices]
    assert "".join(pieces).startswith(prompt)
    assert len(pieces) > 1
    assert raw.headers["x-ipnext-generation"] == "1"
    assert raw.headers["x-ipnext-snapshots"] == "embedder=1,llm=1,ranker=1"
    whole = client.completions.create(**asked, **more)
    assert whole.choices[0].text == "".join(pieces)


def test_a_chat_is_streamed_over_a_prompt_of_as_many_tokens_as_was_composed(platform, client):
    """The tiny model's tokens are bytes, and its template writes role and content of each message."""
    messages = [{"role": "user", "content": QUESTION}]
    stream = client.chat.completions.create(
        model="answers",
        messages=messages,
        max_tokens=4,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"inputs": {"documents": DOCUMENTS}, "ignore_eos": True},
    )
    usage = [event.usage for event in stream if event.usage][-1]
    assert usage.completion_tokens == 4
    assert usage.prompt_tokens == len(f"user: {wanted(platform)}\nassistant: ")


def test_a_text_that_is_too_long_to_embed_is_refused_in_words(client):
    with pytest.raises(openai.BadRequestError, match=r"part 'embedder': .*512"):
        client.completions.create(
            model="answers", prompt=QUESTION, extra_body={"inputs": {"documents": ["long " * 400]}}, max_tokens=1
        )


def test_an_answer_is_one_of_the_choices_that_the_client_gives(client):
    answer = client.chat.completions.create(
        model="answers",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=16,
        extra_body={"inputs": {"documents": DOCUMENTS}, "structured_outputs": {"choice": ["Andes", "moon"]}},
    )
    assert answer.choices[0].message.content in {"Andes", "moon"}
    assert answer.choices[0].finish_reason == "stop"


def test_a_prompt_that_is_too_long_once_it_is_made_is_refused_in_the_generators_words(client):
    """Question and document have room in the embedder each, and not together in the generator; a token is a byte."""
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512") as caught:
        client.completions.create(
            model="answers", prompt="where " * 50, extra_body={"inputs": {"documents": ["llama " * 50]}}, max_tokens=1
        )
    assert "part" not in caught.value.body["message"]
    assert caught.value.body["code"] == 400
