"""Embedding, ranking and generation as one model on the whole platform, with engines that stand in for vLLM.

Three new snapshots in lock-step.
"""

import re
import threading
import time
from collections import Counter

import httpx
import openai
import pytest
import yaml

from ipnext.errors import InvalidInput
from tests.genai.support.checkpoints import write_bert, write_llama
from tests.mixed import manifest
from tests.mixed_ranker import Ranker, export_ranker
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

REGION = "us-east"
CLIENTS = 2
CHANGE_SECONDS = 240
DOCUMENTS = ["short", "the longest of all", "of middle size"]
STAMPS = re.compile(r"embedder=(\d+) question=(\d+) ranker=(\d+)")
GENERATOR = re.compile(r"\nllm(\d+)-0")


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Number -> a directory for each part; what it answers carries the number."""
    root = tmp_path_factory.mktemp("snapshots")
    return {
        number: {
            "embedder": write_bert(root / f"embedder-{number}", stamp=number),
            "ranker": export_ranker(Ranker(number), root / f"ranker-{number}"),
            "llm": write_llama(root / f"llm-{number}", seed=number, stamp=number),
        }
        for number in (1, 2)
    }


@pytest.fixture(scope="module")
def platform(bare, snapshots):
    bare.client.apply(yaml.safe_dump(manifest()))
    publish(bare, snapshots[1])
    yield bare
    bare.client.wait_change(bare.client.delete("answers").id, timeout_seconds=CHANGE_SECONDS)


def publish(platform, parts):
    change = platform.client.publish("answers", parts)
    done = platform.client.wait_change(change.id, timeout_seconds=CHANGE_SECONDS)
    assert done.state == "done", done


class Load:
    """Clients that stream one answer after the other: which snapshots each was made of, as its text says."""

    def __init__(self, url):
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        self.whole, self.broken = [], []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *_):
        self.more()
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self):
        seen = len(self.whole)
        until(lambda: len(self.whole) > seen + 2 * CLIENTS or self.broken, why=lambda: str(self.broken))

    def _run(self):
        with openai.OpenAI(base_url=f"{self._url}/v1", api_key="none", timeout=60, max_retries=0) as client:
            while not self._over.is_set():
                try:
                    self.whole.append(ask(client))
                except (openai.APIError, httpx.HTTPError, AssertionError) as error:
                    self.broken.append(repr(error))
                time.sleep(0.1)


def ask(client):
    """(generation, snapshots by the header, snapshots by the text) of one streamed answer."""
    more = {"echo": True, "extra_body": {"inputs": {"documents": DOCUMENTS}}}
    raw = client.completions.with_raw_response.create(
        model="answers", prompt="which?", max_tokens=4, stream=True, **more
    )
    text = "".join(event.choices[0].text for event in raw.parse())
    assert text.startswith("Documents:\n[1] the longest of all score=18"), text
    (row,) = {tuple(map(int, row)) for row in STAMPS.findall(text)}
    proof = dict(pair.split("=") for pair in raw.headers["x-ipnext-snapshots"].split(","))
    told = tuple(int(proof[part]) for part in ("embedder", "embedder", "ranker", "llm"))
    return int(raw.headers["x-ipnext-generation"]), told, (*row, int(GENERATOR.search(text)[1]))


def test_each_part_runs_on_hosts_of_its_engine_and_the_model_is_listed(platform):
    url = platform.endpoints["gateways"][REGION]
    (card,) = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
    assert card["id"] == "answers"
    assert [tensor["name"] for tensor in card["ipnext"]["generations"][0]["inputs"]] == ["documents"]
    replicas = platform.client.model("answers").status.replicas
    assert {replica.key.part: bool(replica.engines) for replica in replicas} == {
        "embedder": True,
        "ranker": False,
        "llm": True,
    }


def test_three_new_snapshots_come_in_lock_step_and_go_back_so(platform, snapshots):
    url = platform.endpoints["gateways"][REGION]
    with Load(url) as load:
        publish(platform, snapshots[2])
        load.more()
        change = platform.client.rollback("answers")
        assert platform.client.wait_change(change.id, timeout_seconds=CHANGE_SECONDS).state == "done"

    assert load.broken == []
    assert [one for one in load.whole if set(one[1]) != {one[0]} or one[2] != one[1]] == []
    assert Counter(generation for generation, _, _ in load.whole).keys() == {1, 2}
    assert load.whole[-1][0] == 1


def test_another_prompt_takes_effect_by_an_apply_and_starts_nothing_anew(platform):
    engines = {p.pid for p in platform.found("mock_engine.py", "--model")}
    document = manifest()
    node = document["spec"]["graph"]["nodes"][-1]
    node["prompt"]["lists"]["documents"]["top"] = 1
    (applied,) = platform.client.apply(yaml.safe_dump(document))
    assert platform.client.wait_change(applied.change.id, timeout_seconds=CHANGE_SECONDS).state == "done"
    body = {"model": "answers", "prompt": "which?", "max_tokens": 1, "echo": True, "inputs": {"documents": DOCUMENTS}}
    url = platform.endpoints["gateways"][REGION]
    answer = httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=60)
    assert "[1] the longest of all" in answer.text
    assert "[2]" not in answer.text
    assert {p.pid for p in platform.found("mock_engine.py", "--model")} <= engines  # some may still be ending


def test_what_does_not_fit_the_graph_is_refused_before_any_traffic(platform, tmp_path):
    ranker = export_ranker(Ranker(3), tmp_path / "ranker", size=5)
    change = platform.client.publish("answers", {"ranker": ranker})
    done = platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)
    assert done.state == "refused"
    assert "embed.embedding -> rank.documents: gives FP32[-1, 4], but FP32[-1, 5] is taken" in done.message


def test_a_manifest_whose_graph_can_not_be_is_refused_at_apply(platform):
    document = manifest()
    document["spec"]["graph"]["outputs"] = {"score": "rank.score"}
    with pytest.raises(InvalidInput, match=r"graph\.outputs\.score: 'rank\.score' is not of 'generate'"):
        platform.client.apply(yaml.safe_dump(document))
