"""Prefill and decode as two parts on the whole platform, from one publish to an answer through Envoy.

The engines are mocks.
"""

import httpx
import pytest

from tests.genai.support.checkpoints import write_llama
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.e2e

REGION = "us-east"

MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: chat, owner: tests}
spec:
  task: generation
  parts:
    - name: prefill
      engine: vllm
      hardware: [{kind: cpu, units: 1, qps: 50}]
      settings: {kvTransfer: {connector: nixl, role: prefill}}
    - name: decode
      engine: vllm
      hardware: [{kind: cpu, units: 1, qps: 50}]
      settings: {kvTransfer: {connector: nixl, role: decode}}
  demand: [{region: us-east, qps: 20}]
  latencyToleranceMs: 500
  rollout: {canary: 1, maxStep: 1, deadlineSeconds: 180}
"""


@pytest.fixture(scope="module")
def platform(bare):
    client = bare.client
    client.apply(MANIFEST)
    yield bare
    client.wait_change(client.delete("chat").id, timeout_seconds=PATIENCE_SECONDS)


def published(platform, **parts):
    change = platform.client.publish("chat", parts)
    return platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)


def answered(platform, prompt):
    url = platform.endpoints["gateways"][REGION]
    body = {"model": "chat", "prompt": prompt, "max_tokens": 4}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)


def test_one_checkpoint_is_published_for_both_and_one_hands_over_to_the_other(platform, tmp_path):
    one, other = (write_llama(tmp_path / f"hf-{seed}", seed=seed) for seed in (1, 2))
    done = published(platform, prefill=one, decode=one)
    assert done.state == "done", done
    words = " ".join(f"word{number}" for number in range(40))
    answer = answered(platform, words)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ipnext-snapshots"] == "decode=1,prefill=1"
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (40, 40)

    refused = published(platform, decode=other)
    assert (refused.state, refused.reason) == ("refused", "SchemaMismatch")
    assert "snapshot 1 of 'prefill'" in refused.message
    assert "snapshot 2 of 'decode'" in refused.message
    assert answered(platform, words).headers["x-ipnext-generation"] == "1"

    done = published(platform, prefill=other, decode=other)
    assert done.state == "done", done
    assert answered(platform, words).headers["x-ipnext-snapshots"] == "decode=2,prefill=2"
