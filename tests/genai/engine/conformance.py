"""Properties of an engine that a router or host relies on.

Tested on the mock engine in test_mock_engine.py, on real vLLM in test_vllm.py.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serving.genai.engine.probe import requests_in
from tests.genai.support.hosts import MODEL, complete, stream
from tests.waiting import until


def served_name(url):
    """Return the name that answers have."""
    return httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]


class EngineConformance:
    """A class of tests over `url`, the base URL of an engine, and `adapter`, the directory of one that it can take."""

    def test_the_model_is_listed_under_both_its_names(self, url):
        cards = [
            card for card in httpx.get(f"{url}/v1/models", timeout=60).json()["data"] if card.get("parent") is None
        ]
        assert [(card["id"], card["object"]) for card in cards] == [(served_name(url), "model"), (MODEL, "model")]
        assert served_name(url).startswith(f"{MODEL}@")
        assert cards[0]["max_model_len"] > 0

    def test_an_answer_has_the_first_name_whichever_was_asked_for(self, url):
        for name in (MODEL, served_name(url)):
            assert complete(url, max_tokens=1, model=name).json()["model"] == served_name(url)

    def test_a_whole_answer_has_openais_form(self, url):
        answer = complete(url, max_tokens=5, ignore_eos=True).json()
        assert (answer["object"], answer["model"]) == ("text_completion", served_name(url))
        assert answer["choices"][0]["finish_reason"] == "length"
        usage = answer["usage"]
        assert usage["completion_tokens"] == 5
        assert usage["total_tokens"] == usage["prompt_tokens"] + 5

    def test_a_chat_has_openais_form(self, url):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["role"] == "assistant"

    def test_a_stream_comes_in_pieces_and_says_why_it_ends(self, url):
        pieces = list(stream(url, tokens=60))
        assert len(pieces) >= 2
        assert [reason for _, reason in pieces if reason] == ["length"]

    def test_a_stream_tells_its_usage_where_it_is_asked(self, url):
        body = {"model": MODEL, "prompt": "once", "max_tokens": 3, "ignore_eos": True, "stream": True}
        body["stream_options"] = {"include_usage": True}
        lines = httpx.post(f"{url}/v1/completions", json=body, timeout=60).text.split("\n\n")
        assert lines[-2] == "data: [DONE]"
        assert '"completion_tokens":3' in lines[-3].replace(" ", "")

    @pytest.mark.parametrize("streamed", [False, True])
    def test_an_echo_has_the_prompt_before_the_text(self, url, streamed):
        more = {"echo": True, "stream": streamed, "max_tokens": 3, "ignore_eos": True}
        answer = complete(url, prompt="over the hills", **more)
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith('data: {"')]
        texts = [event["choices"][0]["text"] for event in (events if streamed else [answer.json()])]
        assert "".join(texts).startswith("over the hills")
        assert len("".join(texts)) > len("over the hills")

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"model": "another", "prompt": "once"}, 404),
            ({"model": MODEL, "prompt": "once", "max_tokens": -1}, 400),
        ],
    )
    def test_errors_have_openais_form(self, url, body, status):
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["code"] == status
        assert {"message", "type", "param"} <= error.keys()

    def test_a_body_that_is_not_json_is_refused(self, url):
        assert httpx.post(f"{url}/v1/completions", content=b"{", timeout=60).status_code == 400

    def test_what_scaling_and_draining_look_at_has_the_same_names(self, url):
        text = httpx.get(f"{url}/metrics", timeout=60).text
        for name in ("running", "waiting"):
            assert f'vllm:num_requests_{name}{{engine="0",model_name="{served_name(url)}"}}' in text
        for name in ("kv_cache_usage_perc", "prefix_cache_queries_total", "prefix_cache_hits_total"):
            assert f"vllm:{name}{{" in text
        assert "vllm:num_preemptions_total{" in text
        assert "vllm:external_prefix_cache_hits_total{" in text

    def test_an_engine_without_a_connector_hands_nothing_over(self, url):
        asked = {"do_remote_decode": True, "do_remote_prefill": False}
        answer = complete(url, max_tokens=1, kv_transfer_params=asked)
        assert (answer.status_code, answer.json()["kv_transfer_params"]) == (200, None)

    def test_a_client_that_leaves_ends_its_request(self, url):
        def running():
            return requests_in(httpx.get(f"{url}/metrics", timeout=60).text)

        def seen_running():  # a stream may end before it is looked at; then the next is
            pieces = stream(url, tokens=400)
            next(pieces)
            if running() == 1:
                return pieces
            pieces.close()
            return None

        until(seen_running).close()
        until(lambda: running() == 0)

    def test_an_adapter_is_a_model_of_its_own_name_from_its_load_to_its_unload(self, url, adapter):
        assert complete(url, model="style@1").status_code == 404
        loaded = call_adapter_route(url, "load", lora_name="style@1", lora_path=str(adapter))
        assert (loaded.status_code, "style@1" in loaded.text) == (200, True)
        cards = {card["id"]: card for card in httpx.get(f"{url}/v1/models", timeout=60).json()["data"]}
        assert (cards["style@1"]["parent"], cards["style@1"]["root"]) == (served_name(url), str(adapter))
        answer = complete(url, model="style@1", max_tokens=5, ignore_eos=True).json()
        assert (answer["model"], answer["usage"]["completion_tokens"]) == ("style@1", 5)
        assert answer["choices"][0]["text"] != complete(url, max_tokens=5, ignore_eos=True).json()["choices"][0]["text"]
        assert call_adapter_route(url, "unload", lora_name="style@1").status_code == 200
        assert complete(url, model="style@1").status_code == 404

    def test_an_adapter_is_loaded_again_only_in_place_and_unloaded_once(self, url, adapter):
        first = {"lora_name": "style@2", "lora_path": str(adapter)}
        assert call_adapter_route(url, "load", **first).status_code == 200
        assert call_adapter_route(url, "load", **first).status_code == 400
        assert call_adapter_route(url, "load", **first, load_inplace=True).status_code == 200
        assert call_adapter_route(url, "unload", lora_name="style@2").status_code == 200
        assert call_adapter_route(url, "unload", lora_name="style@2").status_code == 404

    def test_an_adapter_that_is_not_there_is_refused(self, url, tmp_path):
        answer = call_adapter_route(url, "load", lora_name="style@3", lora_path=str(tmp_path / "nothing"))
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "NotFoundError"

    def test_a_stream_goes_on_with_its_adapter_after_that_was_unloaded(self, url, adapter):
        call_adapter_route(url, "load", lora_name="style@4", lora_path=str(adapter))
        whole = "".join(text for text, _ in stream(url, tokens=60, model="style@4"))
        begun = stream(url, tokens=60, model="style@4")
        first = next(begun)[0]
        assert call_adapter_route(url, "unload", lora_name="style@4").status_code == 200
        assert first + "".join(text for text, _ in begun) == whole

    def test_a_pause_finishes_what_runs_and_holds_what_comes_until_it_is_over(self, url):
        begun = stream(url, tokens=40)
        next(begun)
        with ThreadPoolExecutor(3) as threads:
            rest = threads.submit(lambda: list(begun))
            assert httpx.post(f"{url}/pause?mode=wait", timeout=60).json() == {"status": "paused"}
            assert [reason for _, reason in rest.result(60) if reason] == ["length"]
            assert httpx.get(f"{url}/is_paused", timeout=60).json() == {"is_paused": True}
            held = threads.submit(lambda: complete(url))
            time.sleep(0.5)
            assert not held.done()
            assert httpx.post(f"{url}/resume", timeout=60).json() == {"status": "resumed"}
            assert held.result(60).status_code == 200
        assert httpx.get(f"{url}/is_paused", timeout=60).json() == {"is_paused": False}

    def test_weights_have_a_version_that_is_told(self, url):
        told = httpx.post(f"{url}/update_weight_version", json={"new_version": "a1"}, timeout=60).json()
        assert told == {"success": True, "new_version": "a1"}
        assert httpx.get(f"{url}/weight_info", timeout=60).json() == {"weight_version": "a1"}

    def test_cached_prefixes_can_be_forgotten(self, url):
        assert httpx.post(f"{url}/reset_prefix_cache", timeout=60).json() == {"success": True}

    def test_a_call_to_the_workers_names_its_method(self, url):
        assert httpx.post(f"{url}/collective_rpc", json={}, timeout=60).status_code == 400


def call_adapter_route(url, action, **body):
    """Return the answer of vLLM's route that loads or unloads an adapter."""
    return httpx.post(f"{url}/v1/{action}_lora_adapter", json=body, timeout=60)
