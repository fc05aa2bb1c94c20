"""A model that embeds on the whole platform with real vLLM.

Published, and asked through Envoy by the unmodified openai client.
"""

import httpx
import openai
import pytest

from tests.genai.support.serving_benchmark import benchmarked
from tests.genai.support.tiny_models import write_tiny_bert
from tests.processes import client_of

pytestmark = [pytest.mark.genai, pytest.mark.timeout(1800)]

REGION = "us-east"
START_SECONDS = 900
"""A busy machine; on a quiet one half a minute."""
TEXTS = ["the quick brown fox", "jumps over", "the lazy dog"]

MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: vectors, owner: tests}
spec:
  task: embedding
  parts:
    - name: encoder
      engine: vllm
      hardware: [{kind: cpu, units: 1, qps: 50}]
      settings: {runner: pooling, maxModelLen: 64, kvCacheGib: 0.1, enforceEager: true, startSeconds: 900}
  demand: [{region: us-east, qps: 20}]
  latencyToleranceMs: 500
  rollout: {canary: 1, maxStep: 1, deadlineSeconds: 900}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("bert") / "bert", seed=1)


@pytest.fixture(scope="module")
def platform(vllm_platform, checkpoint):
    client = vllm_platform.client
    client.apply(MANIFEST)
    done = client.wait_change(client.publish("vectors", {"encoder": checkpoint}).id, timeout_seconds=START_SECONDS)
    assert done.state == "done", done
    yield vllm_platform
    client.wait_change(client.delete("vectors").id, timeout_seconds=START_SECONDS)


@pytest.fixture
def client(platform):
    return openai.OpenAI(base_url=platform.endpoints["gateways"][REGION] + "/v1", api_key="none", timeout=120)


def engine(platform):
    """A client of the one engine, by its command line."""
    (server, *_) = platform.found("--served-model-name", "vectors")
    return client_of(server)


def test_vectors_are_those_of_the_engine_asked_directly(platform, client):
    body = {"model": "vectors", "input": TEXTS, "encoding_format": "float"}
    with engine(platform) as asked:
        direct = asked.post("/v1/embeddings", json=body).json()["data"]
    answer = client.embeddings.with_raw_response.create(model="vectors", input=TEXTS)
    assert answer.headers["x-ipnext-snapshots"] == "encoder=1"
    vectors = [item.embedding for item in answer.parse().data]
    assert vectors == [item["embedding"] for item in direct]
    assert len({tuple(vector) for vector in vectors}) == len(TEXTS)
    assert {len(vector) for vector in vectors} == {64}
    floats = client.embeddings.create(model="vectors", input=TEXTS, encoding_format="float")
    assert [item.embedding for item in floats.data] == vectors


def test_vllms_own_serving_benchmark_is_answered(platform, programs, checkpoint, tmp_path):
    url, endpoints = platform.endpoints["gateways"][REGION], {"openai-embeddings": "/v1/embeddings"}
    given = {"model": "vectors", "tokenizer": checkpoint, "folder": tmp_path, "requests": 6}
    (told,) = benchmarked(programs, url, endpoints, **given).values()
    assert (told["completed"], set(told["errors"])) == (6, {""})


def test_errors_have_openais_form(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="vectors", input="too long " * 100)
    assert caught.value.body["code"] == 400
    assert "64" in caught.value.body["message"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="nobody", input="x")
    assert caught.value.body["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="model vectors does not answer /v1/chat/completions"):
        client.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "hello"}])
    batch = {"model": "vectors", "messages": [[{"role": "user", "content": "hello"}]]}
    answer = httpx.post(f"{client.base_url}chat/completions/batch", json=batch, timeout=120)
    assert answer.status_code == 404
    assert "model vectors does not answer /v1/chat/completions/batch" in answer.json()["error"]["message"]
