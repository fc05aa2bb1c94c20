"""A router in this process before engines that stand in for vLLM.

Mock_engine.py as processes, and ones that misbehave.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.components.sockets import socket_url
from ipnext.model.access.predictions import AccessList
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration, SnapshotFacts
from ipnext.model.registry.adapter import ServedAdapter
from ipnext.model.registry.registry import GraphNode, PartGraph
from serving.access.access_list import AccessFollower
from serving.http.connection import http_factory
from serving.http.limits import HttpLimits
from serving.metrics.generation_counts import GenerationCounts
from serving.router.router import Router, RouterLimits
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.metrics import RouterMetrics
from serving.routing.table import TableFollower
from tests.mixed_ranker import Ranker, export_ranker
from tests.waiting import until

from .mixed import MODEL

MOCK = Path(__file__).parents[2] / "genai" / "support" / "mock_engine.py"
REGION = "north"
SILENT_SECONDS = 60.0
"""So long may an engine of these tests be silent: tests of shorter limits see which of them it was."""
GRAPH = PartGraph(
    nodes=(GraphNode(name="llm", part="llm", inputs={"prompt": "request.prompt"}),), outputs={"text": "llm.text"}
)


def served(generation, *, engines=None, routing=None, snapshot=None, adapters=None, context=None):
    """`adapters`: part -> (its name in the engines, its snapshot)."""
    beside = adapters or {}
    facts = SnapshotFacts(created_at=datetime(2026, 1, 2, tzinfo=UTC), signature="s")
    return ServedGeneration(
        generation=generation,
        graph=GRAPH,
        snapshots={"llm": snapshot or 10 * generation} | {part: number for part, (_, number) in beside.items()},
        adapters={part: ServedAdapter(base="llm", name=name) for part, (name, _) in beside.items()},
        engines={"llm": "vllm"} if engines is None else engines,
        facts={"llm": facts},
        routing={"llm": routing} if routing else {},
        contexts={"llm": context} if context else {},
    )


def endpoint(url, *generations, answers_as=None):
    return PartEndpoint(part="llm", url=url, generations=generations, answers_as=answers_as)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def mock_engine(model="llm", at=None, **options):
    """A process of mock_engine.py, on a port or on the socket `at`; its base URL."""
    port = None if at else free_port()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    where = ["--socket", str(at)] if at else ["--port", str(port)]
    command = [sys.executable, str(MOCK), *where, "--model", model, *flags]
    process = subprocess.Popen(command, env={**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})
    try:
        if at:
            until(lambda: answers_at(at), why=lambda: f"{at} is not ready")
        yield socket_url(at) if at else await_ready(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def answers_at(path):
    with socket.socket(socket.AF_UNIX) as asking, suppress(OSError):
        asking.connect(str(path))
        return True


def await_ready(url, process, *, path="/health"):
    def answers():
        assert process.poll() is None, "the process ended"
        with suppress(httpx.TransportError):
            return httpx.get(url + path, timeout=60).status_code == 200

    until(answers, why=lambda: f"{url} is not ready", every_seconds=0.05)
    return url


@contextmanager
def router_process(directory, *engines, **flags):
    """A router process with one model `llm` on these engines; its base URL."""
    with started_router(directory, *engines, **flags) as (url, _):
        yield url


@contextmanager
def started_router(directory, *engines, drain_seconds=10.0, **flags):
    """The same with its process."""
    endpoints = tuple(endpoint(url, 1) for url in engines)
    model = RoutedModel(model="llm", served=(served(1),), endpoints=endpoints, drain_seconds=drain_seconds)
    table = directory / "table.json"
    table.write_text(RouterTable(revision=1, region=REGION, models=(model,)).model_dump_json())
    port = free_port()
    command = [sys.executable, "-m", "serving.router", "--port", str(port), "--region", REGION, "--table", str(table)]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    process = subprocess.Popen(command)
    try:
        yield await_ready(f"http://127.0.0.1:{port}", process, path="/v2/health/ready"), process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="package")
def engine(subprocesses):
    with mock_engine(name="word") as url:
        yield url


@pytest.fixture(scope="package")
def other_engine(subprocesses):
    with mock_engine(name="other") as url:
        yield url


@pytest.fixture(scope="package")
def ranker_hosts(tmp_path_factory, toolbox, subprocesses):
    """Two hosts, each with the rankers of tests.mixed 1 and 2, each of these for the generation of its number."""
    root = tmp_path_factory.mktemp("rankers")
    store = FileArtifactStore(root / "store")
    holds = []
    for number in (1, 2):
        source = ingest_directory(store, export_ranker(Ranker(number), root / f"ranker-{number}"))
        given = {"model": MODEL, "part": "ranker", "engine": "torch", "snapshot": number, "uri": source.uri}
        holds.append(HostedSnapshot(**given, digest=source.manifest.digest, generations=(number,)))
    machine = toolbox.machine(root, store.uri)
    hosts = [machine.start_host(f"ranker-{number}") for number in (1, 2)]
    for host in hosts:
        host.hold(*holds)
    for host in hosts:
        assert len(host.settle().ready) == 2, host.state()
    yield {number: host.url for number, host in enumerate(hosts, 1)}
    machine.close()


class Edge:
    """A router on a loopback port; `table` puts models in force."""

    def __init__(self, path, limits):
        self.path = path
        self.metrics = RouterMetrics(region=REGION, served=lambda: self.follower.routes.all)
        self.hosts = HostClient(HostLoadBalancer(time.monotonic), time.monotonic)
        self.follower = TableFollower(path, region=REGION, on_change=self.changed)
        path.with_name("access.json").write_text(AccessList(revision=0).model_dump_json())  # there never was one
        self.access = AccessFollower(path.with_name("access.json"))
        self.follower.beside = (self.access.look,)
        self.router = Router(self.follower, self.hosts, self.metrics, region=REGION, limits=limits, access=self.access)
        self.revision = 0
        self.url = ""

    def changed(self, routes):
        self.router.engines.keep(routes.engine_urls, chosen_among=routes.engine_choices)

    def table(self, *models):
        self.revision += 1
        table = RouterTable(revision=self.revision, region=REGION, models=models)
        new = self.path.with_suffix(f".{self.revision}")
        new.write_text(table.model_dump_json())
        new.replace(self.path)
        self.follower.look()

    def serve(self, *urls, model="llm", generation=1, answers_as=None, **more):
        """One model whose engines are at these URLs; `answers_as`: URL -> the name of the engine there."""
        names = answers_as or {}
        endpoints = tuple(endpoint(url, generation, answers_as=names.get(url)) for url in urls)
        self.table(RoutedModel(model=model, served=(served(generation, **more),), endpoints=endpoints))

    def allow(self, access):
        """Put an access list in force."""
        new = self.path.with_name("access.new")
        new.write_text(access.model_dump_json())
        new.replace(self.path.with_name("access.json"))
        self.follower.look()

    def counts(self, generation=1, model="llm"):
        return self.metrics.generations.get((model, generation)) or GenerationCounts()

    def has_requests(self):
        """Those that wait for an engine too."""
        return bool(self.router._admission.under_way)

    def in_flight(self):
        return sum(one.in_flight for one in self.metrics.traffic)


@asynccontextmanager
async def running_edge(path, limits=None, http_limits=None):
    edge = Edge(path, limits)
    factory, connections = http_factory(edge.router.handle, limits=http_limits, dialect_of=edge.router.dialect_of)
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    edge.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield edge
    finally:
        server.close()
        for connection in tuple(connections):
            connection.close()
        edge.router.close()
        edge.hosts.close()
        await asyncio.sleep(0)


@pytest.fixture
async def edge(tmp_path, listeners):
    async with running_edge(
        tmp_path / "router.json",
        RouterLimits(max_in_flight=8, silent_seconds=SILENT_SECONDS),
        HttpLimits(write_seconds=60.0),
    ) as edge:
        yield edge


@pytest.fixture
async def client():
    async with httpx.AsyncClient(timeout=60) as client:
        yield client


class RawEngine:
    """An engine that answers each request as `script` says: an async function of (method, path, body, writer).

    It is well by `/health` until `ended` is set.
    """

    def __init__(self, script):
        self.script = script
        self.requests = []
        self.left = 0
        self.url = ""
        self.running = set()
        self.ended = False

    async def connected(self, reader, writer):
        task = asyncio.current_task()
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.split(b" ", 2)
                sizes = [line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length")]
                body = await reader.readexactly(int(sizes[0]) if sizes else 0)
                if path == b"/metrics":
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                if path == b"/health":
                    status = b"503 Service Unavailable" if self.ended else b"200 OK"
                    writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
                    continue
                self.requests.append((head, body))
                await self.script(method, path, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left += 1
        finally:
            writer.transport.abort()


@asynccontextmanager
async def raw_engine(script):
    engine = RawEngine(script)
    server = await asyncio.start_server(engine.connected, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield engine
    finally:
        server.close()
        for task in tuple(engine.running):
            task.cancel()
        await asyncio.gather(*engine.running, return_exceptions=True)
        await asyncio.sleep(0.01)
