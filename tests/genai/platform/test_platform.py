"""A generative model on the whole platform: with an adapter, then without one.

Published, answered through Envoy, rolled over under streams, rolled back. One model for all tests, in their order:
each start of an engine takes ten seconds of processor time.
"""

import json
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx
import openai
import psutil
import pytest

from ipnext.errors import InvalidInput
from tests.genai.support.checkpoints import write_vllm_adapter
from tests.genai.support.serving_benchmark import benchmarked
from tests.genai.support.streaming_clients import STREAMS, StreamingClients, greedy_body
from tests.processes import command_line, get_from, gone
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


STYLED = MANIFEST.replace("dtype: bfloat16", "dtype: float32")
PLAIN = STYLED
STYLED = STYLED.replace("  demand:", "    - {name: style, engine: vllm, adapterOf: llm}\n  demand:")
"""In float32 an answer hangs on no other that is computed beside it."""


@pytest.fixture(scope="module")
def platform(vllm_platform):
    yield vllm_platform
    finished(vllm_platform, vllm_platform.client.delete("chat"))


@pytest.fixture(scope="module")
def checkpoints(llamas):
    return llamas


@pytest.fixture(scope="module")
def client(platform):
    return openai.OpenAI(base_url=platform.endpoints["gateways"][REGION] + "/v1", api_key="none", timeout=120)


@pytest.fixture(scope="module")
def explained():
    """What was explained while generation 1 was on its way."""
    return set()


@pytest.fixture(scope="module")
def styled(platform, checkpoints, explained, tmp_path_factory):
    """Generation 1 of the model, with an adapter, serves; directories of two adapters."""
    root = tmp_path_factory.mktemp("styles")
    styles = {seed: write_vllm_adapter(root / f"style-{seed}", seed=seed) for seed in (1, 2)}
    platform.client.apply(STYLED)
    change = platform.client.publish("chat", {"llm": checkpoints[1], "style": styles[1]})

    def done():
        explained.add(platform.client.explain("chat").message)
        return platform.client.change(change.id).state.final

    until(done, every_seconds=0.25, seconds=START_SECONDS)
    finished(platform, change)
    return styles


def finished(platform, change):
    done = platform.client.wait_change(change.id, timeout_seconds=START_SECONDS)
    assert done.state == "done", done
    return done


def test_how_far_the_engine_is_was_explained_while_it_started(styled, explained, platform):
    loading = [message for message in explained if "llm snapshot 1: vLLM loads the model, " in message]
    assert any("; last output: (" in message or "; last output: INFO" in message for message in loading), explained
    assert [replica.starts for replica in platform.client.model("chat").status.replicas] == [()]


def server_pids(platform):
    found = platform.found("vllm.entrypoints", "--served-model-name chat")
    return {p.pid for p in found if "process_reaper.py" not in command_line(p)}


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
    cards = {card.id: card.model_dump() for card in client.models.list() if card.id.startswith("chat")}
    assert {name: card.get("parent") for name, card in cards.items()} == {"chat": None, "chat:style": "chat"}
    with StreamingClients(url, "chat", "chat:style") as clients:
        finished(platform, platform.client.publish("chat", {"style": styled[2]}))
        clients.await_answers()
        finished(platform, platform.client.rollback("chat"))

    assert clients.broken == []
    assert clients.seen == {
        (model, model, str(generation), f"llm=1,style={generation}")
        for model in ("chat", "chat:style")
        for generation in (1, 2)
    }
    assert server_pids(platform) == before
    for (model, generation, prompt), texts in clients.said.items():
        assert texts == {said(client, model, generation, prompt)}, "what it says alone"
    three = {said(client, model, generation, "once") for model, generation, _ in clients.said if model != "chat"}
    assert len(three | {said(client, "chat", "2", "once")}) == 3, "base, first and second adapter say the same"


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
    first = platform.client.model("chat").status.serving_generation
    pid = server_pids(platform)
    base, style = (
        {prompt: said(client, model, str(first), prompt) for prompt in PROMPTS} for model in ("chat", "chat:style")
    )
    there = engine_names(platform)
    with StreamingClients(url, "chat", "chat:style") as clients:
        for seed in (3, 4):  # one former generation stays warm
            adapter = write_vllm_adapter(root / f"style-{seed}", seed=seed)
            finished(platform, platform.client.publish("chat", {"style": adapter}))
            clients.await_answers()
        until(lambda: not engine_names(platform) & there)

    assert clients.broken == []
    last = platform.client.model("chat").status.serving_generation
    assert {int(generation) for _, generation, _ in clients.said} >= {first, last - 1, last}
    for (model, generation, prompt), texts in clients.said.items():
        if model == "chat":
            assert texts == {base[prompt]}, (generation, prompt)
        elif int(generation) == first:
            assert texts == {style[prompt]}, prompt
        else:
            assert texts == {said(client, model, generation, prompt)}, prompt
    assert {prompt: said(client, "chat", str(last), prompt) for prompt in PROMPTS} == base
    assert len(engine_names(platform)) == 2
    assert server_pids(platform) == pid


def test_an_unknown_adapter_is_refused_with_the_known_ones(platform, styled, client):
    with pytest.raises(openai.NotFoundError, match="Adapters: chat:style"):
        client.completions.create(model="chat:tone", prompt="x")


def test_an_adapter_of_another_form_is_refused_before_an_engine_sees_it(platform, styled, tmp_path):
    config = json.loads((styled[1] / "adapter_config.json").read_text())
    wide = write_vllm_adapter(tmp_path / "wide", seed=3)
    (wide / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"q_proj": 64}}))
    change = platform.client.publish("chat", {"style": wide})
    done = platform.client.wait_change(change.id, timeout_seconds=START_SECONDS)
    assert (done.state, done.reason) == ("refused", "SchemaMismatch")
    assert "rank 64 is more than maxLoraRank of its base; allowed: up to 16" in done.message


@dataclass
class Without:
    """How the model lost its adapter, under streams."""

    clients: StreamingClients
    generation: str
    """The first one without an adapter."""
    base: Mapping[str, str]
    """Prompt -> what the model said before."""
    style: str
    """What the adapter said once the manifest had no part of it."""
    applied: str
    """What the change of the manifest said."""


@pytest.fixture(scope="module")
def plain(platform, styled, client, checkpoints):
    """The model has no adapter, and another engine."""
    url, former = platform.endpoints["gateways"][REGION], server_pids(platform)
    before = str(platform.client.model("chat").status.serving_generation)
    base = {prompt: said(client, "chat", before, prompt) for prompt in PROMPTS}
    with StreamingClients(url, "chat") as clients:
        (applied,) = platform.client.apply(PLAIN)
        message = finished(platform, applied.change).message
        style = said(client, "chat:style", before, PROMPTS[0])
        done = finished(platform, platform.client.publish("chat", {"llm": checkpoints[1]}))
        clients.await_answers()
    until(lambda: not server_pids(platform) & former)
    return Without(clients, str(done.generation), base, style, message)


def test_an_adapter_part_that_is_taken_away_breaks_no_stream_and_changes_no_text(plain, client):
    clients, base = plain.clients, plain.base
    assert "keeps its adapter style" in plain.applied
    assert plain.style not in base.values()
    assert clients.broken == []
    assert len({generation for _, generation, _ in clients.said}) == 2
    assert plain.generation in {generation for _, generation, _ in clients.said}
    assert {prompt: texts for (_, _, prompt), texts in clients.said.items() if texts != {base[prompt]}} == {}
    with pytest.raises(openai.NotFoundError, match="Adapters: none"):
        client.completions.create(model="chat:style", prompt="x")
    assert {prompt: said(client, "chat", plain.generation, prompt) for prompt in PROMPTS} == base


def test_a_published_checkpoint_answers_the_openai_client(plain, client):
    assert [card.id for card in client.models.list()] == ["chat"]
    answer = client.chat.completions.with_raw_response.create(
        model="chat", messages=[{"role": "user", "content": "hello"}], max_tokens=8
    )
    assert answer.headers["x-ipnext-generation"] == plain.generation
    assert answer.headers["x-ipnext-snapshots"] == "llm=1"
    assert answer.parse().usage.completion_tokens > 0
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="x")


def test_a_batch_of_conversations_is_answered_by_one_generation_each_as_it_is_alone(plain, client):
    given = [[{"role": "user", "content": text}] for text in ("hello", "once upon a time", "the fox")]
    asked = {"model": "chat", "max_tokens": 8, "temperature": 0}
    batch = httpx.post(f"{client.base_url}chat/completions/batch", json={**asked, "messages": given}, timeout=120)
    assert batch.status_code == 200, batch.text
    assert (batch.headers["x-ipnext-generation"], batch.headers["x-ipnext-snapshots"]) == (plain.generation, "llm=1")
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
def test_a_bad_batch_is_refused_in_openais_form_by_whoever_sees_it(plain, client, change, param):
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
def benchmarks(plain, platform, programs, checkpoints, tmp_path_factory):
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


def test_a_rollout_and_a_rollback_break_no_stream_and_mix_none(plain, platform, checkpoints):
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
    former, new = plain.generation, str(done.generation)
    assert set(generations) == {former, new}, generations
    texts = {}
    for number, generation, text in clients.whole:
        texts.setdefault((number, generation), set()).add(text)
    assert {len(found) for found in texts.values()} == {1}, "greedy answers of one generation are equal"
    assert all(texts[number, former] != texts[number, new] for number in range(STREAMS))


def test_a_checkpoint_of_another_form_is_refused_before_an_engine_sees_it(plain, platform, checkpoints, tmp_path):
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


def killed(platform, which):
    """Process ids of the keeper, or of the server, that was killed and of all beneath; they are gone."""
    until(lambda: len(keepers_and_servers(platform)) == 2)  # what the rollback left has ended
    found = keepers_and_servers(platform)
    victim = next(p for p in found if ("process_reaper.py" in command_line(p)) == (which == "keeper"))
    beneath = [victim, *victim.children(recursive=True)]
    assert any(p.name().startswith("VLLM::Worker") for p in beneath)
    victim.send_signal(signal.SIGKILL)
    until(lambda: gone(beneath))
    return {p.pid for p in beneath}


def test_an_engine_whose_server_is_killed_leaves_nothing_and_answers_again(plain, platform, client):
    killed(platform, "server")

    def answers():
        try:
            return client.completions.create(model="chat", prompt="x", max_tokens=2).choices
        except openai.APIError:
            return False

    until(answers, seconds=START_SECONDS)


def test_an_engine_whose_keeper_is_killed_leaves_nothing_and_is_started_again(plain, platform):
    """The last test: the model is deleted before the engine has taken the processor time of a start."""
    before = killed(platform, "keeper")
    until(lambda: len(after := server_pids(platform)) == 1 and after.isdisjoint(before))
