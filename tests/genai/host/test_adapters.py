"""Adapters in the host of generative parts, with the mock engine: one engine for all that stand on one model."""

import httpx
import pytest

from tests.genai.support.hosts import complete, mock_command
from tests.waiting import until

MOCK = {"IPNEXT_VLLM_COMMAND": mock_command()}


@pytest.fixture
def host(yard):
    return yard.start("host", **MOCK)


def pairs(state):
    return {(held.part, held.generation) for held in state.ready}


def ready(host, *wanted):
    """The state once exactly these are ready."""
    return until(lambda: (s := host.state()) and pairs(s) == set(wanted) and s)


def servers(host):
    return {p.pid for p in host.engines() if p.ppid() != host.process.pid}


def text(url, model):
    answer = complete(url, model=model)
    return answer.json()["choices"][0]["text"].split()[0] if answer.status_code == 200 else answer.status_code


def test_a_generation_is_ready_with_its_adapter_under_a_name_of_its_own(host, shelf):
    host.hold(shelf.hold(1, adapters=1), shelf.adapter(11, 1))
    state = ready(host, ("llm", 1), ("style", 1))
    (url,) = (held.url for held in state.ready if held.url)
    assert text(url, shelf.name(11)) == f"{shelf.name(11)}-0"
    assert text(url, "chat") == "word-0"
    size = (shelf.root / "hf-11" / "adapter_model.safetensors").stat().st_size
    assert {(one.part, one.size_bytes) for one in state.memory.snapshots} >= {("style", size)}


def test_generations_on_one_model_share_its_engine_each_with_its_adapter(host, shelf):
    host.hold(shelf.hold(1, adapters=1), shelf.adapter(11, 1))
    url = ready(host, ("llm", 1), ("style", 1)).ready[0].url
    before = servers(host)
    host.hold(shelf.hold(1, 1, 2, adapters=1), shelf.adapter(11, 1), shelf.adapter(12, 2))
    assert pairs(host.state()) >= {("llm", 1), ("style", 1)}
    both = ready(host, ("llm", 1), ("style", 1), ("llm", 2), ("style", 2))
    assert {held.url for held in both.ready if held.url} == {url}
    assert [text(url, shelf.name(number)) for number in (11, 12)] == [f"{shelf.name(11)}-0", f"{shelf.name(12)}-0"]
    host.hold(shelf.hold(1, 2, adapters=1), shelf.adapter(12, 2))
    assert pairs(host.state()) == {("llm", 2), ("style", 2)}
    until(lambda: text(url, shelf.name(11)) == 404)
    assert text(url, shelf.name(12)) == f"{shelf.name(12)}-0"
    assert servers(host) == before


def test_the_same_adapter_of_two_generations_is_loaded_once_and_stays_for_either(host, shelf):
    host.hold(shelf.hold(1, 1, 2, adapters=1), shelf.adapter(11, 1, 2))
    url = ready(host, ("llm", 1), ("style", 1), ("llm", 2), ("style", 2)).ready[0].url
    host.hold(shelf.hold(1, 2, adapters=1), shelf.adapter(11, 2))
    assert pairs(host.state()) == {("llm", 2), ("style", 2)}
    assert text(url, shelf.name(11)) == f"{shelf.name(11)}-0"


def test_an_engine_that_came_back_has_its_adapters_before_it_is_ready(host, shelf):
    host.hold(shelf.hold(1, adapters=1), shelf.adapter(11, 1))
    url = ready(host, ("llm", 1), ("style", 1)).ready[0].url
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    engine.kill()
    state = until(lambda: (s := host.state()) and s.ready and s.ready[0].url != url and s)
    assert pairs(state) == {("llm", 1), ("style", 1)}
    assert text(state.ready[0].url, shelf.name(11)) == f"{shelf.name(11)}-0"


def test_an_engine_that_came_back_gets_no_adapter_that_changed_in_the_cache(host, shelf):
    host.hold(shelf.hold(1, adapters=1), shelf.adapter(11, 1, is_cut_from_signed=True))
    ready(host, ("llm", 1), ("style", 1))
    host.forge(shelf.published[11], "adapter_config.json")
    (engine,) = [p for p in host.engines() if p.ppid() != host.process.pid]
    engine.kill()
    changed = "adapter_config.json of snapshot"
    until(lambda: any(f.part == "style" and changed in f.message for f in host.state().failures))


def test_an_adapter_that_does_not_fit_fails_its_generation_alone(host, shelf):
    host.hold(shelf.hold(1, 1, 2, adapters=1), shelf.adapter(11, 1), shelf.adapter(13, 2))
    (failure,) = host.failed()
    assert (failure.code, failure.part, failure.generations) == ("LoadFailed", "style", (2,))
    assert "snapshot 13 of chat.style on llm 1: tensor" in failure.message
    assert "q_proj of the base has 8 inputs" in failure.message
    state = ready(host, ("llm", 1), ("style", 1))
    assert not [held for held in state.loading if held.generation == 2]


def test_a_model_in_the_place_of_an_adapter_and_a_rank_beyond_the_base_are_refused(host, shelf):
    settings = {"maxLoraRank": 1}
    host.hold(shelf.hold(1, adapters=1, settings=settings), shelf.adapter(2, 1))
    (failure,) = host.failed()
    assert "is a model (LlamaForCausalLM), not an adapter" in failure.message
    host.hold(shelf.hold(1, adapters=1, settings=settings), shelf.adapter(11, 1))
    until(lambda: "rank 2 is more than maxLoraRank" in "".join(f.message for f in host.state().failures))
    assert pairs(host.state()) == set()


def test_an_engine_that_takes_no_adapter_is_told(yard, shelf):
    without = mock_command().replace("{python}", "env -u VLLM_ALLOW_RUNTIME_LORA_UPDATING {python}")
    host = yard.start("host", IPNEXT_VLLM_COMMAND=without)
    host.hold(shelf.hold(1, adapters=1), shelf.adapter(11, 1))
    (failure,) = host.failed()
    assert "/v1/load_lora_adapter answered 404" in failure.message
    assert pairs(host.state()) == set()


def test_a_model_without_adapters_has_no_route_that_loads_any(host, shelf):
    host.hold(shelf.hold(1))
    url = ready(host, ("llm", 1)).ready[0].url
    body = {"lora_name": "a", "lora_path": str(shelf.root / "hf-11")}
    assert httpx.post(f"{url}/v1/load_lora_adapter", json=body, timeout=60).status_code == 404


def test_one_generation_has_one_snapshot_of_an_adapter(host, shelf):
    host.hold(shelf.hold(1, adapters=1), shelf.adapter(11, 1))
    ready(host, ("llm", 1), ("style", 1))
    answer = host.hold(shelf.hold(2, adapters=1), shelf.adapter(11, 2), shelf.adapter(12, 2))
    assert answer.status_code == 400
    assert "generation 2 of chat.style has two snapshots" in answer.json()["error"]
    assert pairs(host.state()) == {("llm", 1), ("style", 1)}
