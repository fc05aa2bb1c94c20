"""Prefill and decode as two real vLLMs with the example connector.

The answers of one engine, prompts read by another.
"""

import json
import re
import signal

import httpx
import pytest

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.disaggregated import handoff_graph
from ipnext.model.settings.kv_transfer import Handoff
from tests.genai.support.hosts import MODEL, Yard, complete
from tests.genai.support.plain_engine import plain_engine
from tests.processes import command_line, gone
from tests.serving.openai.conftest import running_edge
from tests.waiting import until

pytestmark = [pytest.mark.genai, pytest.mark.timeout(1800)]

START_SECONDS = 900
"""A busy machine; on a quiet one half a minute."""
SETTINGS = {"maxModelLen": 1024, "maxNumSeqs": 8, "kvCacheGib": 0.1, "enforceEager": True, "dtype": "bfloat16"}
SETTINGS |= {"startSeconds": START_SECONDS}
HANDOFF = Handoff(prefill="prefill", decode="decode", connector="example")
BLOCK = 128
"""Tokens of a block on a CPU, vLLM's choice."""
PROMPTS = {size: "".join(chr(97 + (size + 7 * place) % 26) for place in range(size)) for size in (90, 300, 500, 800)}
"""By characters, which are the tokens of the tiny Llama."""
BODY = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def host(tmp_path_factory, tiny, vllm, vllm_cache):
    yard = Yard(tmp_path_factory.mktemp("pair"), tiny.store)
    yield yard.start("pair", f"--writable={vllm_cache}", IPNEXT_VLLM_PYTHON=vllm, VLLM_CACHE_ROOT=str(vllm_cache))
    yard.close()


@pytest.fixture(scope="module")
def alone(lasting, plain_vllm, vllm_cache, tmp_path_factory):
    """Prompt -> what one engine answers that knows nothing of another. It has ended."""
    root = tmp_path_factory.mktemp("plain")
    engine = lasting.get("plain engine", lambda: plain_engine(plain_vllm, root, vllm_cache))
    given = {"model": engine.answers_as, **BODY}
    answers = {prompt: complete(engine.url, prompt=prompt, **given).json() for prompt in PROMPTS.values()}
    lasting.close()
    texts = {prompt: answer["choices"][0]["text"] for prompt, answer in answers.items()}
    assert len(set(texts.values())) == len(texts)
    return texts


@pytest.fixture(scope="module")
def urls(host, tiny, alone):
    """Part -> URL of its engine."""
    holds = [
        tiny.hold(1, part=part, settings=SETTINGS | {"kvTransfer": {"connector": "example", "role": part}})
        for part in ("prefill", "decode")
    ]
    host.hold(*holds)
    state = until(lambda: len((s := host.state()).ready) == 2 and s, every_seconds=0.5, seconds=START_SECONDS)
    return {ready.part: ready.url for ready in state.ready}


@pytest.fixture
async def edge(tmp_path, urls):
    served = ServedGeneration(
        generation=1,
        graph=handoff_graph(HANDOFF),
        snapshots={"prefill": 1, "decode": 1},
        engines=dict.fromkeys(urls, "vllm"),
        handoff=HANDOFF,
    )
    async with running_edge(tmp_path / "router.json") as edge:

        def serve(**urls):
            endpoints = tuple(PartEndpoint(part=part, url=url, generations=(1,)) for part, url in urls.items())
            edge.table(RoutedModel(model=MODEL, served=(served,), endpoints=endpoints))

        edge.serve = serve
        serve(**urls)
        yield edge


async def text_of(edge, prompt, **more):
    async with httpx.AsyncClient(timeout=120) as client:
        body = {"model": MODEL, "prompt": prompt, **BODY, **more}
        answer = await client.post(f"{edge.url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ipnext-snapshots"] == "decode=1,prefill=1"
    return answer.json()["choices"][0]["text"]


def counted(url, name):
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return sum(float(value) for value in re.findall(rf"^vllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))


async def test_answers_are_those_of_one_engine_and_the_prompts_were_read_by_the_other(edge, urls, alone):
    before = counted(urls["decode"], "external_prefix_cache_hits_total")
    sizes = (90, 300, 800)
    for size in sizes:
        assert await text_of(edge, PROMPTS[size]) == alone[PROMPTS[size]], size
    taken = counted(urls["decode"], "external_prefix_cache_hits_total") - before
    assert taken == sum(size // BLOCK * BLOCK for size in sizes)
    assert counted(urls["prefill"], "generation_tokens_total") >= len(sizes)
    assert edge.counts(model=MODEL).prefills == {"handed": len(sizes)}


async def test_a_prompt_that_no_engine_reads_first_has_the_same_answer(edge, urls, alone):
    edge.serve(prefill="http://127.0.0.1:1", decode=urls["decode"])
    before = counted(urls["decode"], "external_prefix_cache_hits_total")
    assert await text_of(edge, PROMPTS[500]) == alone[PROMPTS[500]]
    assert counted(urls["decode"], "external_prefix_cache_hits_total") == before
    assert edge.counts(model=MODEL).prefills == {"failed": 1}


async def test_a_chat_streams_from_the_engine_that_took_over(edge, urls):
    before = counted(urls["decode"], "external_prefix_cache_hits_total")
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPTS[300]}], "stream": True}
    body |= {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}
    async with httpx.AsyncClient(timeout=120) as client:
        answer = await client.post(f"{edge.url}/v1/chat/completions", json=body)
    *events, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(events[-1])["usage"]["completion_tokens"] == 12
    assert counted(urls["decode"], "external_prefix_cache_hits_total") - before == 2 * BLOCK


def test_no_process_of_vllm_outlives_a_host_that_is_killed(host, urls):
    """The last test of the host."""
    family = host.family()
    assert sum("EngineCore" in command_line(process) for process in family) == len(urls)
    assert len(family) >= 3 * len(urls)  # of each engine keeper, server, core
    host.process.send_signal(signal.SIGKILL)
    host.process.wait()
    until(lambda: gone(family))
