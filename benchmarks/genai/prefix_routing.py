"""Prompts with shared beginnings on two engines.

How much of them is cached, by policy of our router and by vllm-router's.

    python -m benchmarks.genai.prefix_routing --with vllm-router --docs
    python -m benchmarks.genai.prefix_routing --vllm CHECKPOINT --prefix-words 200 --requests 200

Groups of requests share a long beginning (a system prompt, a document) and end each in its own way. Mock engines cache
so many blocks that half of the beginnings fit into each; a token that is not cached takes time. With --vllm two real
servers of that checkpoint are asked, whose caches have as much room. docs/genai-benchmarks.md says what is measured.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.environments import FOLDER
from benchmarks.genai.clients import request, run_loop
from benchmarks.genai.edges import PEERS, Edges, make_peer
from benchmarks.genai.page import rewrite, table
from benchmarks.serving.servers.process import ServerProcess
from ipnext.model.settings.engine import VllmSettings

BLOCK_WORDS = 16
BLOCK_TOKENS = 128
"""Of vLLM's cache on a CPU."""
SUFFIX_WORDS = 24
Start = Callable[[Edges, Sequence[str]], ServerProcess]

WAYS: Mapping[str, Start] = {
    "IPnext, round-robin": lambda edges, engines: edges.router(engines, policy="round-robin"),
    "IPnext, least-loaded": lambda edges, engines: edges.router(engines, policy="least-loaded"),
    "IPnext, prefix": lambda edges, engines: edges.router(engines, policy="prefix"),
    "vllm-router, round_robin": lambda edges, engines: edges.vllm_router(engines, policy="round_robin"),
    "vllm-router, cache_aware": lambda edges, engines: edges.vllm_router(engines, policy="cache_aware"),
}


def prompts(name: str, asked: argparse.Namespace) -> Iterator[bytes]:
    """Yield requests of one way, in an order drawn from the seed. No beginning is another way's."""
    drawn = random.Random(asked.seed)
    for number in range(asked.requests + asked.groups):
        # Each group comes once at first, so that no way is lucky with the order.
        group = number if number < asked.groups else drawn.randrange(asked.groups)
        words = [f"{name}{group}", *(f"w{drawn.randrange(10**5)}" for _ in range(SUFFIX_WORDS))]
        shared = random.Random(f"{name}{group}{asked.seed}")
        prefix = [f"{name}{group}", *(f"w{shared.randrange(10**5)}" for _ in range(asked.prefix_words))]
        yield request(" ".join(prefix + words), tokens=4, stream=True)


def cached(engines: Sequence[str]) -> tuple[float, float]:
    """Tokens found in the caches, and all that were asked for."""
    found = {"hits": 0.0, "queries": 0.0}
    for url in engines:
        lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
        for name in found:
            series = f"vllm:prefix_cache_{name}_total{{"
            found[name] += sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))
    return found["hits"], found["queries"]


def measured(
    name: str, start: Start, edges: Edges, engines: Sequence[str], asked: argparse.Namespace
) -> dict[str, Any]:
    """One row. The engines' caches are empty at first."""
    for url in engines:
        httpx.post(f"{url}/reset_prefix_cache", trust_env=False).raise_for_status()
    server = start(edges, engines)
    hits, queries = cached(engines)
    word = "".join(letter for letter in name if letter.isalpha())
    loop = run_loop(
        f"http://127.0.0.1:{server.port}",
        prompts(word, asked),
        clients=asked.clients,
        requests=asked.requests + asked.groups,
        tokens=4,
    )
    hits_after, queries_after = cached(engines)
    server.end()
    return {
        "way": name,
        "hits": (hits_after - hits) / (queries_after - queries),
        "ttft": statistics.median(loop.first) * 1e3,
        "rate": len(loop.whole) / loop.seconds,
    }


def compared(asked: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """All ways that can be started, before the same two engines; the others are told on standard error."""
    rows: list[dict[str, Any]] = []
    with Edges(work, asked.peers_directory.resolve()) as edges:
        make = _vllm if asked.vllm else _mock
        engines = [f"http://127.0.0.1:{make(edges, asked).port}" for _ in range(2)]
        for name, start in WAYS.items():
            try:
                rows.append(measured(name, start, edges, engines, asked))
            except (FileNotFoundError, RuntimeError) as error:
                print(f"{name}: not measured: {error}", file=sys.stderr)
    for row in rows:
        row["ratio"] = row["hits"] / rows[0]["hits"] if rows[0]["hits"] else None
    return rows


def _mock(edges: Edges, asked: argparse.Namespace) -> ServerProcess:
    blocks = _room(asked.prefix_words, BLOCK_WORDS, asked)
    options = {"ttft_ms": 2, "itl_ms": 2, "prompt_us_per_token": asked.token_us, "max_num_seqs": 8, "blocks": blocks}
    return edges.mock(**options)


def _vllm(edges: Edges, asked: argparse.Namespace) -> ServerProcess:
    blocks = _room(asked.prefix_words * asked.word_tokens, BLOCK_TOKENS, asked)
    room = ("--num-gpu-blocks-override", str(blocks))
    settings = VllmSettings(max_num_seqs=8, max_num_batched_tokens=2048, kv_cache_gib=0.5, extra_args=room)
    return edges.vllm(asked.vllm, settings)


def _room(beginning: float, block: int, asked: argparse.Namespace) -> int:
    """Blocks of an engine's cache: so much over what half of the groups need."""
    return int(asked.groups // 2 * (beginning / block + 2) * asked.room)


COLUMNS: Mapping[str, tuple[str, str]] = {
    "way": ("router and policy", "{}"),
    "hits": ("tokens found cached", "{:.1%}"),
    "ratio": ("over round-robin", "{:.2f}x"),
    "ttft": ("TTFT p50, ms", "{:.1f}"),
    "rate": ("requests/s", "{:.1f}"),
}


def main() -> None:
    """Measure, print, and write the page if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--with", dest="peers", type=lambda text: text.split(","), default=[], help="install first: vllm-router")
    add("--peers-directory", type=Path, default=FOLDER, help="where peers' environments lie")
    add("--vllm", type=Path, metavar="CHECKPOINT", help="real engines of this directory instead of mocks")
    add("--word-tokens", type=float, default=6.7, help="tokens of a word and its space, for a real engine")
    add("--groups", type=int, default=16)
    add("--prefix-words", type=int, default=480)
    add("--requests", type=int, default=600)
    add("--clients", type=int, default=8)
    add("--room", type=float, default=1.25, help="cache of an engine over what half of the groups need")
    add("--token-us", type=float, default=40, help="a mock's time for a token that is not cached, in microseconds")
    add("--seed", type=int, default=1)
    add("--docs", action="store_true", help="rewrite the measured block of docs/genai-benchmarks.md")
    asked = parser.parse_args()
    for name in asked.peers:
        if name in PEERS:
            make_peer(name, asked.peers_directory.resolve())
    with tempfile.TemporaryDirectory(prefix="ipn-") as work:
        text = table(compared(asked, Path(work)), COLUMNS)
    print(text)
    if asked.docs:
        rewrite("prefix-real" if asked.vllm else "prefix", text)


if __name__ == "__main__":
    main()
