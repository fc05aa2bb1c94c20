"""Prompts with shared beginnings on two engines: how much of them is cached, by policy of our router and by vllm-router's.

    python benchmarks/prefix_routing.py --with vllm-router --docs
    python benchmarks/prefix_routing.py --engines http://127.0.0.1:8001,http://127.0.0.1:8002 --prefix-words 100

Groups of requests share a long beginning (a system prompt, a document) and end each in its own way. Mock engines cache so
many blocks that half of the beginnings fit into each; a token that is not cached takes time. Real vLLM servers that serve
a model as `llm` are asked instead with --engines. docs/genai-benchmarks.md says what is measured.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT)]  # instead of benchmarks/, whose serving/ is another one

import httpx  # noqa: E402

from benchmarks.environments import FOLDER  # noqa: E402
from benchmarks.genai.clients import request, run_loop  # noqa: E402
from benchmarks.genai.edges import PEERS, Edges, make_peer  # noqa: E402
from benchmarks.genai.page import rewrite, table  # noqa: E402
from benchmarks.serving.server_process import ServerProcess  # noqa: E402

BLOCK_WORDS = 16
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
    """Requests of one way, in an order drawn from the seed. No beginning is another way's."""
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


def measured(name: str, start: Start, asked: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One row."""
    with ExitStack() as stack:
        edges = stack.enter_context(Edges(work, asked.peers_directory.resolve()))
        engines = asked.engines or [_mock(edges, asked) for _ in range(2)]
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
    return {
        "way": name,
        "hits": (hits_after - hits) / (queries_after - queries),
        "ttft": statistics.median(loop.first) * 1e3,
        "rate": len(loop.whole) / loop.seconds,
    }


def _mock(edges: Edges, asked: argparse.Namespace) -> str:
    blocks = asked.groups // 2 * (asked.prefix_words // BLOCK_WORDS + 2) * asked.room
    options = {"ttft_ms": 2, "itl_ms": 2, "prompt_us_per_token": 40, "max_num_seqs": 8, "blocks": int(blocks)}
    return f"http://127.0.0.1:{edges.mock(**options).port}"


COLUMNS: Mapping[str, tuple[str, str]] = {
    "way": ("router and policy", "{}"),
    "hits": ("tokens found cached", "{:.1%}"),
    "ratio": ("over round-robin", "{:.2f}x"),
    "ttft": ("TTFT p50, ms", "{:.1f}"),
    "rate": ("requests/s", "{:.1f}"),
}


def main() -> None:
    """Measure, print, and write the page where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--with", dest="peers", type=lambda text: text.split(","), default=[], help="install first: vllm-router")
    add("--peers-directory", type=Path, default=FOLDER, help="where peers' environments lie")
    add("--engines", type=lambda text: text.split(","), default=[], help="URLs of real engines instead of mocks")
    add("--groups", type=int, default=16)
    add("--prefix-words", type=int, default=480)
    add("--requests", type=int, default=600)
    add("--clients", type=int, default=8)
    add("--room", type=float, default=1.25, help="cache of an engine over what half of the groups need")
    add("--seed", type=int, default=1)
    add("--docs", action="store_true", help="rewrite the measured block of docs/genai-benchmarks.md")
    asked = parser.parse_args()
    for name in asked.peers:
        if name in PEERS:
            make_peer(name, asked.peers_directory.resolve())
    rows: list[dict[str, Any]] = []
    for name, start in WAYS.items():
        try:
            with tempfile.TemporaryDirectory(prefix="ipn-") as work:
                rows.append(measured(name, start, asked, Path(work)))
        except (FileNotFoundError, RuntimeError) as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
    for row in rows:
        row["ratio"] = row["hits"] / rows[0]["hits"] if rows[0]["hits"] else None
    text = table(rows, COLUMNS)
    print(text)
    if asked.docs:
        rewrite("prefix-real" if asked.engines else "prefix", text)


if __name__ == "__main__":
    main()
