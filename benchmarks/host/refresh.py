"""Cost of an in-place refresh for requests during it.

A new snapshot of every part, again and again.

    python -m benchmarks.host.refresh  (--seconds 300 --every 2 --hosts 2 --megabytes 100 --rate 100 --json out.json)

Real hosts, a real router, a client that sends at a fixed rate and counts each answer from the moment it was due. The
baseline is the same load without a refresh, half of it before and half after, in the same run. Each refresh fetches,
checks, loads and warms every part on every host, moves the router to it and unloads the former one. An answer is
`mixed` if the parts that made it, or what their weights say, are not the generation it claims.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.process.parent_death import tether
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds, HostState
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterState, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph, SnapshotSource
from serving.export import export_model
from serving.protocol.tensors import Tensor as Named
from serving.protocol.v2 import InferRequest, decode_response, encode_request, parse_header_length

MODEL, REGION = "refreshed", "here"
TABLES, WIDTH = 8, 16
SNAPSHOTS = 4
"""Sets of weights that the refreshes go through in turn."""
WARM_UP_SECONDS = 2.0
REQUEST_SECONDS = 10.0
GRAPH = PartGraph(
    nodes=(
        GraphNode(name="lookup", part="sparse", inputs={"ids": "request.ids"}),
        GraphNode(
            name="top",
            part="dense",
            inputs={"features": "request.features", "rows": "lookup.rows", "stamp": "lookup.stamp"},
        ),
    ),
    outputs={"score": "top.score", "stamps": "top.stamps"},
)


class Sparse(nn.Module):
    """ids [B, 8] -> rows [B, 8 * 16], stamp [B]: what its weights are."""

    number: Tensor

    def __init__(self, number: int, megabytes: float) -> None:
        super().__init__()
        torch.manual_seed(number)
        rows = int(megabytes * 1e6 / (4 * WIDTH * TABLES))
        self.tables = nn.ModuleList(nn.Embedding(rows, WIDTH) for _ in range(TABLES))
        self.register_buffer("number", torch.tensor(number))

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Return the rows side by side."""
        rows = torch.cat([table(ids[:, place]) for place, table in enumerate(self.tables)], 1)
        return {"rows": rows, "stamp": self.number.expand(ids.shape[0])}


class Dense(nn.Module):
    """features [B, 13], rows [B, 128], stamp [B] -> score [B], stamps [B, 2]: its own and the one it was given."""

    number: Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        torch.manual_seed(100 + number)
        sizes = (13 + TABLES * WIDTH, 512, 256, 1)
        self.top = nn.Sequential(*(m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())))
        self.register_buffer("number", torch.tensor(number))

    def forward(self, features: Tensor, rows: Tensor, stamp: Tensor) -> dict[str, Tensor]:
        """Return a score for each row."""
        score = torch.sigmoid(self.top(torch.cat([features, rows], 1))).squeeze(1)
        return {"score": score, "stamps": torch.stack([self.number.expand(stamp.shape[0]), stamp], 1)}


@dataclass
class Phase:
    """Answers of one stretch of the run: milliseconds from the moment a request was due."""

    milliseconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, float]:
        """Percentiles and counts."""
        at = {"p50": 50, "p99": 99, "p99.9": 99.9, "max": 100}
        found = {name: float(np.percentile(self.milliseconds, q)) for name, q in at.items()}
        return {**found, **{name: float(self.outcomes[name]) for name in ("answered", "failed", "mixed")}}


def published(store: FileArtifactStore, place: Path, megabytes: float) -> dict[tuple[str, int], SnapshotSource]:
    """Every snapshot of both parts in the store."""
    found = {}
    ids = torch.zeros(2, TABLES, dtype=torch.int64)
    for number in range(1, SNAPSHOTS + 1):
        sparse = Sparse(number, megabytes).eval()
        given = {"features": torch.zeros(2, 13), **sparse(ids)}
        for part, module, examples in (("sparse", sparse, {"ids": ids}), ("dense", Dense(number).eval(), given)):
            directory = place / "snapshots" / f"{part}-{number}"
            export_model(module, {name: tensor.detach() for name, tensor in examples.items()}, directory)
            found[part, number] = ingest_directory(store, directory)
            shutil.rmtree(directory)
    return found


def snapshot_of(generation: int) -> int:
    """Return the snapshot that a generation names: they come in turn."""
    return (generation - 1) % SNAPSHOTS + 1


@dataclass
class Rig:
    """Hosts and a router in a directory, all ended by `stack`."""

    place: Path
    hosts: int
    host_arguments: Sequence[str]
    stack: ExitStack
    sources: Mapping[tuple[str, int], SnapshotSource]
    store: FileArtifactStore
    urls: list[str] = field(default_factory=list)
    router: str = ""
    revision: int = 0
    load_seconds: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Start all processes."""
        for number in range(self.hosts):
            cache = self.place / f"cache-{number}"
            arguments = ["--id", f"host-{number}", "--artifacts", self.store.uri, "--cache", str(cache)]
            self.urls.append(self._process("serving.host", [*arguments, *self.host_arguments]))
        self.router = self._process("serving.router", ["--table", str(self.place / "router.json")])

    def _process(self, module: str, arguments: Sequence[str]) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        log = self.stack.enter_context((self.place / f"{module}-{port}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--port", str(port), "--region", REGION, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            preexec_fn=tether(),  # noqa: PLW1509 - no other thread runs yet in this process
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return f"http://127.0.0.1:{port}"

    async def refresh(self, session: aiohttp.ClientSession, generation: int) -> None:
        """Bring a generation up beside the former one on every host, move the router, unload the former one."""
        await asyncio.to_thread(self._forget, generation - 2)
        began = time.perf_counter()
        both = [g for g in (generation - 1, generation) if g > 0]
        await asyncio.gather(*(self._hold(session, url, both) for url in self.urls))
        await asyncio.gather(*(self._ready(session, url, generation) for url in self.urls))
        self.load_seconds.append(time.perf_counter() - began)
        await self._route(session, generation)
        await asyncio.gather(*(self._hold(session, url, [generation]) for url in self.urls))

    async def _hold(self, session: aiohttp.ClientSession, url: str, generations: Sequence[int]) -> None:
        holds = tuple(self._hosted(part, g) for part in ("sparse", "dense") for g in generations)
        async with session.put(f"{url}/control/holds", data=HostHolds(holds=holds).model_dump_json()) as answer:
            assert answer.status == 202, await answer.text()

    def _hosted(self, part: str, generation: int) -> HostedSnapshot:
        source = self.sources[part, snapshot_of(generation)]
        return HostedSnapshot(
            model=MODEL,
            part=part,
            engine="torch",
            snapshot=generation,
            digest=source.manifest.digest,
            uri=source.uri,
            generations=(generation,),
        )

    async def _ready(self, session: aiohttp.ClientSession, url: str, generation: int) -> None:
        while True:
            async with session.get(f"{url}/control/state") as answer:
                state = HostState.model_validate_json(await answer.read())
            assert not state.failures, state.failures
            if sum(held.generation == generation for held in state.ready) == 2:
                return
            await asyncio.sleep(0.05)

    async def _route(self, session: aiohttp.ClientSession, generation: int) -> None:
        self.revision += 1
        endpoints = tuple(
            PartEndpoint(part=part, url=url, generations=(generation,))
            for part in ("sparse", "dense")
            for url in self.urls
        )
        served = ServedGeneration(
            generation=generation, graph=GRAPH, snapshots={"sparse": generation, "dense": generation}
        )
        model = RoutedModel(model=MODEL, served=(served,), endpoints=endpoints)
        table = RouterTable(revision=self.revision, region=REGION, models=(model,))
        await asyncio.to_thread(self._write, table.model_dump_json())
        while True:
            async with session.get(f"{self.router}/control/state") as answer:
                if RouterState.model_validate_json(await answer.read()).revision == self.revision:
                    return
            await asyncio.sleep(0.02)

    def _write(self, text: str) -> None:
        draft = self.place / "router.draft"
        draft.write_text(text)
        draft.rename(self.place / "router.json")

    def _forget(self, generation: int) -> None:
        """Remove the files of an unloaded generation from the caches, so that a later refresh fetches them again."""
        if generation > 0:
            for part in ("sparse", "dense"):
                digest = self.sources[part, snapshot_of(generation)].manifest.digest
                for number in range(self.hosts):
                    shutil.rmtree(self.place / f"cache-{number}" / digest, ignore_errors=True)

    async def started(self, session: aiohttp.ClientSession) -> None:
        """Return once every process answers."""
        for url in (*self.urls, self.router):
            while True:
                try:
                    async with session.get(f"{url}/healthz") as answer:
                        if answer.status in {200, 404, 503}:
                            break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)


class Client:
    """Sends at a fixed rate, whatever comes back."""

    def __init__(self, session: aiohttp.ClientSession, url: str, rate: float, batch: int, rows: int) -> None:
        self._session = session
        self._url = f"{url}/v2/models/{MODEL}/infer"
        self._rate = rate
        random = np.random.default_rng(0)
        self._bodies = [_body(random, batch, rows) for _ in range(64)]
        self.phase = Phase()

    async def run(self, seconds: float, phase: Phase) -> None:
        """One stretch; returns when its last answer has come."""
        began, tasks = time.perf_counter(), []
        for number in range(int(seconds * self._rate)):
            due = began + number / self._rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(number, due, phase)))
        await asyncio.gather(*tasks)

    async def _ask(self, number: int, due: float, phase: Phase) -> None:
        body, headers = self._bodies[number % len(self._bodies)]
        try:
            async with self._session.post(self._url, data=body, headers=headers) as answer:
                content = await answer.read()
                phase.milliseconds.append(1000 * (time.perf_counter() - due))
                phase.outcomes[_outcome(answer, content)] += 1
        except (aiohttp.ClientError, TimeoutError):
            phase.milliseconds.append(1000 * (time.perf_counter() - due))
            phase.outcomes["failed"] += 1


def _body(random: np.random.Generator, batch: int, rows: int) -> tuple[bytes, Mapping[str, str]]:
    inputs = {
        "ids": Named("INT64", random.integers(0, rows, (batch, TABLES))),
        "features": Named("FP32", random.standard_normal((batch, 13)).astype(np.float32)),
    }
    encoded = encode_request(InferRequest(inputs, binary_output=True))
    return bytes(encoded.body), dict(encoded.headers)


def _outcome(answer: aiohttp.ClientResponse, content: bytes) -> str:
    """`answered` with 200 by one generation, `mixed` with 200 by several, or `failed`."""
    if answer.status != 200:
        return "failed"
    generation = int(answer.headers["x-ipnext-generation"])
    proof = f"dense={generation},sparse={generation}"
    length = parse_header_length(answer.headers.get("inference-header-content-length"))
    stamps = decode_response(bytearray(content), length).outputs["stamps"].data
    alike = bool((stamps == snapshot_of(generation)).all())
    return "answered" if alike and answer.headers["x-ipnext-snapshots"] == proof else "mixed"


async def measured(rig: Rig, given: argparse.Namespace) -> tuple[Phase, Phase]:
    """Measure the load without refreshes and with them."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    connector = aiohttp.TCPConnector(limit=256)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await rig.started(session)
        await rig.refresh(session, 1)
        rows = int(given.megabytes * 1e6 / (4 * WIDTH * TABLES))
        client = Client(session, rig.router, given.rate, given.batch, rows)
        await client.run(WARM_UP_SECONDS, Phase())
        steady, refreshing = Phase(), Phase()
        await client.run(given.seconds / 2, steady)
        refreshes = asyncio.create_task(_refresh_often(rig, session, given.every))
        await client.run(given.seconds, refreshing)
        refreshes.cancel()
        await asyncio.wait([refreshes])
        if not refreshes.cancelled():
            refreshes.result()
        await client.run(given.seconds / 2, steady)
    return steady, refreshing


async def _refresh_often(rig: Rig, session: aiohttp.ClientSession, every: float) -> None:
    generation, due = 2, time.perf_counter()
    while True:
        await asyncio.shield(asyncio.create_task(rig.refresh(session, generation)))
        generation, due = generation + 1, due + every
        await asyncio.sleep(max(0.0, due - time.perf_counter()))


def shown(steady: Mapping[str, float], refreshing: Mapping[str, float], title: str) -> Table:
    """Return the figures side by side."""
    table = Table(title=title)
    for column in ("", "steady", "refreshing", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in steady.items():
        other = refreshing[name]
        ratio = f"{other / value:.2f}" if name.startswith(("p", "max")) and value else ""
        table.add_row(name, f"{value:.2f}", f"{other:.2f}", ratio)
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="of load while refreshes go on; as much without")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between refreshes")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=100.0, help="of the tables of one snapshot")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--host-arguments", default="", help="further arguments of the hosts, one string")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Publish, start, measure, print."""
    given = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        place = Path(scratch)
        store = FileArtifactStore(place / "store")
        sources = published(store, place, given.megabytes)
        rig = Rig(place, given.hosts, given.host_arguments.split(), stack, sources, store)
        rig.start()
        phases = asyncio.run(measured(rig, given))
    steady, refreshing = (phase.figures() for phase in phases)
    loads = {"refreshes": len(rig.load_seconds) - 1, "load_seconds_median": float(np.median(rig.load_seconds[1:]))}
    title = (
        f"{loads['refreshes']} refreshes of {given.megabytes:g} MB, ready after {loads['load_seconds_median']:.2f} s"
    )
    Console().print(shown(steady, refreshing, f"{title}; milliseconds"))
    if given.json:
        given.json.write_text(json.dumps({"steady": steady, "refreshing": refreshing, **loads}, indent=2))


if __name__ == "__main__":
    main()
