"""The OpenAI edge beside its peers, before one mock engine.

Added latency, tokens a second, and processor time of the proxy.

    python -m benchmarks.genai.openai_edge --with vllm-router,litellm --docs
    python -m benchmarks.genai.openai_edge --rounds 2 --requests 50
    python -m benchmarks.genai.openai_edge --vllm CHECKPOINT

Every way to the engine is asked in turns, round after round, by the same client. `direct` is the engine itself: the
ratio of a figure is to it, round by round, and then the median. With --vllm a real server of that checkpoint is asked,
for streams only. docs/genai-benchmarks.md says what is measured.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environments import FOLDER
from benchmarks.genai.clients import Loop, request, run_loop
from benchmarks.genai.edges import PEERS, Edges, make_peer
from benchmarks.genai.page import rewrite, table
from benchmarks.serving.servers.process import ServerProcess
from ipnext.model.settings.engine import VllmSettings

PROMPT = "tell me of the sea " * 20
TOKENS = 64
CONCURRENCY = (1, 4, 16)
BUSY = 16
"""Clients at once of whole answers that take no time: the cost of a hop that never sleeps."""
FEWEST = 2
"""Streams of one client in one round, at least. A machine's own pace drifts: many short rounds say more than a few long
ones."""
SETTINGS = VllmSettings(max_model_len=1024, kv_cache_gib=0.5, max_num_seqs=16)
"""Of a real engine."""


class Way:
    """One way to the engine: where to ask, the processes that stand between, and what was seen."""

    def __init__(self, name: str, url: str, between: tuple[ServerProcess, ...] = ()) -> None:
        self.name, self.url, self._between = name, url, between
        self.loops: dict[str, list[Loop]] = {}
        """Kind -> what each round saw."""
        self.cpu: dict[str, float] = {}

    def measure(self, kind: str, *, clients: int, requests: int, stream: bool, tokens: int) -> None:
        """Run one loop and add to what was seen of its kind."""
        bodies = itertools.repeat(request(PROMPT, tokens=tokens, stream=stream))
        first = request(PROMPT, tokens=1, stream=stream)
        spent = 0.0

        def begin() -> None:
            nonlocal spent
            spent = self._spent()

        loop = run_loop(
            self.url, bodies, clients=clients, requests=requests, tokens=tokens, before=first, on_begin=begin
        )
        self.cpu[kind] = self.cpu.get(kind, 0.0) + self._spent() - spent
        self.loops.setdefault(kind, []).append(loop)

    def _spent(self) -> float:
        return sum(server.cpu_seconds() for server in self._between)

    def figure(self, kind: str, of: str) -> float:
        """Milliseconds of a request (p50), or the proxy's CPU milliseconds for each request."""
        loop = Loop()
        for one in self.loops[kind]:
            loop.add(one)
        if of == "cpu":
            return self.cpu[kind] / len(loop.whole) * 1e3
        return statistics.median(loop.first if of == "first" else loop.whole) * 1e3

    def over(self, direct: "Way", kind: str, figure: Callable[[Loop], float]) -> float:
        """Return a figure over that of the engine asked directly in the same round: the median of the rounds."""
        rounds = zip(self.loops[kind], direct.loops[kind], strict=True)
        return statistics.median(figure(own) / figure(its) for own, its in rounds)


def ways(edges: Edges, direct: str) -> Iterator[Way]:
    """Those to an engine's URL that can be started; the others are told on standard error."""
    yield Way("direct", direct)
    router = edges.router([direct])
    yield Way("IPnext router", _url(router), (router,))
    gateway = edges.envoy(router.port)
    yield Way("IPnext Envoy and router", _url(gateway), (gateway, router))
    peers: dict[str, Callable[[], ServerProcess]] = {
        "vllm-router": lambda: edges.vllm_router([direct], policy="cache_aware"),
        "LiteLLM proxy": lambda: edges.litellm([direct]),
    }
    for name, start in peers.items():
        try:
            server = start()
        except (FileNotFoundError, RuntimeError) as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
            continue
        yield Way(name, _url(server), (server,))
        if name == "vllm-router":
            plain = edges.plain_envoy(server.port)
            yield Way("Envoy and vllm-router", _url(plain), (plain, server))


def _url(server: ServerProcess) -> str:
    return f"http://127.0.0.1:{server.port}"


def measured(asked: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Return the rows of the table, `direct` first."""
    with Edges(work, asked.peers_directory.resolve()) as edges:
        quick = [] if asked.vllm else list(ways(edges, _url(edges.mock(ttft_ms=0, itl_ms=0))))
        engine = edges.vllm(asked.vllm, SETTINGS) if asked.vllm else edges.mock(ttft_ms=5, itl_ms=5)
        paced = list(ways(edges, _url(engine)))
        for number in range(asked.rounds):
            for way in _from(quick, number):
                way.measure("whole", clients=1, requests=asked.requests, stream=False, tokens=1)
                way.measure("stream", clients=1, requests=asked.requests, stream=True, tokens=4)
                way.measure("busy", clients=BUSY, requests=asked.requests, stream=False, tokens=1)
            for clients, way in itertools.product(asked.clients, _from(paced, number)):
                requests = max(clients, FEWEST, asked.requests * clients // 32)
                way.measure(f"paced {clients}", clients=clients, requests=requests, stream=True, tokens=TOKENS)
    rows = [_streamed(way, paced[0], asked.clients) for way in paced]
    for row, way in zip(rows, quick, strict=False):
        row.update(_added(way, quick[0]))
    return rows


def _from(ways: Sequence[Way], number: int) -> Sequence[Way]:
    """Return the ways in turns, another one first, so that their order is no part of the figures."""
    first = number % len(ways) if ways else 0
    return [*ways[first:], *ways[:first]]


def _added(way: Way, direct: Way) -> dict[str, Any]:
    """Return the time that a hop adds to an answer that takes no time."""
    row: dict[str, Any] = {}
    for name, kind, of in (("whole", "whole", "whole"), ("first", "stream", "first")):
        row[name] = way.figure(kind, of)
        row[f"{name} added"] = row[name] - direct.figure(kind, of)
    return row | {f"cpu {kind}": way.figure(kind, "cpu") for kind in ("whole", "stream", "busy")}


def _streamed(way: Way, direct: Way, concurrency: Sequence[int]) -> dict[str, Any]:
    """Streams of so many clients, over the engine asked directly."""
    row: dict[str, Any] = {"way": way.name}
    for clients in concurrency:
        kind = f"paced {clients}"
        row[f"tokens {clients}"] = way.over(direct, kind, _pace)
        row[f"ttft {clients}"] = way.over(direct, kind, _first)
        row[f"cpu {clients}"] = way.figure(kind, "cpu")
    return row


def _pace(loop: Loop) -> float:
    return loop.tokens / loop.seconds


def _first(loop: Loop) -> float:
    return statistics.median(loop.first)


WAY: Mapping[str, tuple[str, str]] = {"way": ("way to the engine", "{}")}
ADDED: Mapping[str, tuple[str, str]] = {
    "whole": ("whole answer, ms", "{:.2f}"),
    "whole added": ("added", "{:+.2f}"),
    "cpu whole": ("CPU ms", "{:.2f}"),
    "first": ("stream's first piece, ms", "{:.2f}"),
    "first added": ("added", "{:+.2f}"),
    "cpu stream": ("CPU ms", "{:.2f}"),
    "cpu busy": (f"{BUSY} clients, whole answers, CPU ms", "{:.2f}"),
}


def columns(concurrency: Sequence[int]) -> dict[str, tuple[str, str]]:
    """Those of streams."""
    most = max(concurrency)
    return {
        **{f"tokens {n}": (f"tokens/s, {n} clients", "{:.3f}x") for n in concurrency},
        **{f"ttft {n}": (f"TTFT, {n} clients", "{:.3f}x") for n in concurrency},
        f"cpu {most}": (f"CPU ms a stream of {TOKENS}, {most} clients", "{:.2f}"),
    }


def main() -> None:
    """Measure, print, and write the page if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--with", dest="peers", type=lambda text: text.split(","), default=[], help=f"install first: {','.join(PEERS)}")
    add("--peers-directory", type=Path, default=FOLDER, help="where peers' environments lie")
    add("--vllm", type=Path, metavar="CHECKPOINT", help="a real engine of this directory instead of mocks")
    add("--rounds", type=int, default=5)
    add("--requests", type=int, default=400, help="of each way in each round")
    add(
        "--clients",
        type=lambda text: [int(n) for n in text.split(",")],
        default=CONCURRENCY,
        help="of streams, at once",
    )
    add("--docs", action="store_true", help="rewrite the measured block of docs/genai-benchmarks.md")
    asked = parser.parse_args()
    for name in asked.peers:
        try:
            make_peer(name, asked.peers_directory.resolve())
        except (RuntimeError, KeyError) as error:
            print(f"not installed: {error}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="ipn-") as work:
        text = table(measured(asked, Path(work)), {**WAY, **({} if asked.vllm else ADDED), **columns(asked.clients)})
    print(text)
    if asked.docs:
        rewrite("edge-real" if asked.vllm else "edge", text)


if __name__ == "__main__":
    main()
