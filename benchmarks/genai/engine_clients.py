"""What a router could ask engines with: its own connections, aiohttp or httpx, before one mock engine, in turns.

    python -m benchmarks.genai.engine_clients [--rounds R] [--requests N] [--docs]

One request after the other over a kept-alive connection, an answer of 8 events streamed, pieces only counted. Times are
of the client's process: `CPU` is its processor time for each request, which a router would spend.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import uvloop

from benchmarks.environments import FOLDER
from benchmarks.genai.clients import CHAT, request
from benchmarks.genai.edges import Edges
from benchmarks.genai.page import rewrite, table
from serving.openai.engines.connection import EngineConnectionPool

JSON = {"content-type": "application/json"}
BODY = request("tell me of the sea " * 20, tokens=8, stream=True)
Ask = Callable[[], Awaitable[int]]


@asynccontextmanager
async def own(url: str) -> AsyncIterator[Ask]:
    """serving.openai.engines.connection."""
    pool = EngineConnectionPool(url)

    async def ask() -> int:
        return len(await (await pool.ask("POST", CHAT, JSON, BODY)).rest())

    yield ask
    pool.close()


@asynccontextmanager
async def with_aiohttp(url: str) -> AsyncIterator[Ask]:
    """Aiohttp's client."""
    async with aiohttp.ClientSession() as session:

        async def ask() -> int:
            async with session.post(url + CHAT, data=BODY, headers=JSON) as answer:
                return sum([len(piece) async for piece in answer.content.iter_any()])

        yield ask


@asynccontextmanager
async def with_httpx(url: str) -> AsyncIterator[Ask]:
    """Httpx's client."""
    async with httpx.AsyncClient(trust_env=False) as client:

        async def ask() -> int:
            async with client.stream("POST", url + CHAT, content=BODY, headers=JSON) as answer:
                return sum([len(piece) async for piece in answer.aiter_raw()])

        yield ask


CLIENTS = {"own, httptools": own, "aiohttp": with_aiohttp, "httpx": with_httpx}
COLUMNS: Mapping[str, tuple[str, str]] = {
    "client": ("client", "{}"),
    "ms": ("ms a request, p50", "{:.3f}"),
    "ms ratio": ("over own", "{:.2f}x"),
    "cpu": ("CPU ms a request", "{:.3f}"),
    "cpu ratio": ("over own", "{:.2f}x"),
}


async def measured(url: str, asked: argparse.Namespace) -> list[dict[str, object]]:
    """Return a row for each client."""
    seconds: dict[str, list[float]] = {name: [] for name in CLIENTS}
    cpu = dict.fromkeys(CLIENTS, 0.0)
    for _ in range(asked.rounds):
        for name, client in CLIENTS.items():
            async with client(url) as ask:
                await ask()
                before = time.process_time()
                for _ in range(asked.requests):
                    began = time.perf_counter()
                    await ask()
                    seconds[name].append(time.perf_counter() - began)
                cpu[name] += time.process_time() - before
    p50 = {name: statistics.median(found) * 1e3 for name, found in seconds.items()}
    spent = {name: cpu[name] / len(seconds[name]) * 1e3 for name in CLIENTS}
    first = next(iter(CLIENTS))
    return [
        {
            "client": n,
            "ms": p50[n],
            "ms ratio": p50[n] / p50[first],
            "cpu": spent[n],
            "cpu ratio": spent[n] / spent[first],
        }
        for n in CLIENTS
    ]


def main() -> None:
    """Measure, print, and write the page if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400, help="of each client in each round")
    parser.add_argument("--docs", action="store_true", help="rewrite the measured block of docs/genai-benchmarks.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipn-") as work, Edges(Path(work), FOLDER) as edges:
        engine = edges.mock(ttft_ms=0, itl_ms=0)
        text = table(uvloop.run(measured(f"http://127.0.0.1:{engine.port}", asked)), COLUMNS)
    print(text)
    if asked.docs:
        rewrite("clients", text)


if __name__ == "__main__":
    main()
