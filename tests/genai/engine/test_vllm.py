"""The host with real vLLM and a tiny random Llama: one server for the whole file."""

import asyncio
import json
import re
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint
from ipnext.cli import app
from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import LoadFailed
from ipnext.model.settings.engine import vllm_settings
from serving.genai.engine.probe import requests_in
from serving.genai.weight_reload import load_adapter, swap_weights, unload_adapter
from serving.snapshots.fetch import LocalSnapshot
from tests.genai.engine.conformance import EngineConformance
from tests.genai.support.checkpoints import write_vllm_adapter
from tests.genai.support.hosts import Yard, complete, stream
from tests.processes import command_line, gone
from tests.waiting import until

pytestmark = [pytest.mark.genai, pytest.mark.timeout(1500)]

START_SECONDS = 900
"""A busy machine; on a quiet one half a minute."""
SETTINGS = {"maxModelLen": 512, "maxNumSeqs": 16, "kvCacheGib": 0.1, "enforceEager": True, "dtype": "float32"}
SETTINGS |= {"startSeconds": START_SECONDS, "maxLoraRank": 8, "environment": {"VLLM_SERVER_DEV_MODE": "1"}}
OPEN = ("--allow-environment", "VLLM_SERVER_DEV_MODE")
"""As an operator allows it: these tests swap weights themselves."""


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, vllm):
    yard = Yard(tmp_path_factory.mktemp("vllm"), tiny.store)
    yield yard
    yard.close()


@pytest.fixture(scope="module")
def host(place, tiny, vllm, tmp_path_factory):
    readable = (
        f"--readable={tmp_path_factory.getbasetemp()}"  # weights and adapters that tests hand to the engine themselves
    )
    host = place.start("real", *OPEN, readable, IPNEXT_VLLM_PYTHON=vllm)
    host.hold(tiny.hold(1, settings=SETTINGS, adapters=1), tiny.adapter(11, 1))
    host.ready(seconds=START_SECONDS)
    return host


@pytest.fixture(scope="module")
def url(host):
    return host.state().ready[0].url


def test_a_tiny_llama_answers_through_the_url_of_its_generation(host, url):
    first, again = complete(url).json(), complete(url).json()
    assert first["usage"]["completion_tokens"] == 8
    assert first["choices"][0]["text"] == again["choices"][0]["text"] != ""
    message = {"role": "user", "content": "hello"}
    chat = httpx.post(
        f"{url}/v1/chat/completions", json={"model": "chat", "messages": [message], "max_tokens": 4}, timeout=60
    )
    assert chat.status_code == 200, chat.text
    assert "chat: " not in host.log()


def test_the_engine_has_the_settings_of_its_part(url):
    card, *_ = httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
    assert card["max_model_len"] == 512
    refused = complete(url, max_tokens=1000)
    assert refused.status_code == 400, refused.text


def test_requests_in_flight_are_counted_until_they_end_or_their_client_leaves(host, url):
    left = threading.Event()

    def read():  # one stream after the other: one alone may end before the host looks
        while not left.is_set():
            for _ in stream(url, tokens=480):
                if left.is_set():
                    break

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        until(lambda: reading.done() or host.state().in_flight == 1)
        left.set()
        reading.result()
    until(lambda: host.state().in_flight == 0)


def test_no_process_of_the_engine_gains_privileges_or_has_those_of_root(host):
    for process in [psutil.Process(host.process.pid), *host.family()]:
        if "serving.snapshots.fetch" in command_line(process):  # they run nothing of a snapshot
            continue
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if line.startswith(("NoNewPrivs", "CapEff")))
        assert status["NoNewPrivs"] == "1", process
        assert int(status["CapEff"], 16) & ~0b110 == 0, process  # files of others, where Landlock lets it


def test_what_the_engine_writes_is_in_a_directory_of_its_own(host):
    homes = {process.environ()["HOME"] for process in host.engines() if "api_server" in command_line(process)}
    (home,) = map(Path, homes)
    assert home.parents[2] == Path(tempfile.gettempdir())
    assert home.parents[1].name.startswith("ipnext-engines-")


def test_memory_is_that_of_all_processes(host):
    memory = until(lambda: (m := host.state().memory) and m.used_bytes > 10**9 and m)
    own = sum(process.memory_info().rss for process in host.family())
    assert memory.used_bytes == pytest.approx(own, rel=0.5)


def test_a_profile_measures_the_engine_and_nothing_of_it_runs_on(url):
    """Counts and orders only: how fast the machine is, is no test."""
    lengths = ("--prompt-tokens", "64", "--output-tokens", "16")
    command = ("profile", "chat", "--url", url, "--dry-run", *lengths, "--concurrency", "1,6", "--seconds", "0")
    result = CliRunner().invoke(app, [*command, "--ttft-ms", "600000", "-o", "json"])
    assert result.exit_code == 0, result.output
    profile = json.loads(result.stdout)["profile"]
    given = profile["conditions"]
    assert given["engine_version"].startswith("vllm ")
    assert given["prompt_tokens"] == pytest.approx(64, abs=6)
    one, six = profile["steps"]
    assert (one["concurrency"], six["concurrency"], six["requests"] >= 6) == (1, 6, True)
    assert 0 < one["ttft_p50_ms"] <= one["ttft_p99_ms"]
    assert six["tokens_per_second"] > 0
    assert (one["others_running"], six["others_running"]) == (0, 0)

    def running():
        return requests_in(httpx.get(f"{url}/metrics", timeout=60).text)

    until(lambda: not running(), why=lambda: "streams run on in the engine", every_seconds=0.1)


@pytest.fixture(scope="module")
def adapter(tiny):
    return tiny.root / "hf-12"


class TestAlike(EngineConformance):
    """What the mock engine is held to."""


def fetched(tiny, number, **facts):
    manifest = tiny.published[number].manifest
    changed = manifest.model_copy(update={"checkpoint": manifest.checkpoint.model_copy(update=facts)})
    return LocalSnapshot(tiny.root / f"snapshot-{number}", changed)


async def swapped(url, tiny, number):
    running = tiny.published[1].manifest.checkpoint
    async with aclosing(HttpSessions()) as session:
        new = fetched(tiny, number)
        return await swap_weights(session, url, "chat", running=running, new=new, settings=vllm_settings(SETTINGS))


async def test_weights_are_swapped_and_no_stream_has_both(url, tiny):
    before = complete(url).json()["choices"][0]["text"]
    whole = [text for text, _ in stream(url, tokens=300)]
    begun = stream(url, tokens=300)
    first = next(begun)[0]
    ending = asyncio.to_thread(lambda: [text for text, _ in begun])
    told, rest = await asyncio.gather(swapped(url, tiny, 2), ending)
    assert "".join([first, *rest]) == "".join(whole)
    after = complete(url).json()["choices"][0]["text"]
    assert after != before
    assert 0 < told.pause_seconds < told.seconds
    await swapped(url, tiny, 1)
    assert complete(url).json()["choices"][0]["text"] == before


async def test_weights_of_another_form_are_refused_before_anything_is_touched(url, tiny):
    other = tiny.published[1].manifest.checkpoint.model_copy(update={"tensors": "0" * 64})
    before = complete(url).json()["choices"][0]["text"]
    async with aclosing(HttpSessions()) as session:
        with pytest.raises(LoadFailed, match="other names, dtypes or shapes"):
            await swap_weights(
                session, url, "chat", running=other, new=fetched(tiny, 2), settings=vllm_settings(SETTINGS)
            )
    assert complete(url).json()["choices"][0]["text"] == before


async def test_an_adapter_is_loaded_changed_and_unloaded_while_the_model_serves(url, tmp_path):
    base = complete(url).json()["choices"][0]["text"]
    texts = []
    async with aclosing(HttpSessions()) as session:
        for seed in (1, 2):
            directory = write_vllm_adapter(tmp_path / f"adapter-{seed}", seed=seed)
            assert describe_checkpoint(directory).manifest.checkpoint.kind == "adapter"
            await load_adapter(session, url, "polite", directory, again=seed > 1)
            texts.append(complete(url, model="polite").json()["choices"][0]["text"])
        await unload_adapter(session, url, "polite")
    assert len({base, *texts}) == 3
    assert complete(url, model="polite").status_code == 404
    assert complete(url).json()["choices"][0]["text"] == base


def test_the_model_and_its_adapters_answer_together_as_each_does_alone(host, url, tiny):
    held = tiny.hold(1, 1, 2, settings=SETTINGS, adapters=1)
    host.hold(held, tiny.adapter(11, 1), tiny.adapter(12, 2))
    until(lambda: ("style", 2) in {(h.part, h.generation) for h in host.state().ready})

    def text(name):
        return complete(url, model=name, max_tokens=24, ignore_eos=True).json()["choices"][0]["text"]

    names = ("chat", tiny.name(11), tiny.name(12))
    alone = {name: text(name) for name in names}
    with ThreadPoolExecutor(12) as threads:
        together = list(zip(names * 8, threads.map(text, names * 8), strict=True))
    assert len(set(alone.values())) == 3
    assert [name for name, found in together if found != alone[name]] == []


def test_a_generation_brings_its_adapter_into_the_engine_that_runs(host, url, tiny):
    engines = {process.pid for process in host.engines()}
    base, first = (complete(url, model=model).json()["choices"][0]["text"] for model in ("chat", tiny.name(11)))
    held = tiny.hold(1, 1, 2, settings=SETTINGS, adapters=1)
    host.hold(held, tiny.adapter(11, 1), tiny.adapter(12, 2))
    until(lambda: {(h.part, h.generation) for h in host.state().ready} >= {("llm", 2), ("style", 2)})
    second = complete(url, model=tiny.name(12)).json()["choices"][0]["text"]
    assert len({base, first, second}) == 3
    whole = "".join(text for text, _ in stream(url, tokens=200, model=tiny.name(12)))
    begun = stream(url, tokens=200, model=tiny.name(12))
    start = next(begun)[0]
    host.hold(tiny.hold(1, settings=SETTINGS, adapters=1), tiny.adapter(11, 1))
    until(lambda: complete(url, model=tiny.name(12)).status_code == 404)
    assert start + "".join(text for text, _ in begun) == whole
    assert complete(url, model=tiny.name(11)).json()["choices"][0]["text"] == first
    assert {process.pid for process in host.engines()} == engines


def test_an_engine_core_that_is_killed_takes_its_generations_along_until_it_is_back(host, url, tiny):
    core = next(process for process in host.family() if "EngineCore" in command_line(process))
    core.kill()
    failure = until(lambda: host.state().failures)[0]
    assert not host.state().ready
    assert re.search(r"ended with status|is dead", failure.message), failure.message
    assert "EngineCore" in failure.message or "Engine" in failure.message
    back = host.ready(seconds=START_SECONDS)
    assert complete(back.ready[0].url).status_code == 200
    assert complete(back.ready[0].url, model=tiny.name(11)).status_code == 200


def test_a_stream_is_finished_before_an_engine_that_is_no_longer_wanted_ends(host):
    url = host.state().ready[0].url
    engines = host.engines()
    pieces = stream(url, tokens=300)
    next(pieces)
    host.hold()
    assert not host.state().ready
    *_, (_, reason) = pieces
    assert reason == "length"
    until(lambda: gone(engines))
