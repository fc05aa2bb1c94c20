"""A generative model on the whole platform.

Published, answered through Envoy, rolled over under streams, rolled back.
"""

import json
import signal
from collections import Counter
from contextlib import suppress

import httpx
import openai
import psutil
import pytest

from ipnext.errors import InvalidInput
from tests.genai.support.checkpoints import write_vllm_adapter
from tests.genai.support.serving_benchmark import benchmarked
from tests.genai.support.streaming_clients import STREAMS, StreamingClients, greedy_body
from tests.processes import get_from, gone
from tests.waiting import until

pytestmark = [pytest.mark.genai, pytest.mark.timeout(1800)]

REGION = "us-east"
START_SECONDS = 900
"""A busy machine; on a quiet one half a minute."""
MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: chat, owner: tests}
spec:
  task: generation
  parts:
    - name: llm
      engine: vllm
      hardware: [{kind: cpu, units: 1, qps: 50}]
      settings:
        {maxModelLen: 512, maxNumSeqs: 16, kvCacheGib: 0.1, enforceEager: true, dtype: bfloat16, startSeconds: 900}
  demand: [{region: us-east, qps: 20}]
  latencyToleranceMs: 500
  rollout: {canary: 1, maxStep: 1, deadlineSeconds: 900}
"""


@pytest.fixture(scope="module")
def platform(vllm_platform):
    client = vllm_platform.client
    client.apply(MANIFEST)
    yield vllm_platform
    client.wait_change(client.delete("chat").id, timeout_seconds=START_SECONDS)


@pytest.fixture(scope="module")
def checkpoints(llamas):
    return llamas


@pytest.fixture(scope="module")
def first(platform, checkpoints):
    """Generation 1 serves; what was explained on its way there is in `told`."""
    change, told = platform.client.publish("chat", {"llm": checkpoints[1]}), set()

    def done():
        told.add(platform.client.explain("chat").message)
        return (now := platform.client.change(change.id)).state.final and now

    ended = until(done, seconds=START_SECONDS)
    assert ended.state == "done", ended
    return told


@pytest.fixture
def client(platform):
    return openai.OpenAI(base_url=platform.endpoints["gateways"][REGION] + "/v1", api_key="none", timeout=120)


def test_a_published_checkpoint_answers_the_openai_client(first, client):
    assert [card.id for card in client.models.list()] == ["chat"]
    answer = client.chat.completions.with_raw_response.create(
        model="chat", messages=[{"role": "user", "content": "hello"}], max_tokens=8
    )
    assert answer.headers["x-ipnext-generation"] == "1"
    assert answer.headers["x-ipnext-snapshots"] == "llm=1"
    assert answer.parse().usage.completion_tokens > 0
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="x")


def test_a_batch_of_conversations_is_answered_by_one_generation_each_as_it_is_alone(first, client):
    given = [[{"role": "user", "content": text}] for text in ("hello", "once upon a time", "the fox")]
    asked = {"model": "chat", "max_tokens": 8, "temperature": 0}
    batch = httpx.post(f"{client.base_url}chat/completions/batch", json={**asked, "messages": given}, timeout=120)
    assert batch.status_code == 200, batch.text
    assert (batch.headers["x-ipnext-generation"], batch.headers["x-ipnext-snapshots"]) == ("1", "llm=1")
    told = batch.json()
    alone = [client.chat.completions.create(**asked, messages=one).choices[0].message.content for one in given]
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in told["choices"]] == alone
    assert (told["model"], told["object"]) == ("chat", "chat.completion")
    assert told["usage"]["completion_tokens"] == 24


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": [{"role": "user", "content": "no list of conversations"}]}, None),
        ({"messages": []}, None),
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
    ],
)
def test_a_bad_batch_is_refused_in_openais_form_by_whoever_sees_it(first, client, change, param):
    body = {"model": "chat", "max_tokens": 2, "messages": [[{"role": "user", "content": "x"}]], **change}
    answer = httpx.post(f"{client.base_url}chat/completions/batch", json=body, timeout=120)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"]
    assert error["code"] == 400
    assert param is None or error["param"] == param


BENCHMARKS = {"openai-chat": "/v1/chat/completions", "openai": "/v1/completions"}


@pytest.fixture(scope="module")
def benchmarks(first, platform, programs, checkpoints, tmp_path_factory):
    """Backend -> what vLLM's serving benchmark writes down."""
    given = {"model": "chat", "tokenizer": checkpoints[1], "folder": tmp_path_factory.mktemp("benchmarks")}
    url = platform.endpoints["gateways"][REGION]
    return benchmarked(programs, url, BENCHMARKS, **given, requests=6, output_tokens=48)


@pytest.mark.parametrize("backend", BENCHMARKS)
def test_vllms_own_serving_benchmark_is_answered(benchmarks, backend):
    told = benchmarks[backend]
    assert (told["completed"], told["failed"], set(told["errors"])) == (6, 0, {""})
    assert told["output_lens"] == [48] * 6, "usage comes with the stream"
    assert all(0 < first < whole for first, whole in zip(told["ttfts"], told["latencies"], strict=True))
    assert min(len(gaps) for gaps in told["itls"]) >= 7, "piece by piece"


def test_how_far_the_engine_is_was_explained_while_it_started(first, platform):
    loading = [message for message in first if "llm snapshot 1: vLLM loads the model, " in message]
    assert any("; last output: (" in message or "; last output: INFO" in message for message in loading), first
    assert [replica.starts for replica in platform.client.model("chat").status.replicas] == [()]


def test_a_rollout_and_a_rollback_break_no_stream_and_mix_none(first, platform, checkpoints):
    url = platform.endpoints["gateways"][REGION]
    with StreamingClients(url) as clients:
        change = platform.client.publish("chat", {"llm": checkpoints[2]})
        done = platform.client.wait_change(change.id, timeout_seconds=START_SECONDS)
        assert done.state == "done", done
        clients.await_answers()
        change = platform.client.rollback("chat")
        back = platform.client.wait_change(change.id, timeout_seconds=START_SECONDS)
        assert back.state == "done", back

    assert clients.broken == []
    generations = Counter(generation for _, generation, _ in clients.whole)
    assert set(generations) == {"1", "2"}, generations
    texts = {}
    for number, generation, text in clients.whole:
        texts.setdefault((number, generation), set()).add(text)
    assert {len(found) for found in texts.values()} == {1}, "greedy answers of one generation are equal"
    assert all(texts[number, "1"] != texts[number, "2"] for number in range(STREAMS))


def test_a_checkpoint_of_another_form_is_refused_before_an_engine_sees_it(first, platform, checkpoints, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoints[1].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"hidden_size": 128, "head_dim": 64}))

    with pytest.raises(InvalidInput, match=r"embed_tokens.weight' has shape .* config.json says"):
        platform.client.publish("chat", {"llm": broken})


def keepers_and_servers(platform):
    """Without the guard of each keeper, which has the keeper's command line, the agent as parent, and no children."""
    found = []
    for process in platform.found("vllm.entrypoints", "--served-model-name"):
        with suppress(psutil.NoSuchProcess):
            if "process_reaper.py" not in " ".join(process.cmdline()) or process.children():
                found.append(process)
    return found


@pytest.mark.parametrize("which", ["keeper", "server"])
def test_an_engine_that_is_killed_comes_back_and_leaves_nothing(first, platform, client, which):
    until(lambda: len(keepers_and_servers(platform)) == 2)  # what the rollback left has ended
    found = keepers_and_servers(platform)
    victim = next(p for p in found if ("process_reaper.py" in " ".join(p.cmdline())) == (which == "keeper"))
    beneath = [victim, *victim.children(recursive=True)]
    victim.send_signal(signal.SIGKILL)
    until(lambda: gone(beneath))

    def answers():
        try:
            return client.completions.create(model="chat", prompt="x", max_tokens=2).choices
        except openai.APIError:
            return False

    until(answers, seconds=START_SECONDS)


STYLED = MANIFEST.replace("name: chat", "name: styled").replace("dtype: bfloat16", "dtype: float32")
PLAIN = STYLED
STYLED = STYLED.replace("  demand:", "    - {name: style, engine: vllm, adapterOf: llm}\n  demand:")
"""In float32 an answer hangs on no other that is computed beside it."""


@pytest.fixture(scope="module")
def styled(platform, checkpoints, tmp_path_factory):
    """Generation 1 of a model with an adapter serves; directories of two adapters."""
    root = tmp_path_factory.mktemp("styles")
    styles = {seed: write_vllm_adapter(root / f"style-{seed}", seed=seed) for seed in (1, 2)}
    platform.client.apply(STYLED)
    finished(platform, platform.client.publish("styled", {"llm": checkpoints[1], "style": styles[1]}))
    yield styles
    finished(platform, platform.client.delete("styled"))


def finished(platform, change):
    done = platform.client.wait_change(change.id, timeout_seconds=START_SECONDS)
    assert done.state == "done", done
    return done


def server_pids(platform):
    found = platform.found("vllm.entrypoints", "--served-model-name styled")
    return {p.pid for p in found if "process_reaper.py" not in " ".join(p.cmdline())}


def said(client, model, generation, prompt):
    """The answer, while nothing else is asked."""
    headers = {"x-ipnext-generation": generation}
    answer = client.completions.create(
        model=model, **greedy_body(prompt), extra_headers=headers, extra_body={"ignore_eos": True}
    )
    assert answer.model == model
    return answer.choices[0].text


def test_another_adapter_comes_into_the_engine_that_runs_under_streams_and_goes_back(platform, styled, client):
    url, before = platform.endpoints["gateways"][REGION], server_pids(platform)
    assert len(before) == 1
    cards = {card.id: card.model_dump() for card in client.models.list() if card.id.startswith("styled")}
    assert {name: card.get("parent") for name, card in cards.items()} == {"styled": None, "styled:style": "styled"}
    with StreamingClients(url, "styled", "styled:style") as clients:
        finished(platform, platform.client.publish("styled", {"style": styled[2]}))
        clients.await_answers()
        finished(platform, platform.client.rollback("styled"))

    assert clients.broken == []
    assert clients.seen == {
        (model, model, str(generation), f"llm=1,style={generation}")
        for model in ("styled", "styled:style")
        for generation in (1, 2)
    }
    assert server_pids(platform) == before
    for (model, generation, prompt), texts in clients.said.items():
        assert texts == {said(client, model, generation, prompt)}, "what it says alone"
    three = {said(client, model, generation, "once") for model, generation, _ in clients.said if model != "styled"}
    assert len(three | {said(client, "styled", "2", "once")}) == 3, "base, first and second adapter say the same"


def engine_names(platform):
    """The adapters in the one engine of the model, by their names there."""
    (pid,) = server_pids(platform)
    cards = get_from(psutil.Process(pid), "/v1/models").json()["data"]
    return {card["id"] for card in cards if card.get("parent")}


PROMPTS = [f"prompt {number}" for number in range(STREAMS)]


def test_an_adapter_is_unloaded_under_streams_and_no_text_of_any_generation_changes(
    platform, styled, client, tmp_path_factory
):
    """What each says alone before, under streams while it is handed over and unloaded, and alone afterwards."""
    root, url = tmp_path_factory.mktemp("later"), platform.endpoints["gateways"][REGION]
    first = platform.client.model("styled").status.serving_generation
    pid = server_pids(platform)
    base, style = (
        {prompt: said(client, model, str(first), prompt) for prompt in PROMPTS} for model in ("styled", "styled:style")
    )
    there = engine_names(platform)
    with StreamingClients(url, "styled", "styled:style") as clients:
        for seed in (3, 4):  # one former generation stays warm
            adapter = write_vllm_adapter(root / f"style-{seed}", seed=seed)
            finished(platform, platform.client.publish("styled", {"style": adapter}))
            clients.await_answers()
        until(lambda: not engine_names(platform) & there)

    assert clients.broken == []
    last = platform.client.model("styled").status.serving_generation
    assert {int(generation) for _, generation, _ in clients.said} >= {first, last - 1, last}
    for (model, generation, prompt), texts in clients.said.items():
        if model == "styled":
            assert texts == {base[prompt]}, (generation, prompt)
        elif int(generation) == first:
            assert texts == {style[prompt]}, prompt
        else:
            assert texts == {said(client, model, generation, prompt)}, prompt
    assert {prompt: said(client, "styled", str(last), prompt) for prompt in PROMPTS} == base
    assert len(engine_names(platform)) == 2
    assert server_pids(platform) == pid


def test_an_unknown_adapter_is_refused_with_the_known_ones(platform, styled, client):
    with pytest.raises(openai.NotFoundError, match="Adapters: styled:style"):
        client.completions.create(model="styled:tone", prompt="x")


def test_an_adapter_of_another_form_is_refused_before_an_engine_sees_it(platform, styled, tmp_path):
    config = json.loads((styled[1] / "adapter_config.json").read_text())
    wide = write_vllm_adapter(tmp_path / "wide", seed=3)
    (wide / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"q_proj": 64}}))
    change = platform.client.publish("styled", {"style": wide})
    done = platform.client.wait_change(change.id, timeout_seconds=START_SECONDS)
    assert (done.state, done.reason) == ("refused", "SchemaMismatch")
    assert "rank 64 is more than maxLoraRank of its base; allowed: up to 16" in done.message


def test_an_adapter_part_that_is_taken_away_breaks_no_stream_and_changes_no_text(platform, styled, client, checkpoints):
    """The last test of the model: it has no adapter afterwards, and another engine."""
    url, former = platform.endpoints["gateways"][REGION], server_pids(platform)
    first = str(platform.client.model("styled").status.serving_generation)
    base = {prompt: said(client, "styled", first, prompt) for prompt in PROMPTS}
    with StreamingClients(url, "styled") as clients:
        (applied,) = platform.client.apply(PLAIN)
        assert "keeps its adapter style" in finished(platform, applied.change).message
        assert said(client, "styled:style", first, PROMPTS[0]) not in base.values()
        finished(platform, platform.client.publish("styled", {"llm": checkpoints[1]}))
        clients.await_answers()

    assert clients.broken == []
    assert len({generation for _, generation, _ in clients.said}) == 2
    assert {prompt: texts for (_, _, prompt), texts in clients.said.items() if texts != {base[prompt]}} == {}
    with pytest.raises(openai.NotFoundError, match="Adapters: none"):
        client.completions.create(model="styled:style", prompt="x")
    (after,) = {generation for _, generation, _ in clients.said} - {first}
    assert {prompt: said(client, "styled", after, prompt) for prompt in PROMPTS} == base
    until(lambda: not server_pids(platform) & former)
