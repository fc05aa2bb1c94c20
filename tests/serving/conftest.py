"""Real snapshots of a two-part model, and real host and router processes that end with the test."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import nn

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.process.ports import free_port
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds, HostState
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterState, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration, SnapshotFacts
from ipnext.model.registry.registry import GraphNode, PartGraph, SnapshotSource, SyncPolicy
from serving.export import export_model
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, InferResponse, decode_response, encode_request, parse_header_length
from serving.routing import host_connection
from tests.forked_programs import ForkServer, start_interpreter
from tests.waiting import PATIENCE_SECONDS, until

MODEL = "click"
REGION = "north"
NUMBERS = (1, 2, 3)
HELD = (1, 2)
"""What the shared fleet holds of them."""
FORKS = ForkServer()
"""Of all hosts and routers of these tests."""


class Sparse(nn.Module):
    """Looks ids up. Its answer carries the number of its snapshot."""

    def __init__(self, number: int) -> None:
        super().__init__()
        torch.manual_seed(number)
        self.table = nn.EmbeddingBag(50, 4)
        self.register_buffer("number", torch.tensor(number))

    def forward(self, ids):
        return {"embedding": self.table(ids), "stamp": self.number.expand(ids.shape[0])}


class Dense(nn.Module):
    """Scores. Its answer carries the numbers of both snapshots."""

    def __init__(self, number: int) -> None:
        super().__init__()
        torch.manual_seed(100 + number)
        self.top = nn.Linear(7, 1)
        self.register_buffer("number", torch.tensor(number))

    def forward(self, features, embedding, stamp):
        score = torch.sigmoid(self.top(torch.cat([features, embedding], 1))).squeeze(1)
        return {"score": score, "stamps": torch.stack([self.number.expand(stamp.shape[0]), stamp], 1)}


class Heavy(nn.Module):
    """Takes some seconds for a hundred rows, a moment for one."""

    def forward(self, x):
        square = x[:, :, None] * x[:, None, :]
        for _ in range(30):
            square = torch.tanh(square @ square)
        return square.sum((1, 2))


GRAPH = PartGraph(
    nodes=(
        GraphNode(name="lookup", part="sparse", inputs={"ids": "request.ids"}),
        GraphNode(
            name="top",
            part="dense",
            inputs={"features": "request.features", "embedding": "lookup.embedding", "stamp": "lookup.stamp"},
        ),
    ),
    outputs={"score": "top.score", "stamps": "top.stamps"},
)


@dataclass(frozen=True)
class Published:
    """Snapshots in a file store."""

    store: FileArtifactStore
    sources: Mapping[tuple[str, int], SnapshotSource]
    modules: Mapping[tuple[str, int], nn.Module]

    def hold(self, part: str, number: int, *generations: int, **changes: Any) -> HostedSnapshot:
        """A hold of a published snapshot; without generations its number is its generation."""
        source = self.sources[part, number]
        values = {
            "model": MODEL,
            "part": part,
            "engine": "torch",
            "snapshot": number,
            "digest": source.manifest.digest,
            "uri": source.uri,
            "generations": generations or (number,),
        }
        return HostedSnapshot(**(values | changes))

    def expected(self, number: int, request: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """What the unsplit model of one generation answers in this process."""
        looked_up = self.modules["sparse", number](torch.from_numpy(request["ids"]))
        return self.modules["dense", number](torch.from_numpy(request["features"]), **looked_up)


def example(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "ids": random.integers(0, 50, (batch, 3)),
        "features": random.standard_normal((batch, 3)).astype(np.float32),
    }


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    datatypes = {"i": "INT64", "f": "FP32", "b": "BOOL"}
    return {name: Tensor(datatypes[array.dtype.kind], array) for name, array in arrays.items()}


@pytest.fixture(scope="session", autouse=True)
def _forks_end() -> Iterator[None]:
    yield
    FORKS.close()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("published")
    store = FileArtifactStore(root / "store")
    modules: dict[tuple[str, int], nn.Module] = {}
    sources: dict[tuple[str, int], SnapshotSource] = {}
    request = {name: torch.from_numpy(array) for name, array in example(2).items()}
    for number in NUMBERS:
        sparse, dense = Sparse(number).eval(), Dense(number).eval()
        looked_up = {name: tensor.detach() for name, tensor in sparse(request["ids"]).items()}
        modules |= {("sparse", number): sparse, ("dense", number): dense}
        export_model(sparse, {"ids": request["ids"]}, root / f"sparse-{number}")
        export_model(dense, {"features": request["features"], **looked_up}, root / f"dense-{number}")
    modules["heavy", 1] = Heavy().eval()
    export_model(modules["heavy", 1], {"x": torch.zeros(2, 256)}, root / "heavy-1")
    for part, number in modules:
        sources[part, number] = ingest_directory(store, root / f"{part}-{number}")
    for module in modules.values():
        module.requires_grad_(requires_grad=False)
    return Published(store, sources, modules)


@pytest.fixture(scope="session", autouse=True)
def _patient_connections() -> Iterator[None]:
    """A host in this process is not absent because the machine stands still while a connection is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_connection, "CONNECT_SECONDS", 60.0)
        yield


@dataclass
class Server:
    """A process of ours behind a port."""

    process: Any
    url: str
    client: httpx.Client = field(repr=False)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(self.url + path, headers=headers)

    def answers(self) -> bool:
        assert self.process.poll() is None, "the process ended before it served"
        try:
            return self.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)

    def infer(self, path: str, arrays: Mapping[str, np.ndarray], **headers: str) -> httpx.Response:
        encoded = encode_request(InferRequest(as_tensors(arrays), binary_output=True))
        return self.client.post(self.url + path, content=encoded.body, headers={**encoded.headers, **headers})


@dataclass
class HostServer(Server):
    def hold(self, *holds: HostedSnapshot) -> None:
        response = self.client.put(self.url + "/control/holds", content=HostHolds(holds=holds).model_dump_json())
        assert response.status_code == 202, response.text

    def state(self) -> HostState:
        return HostState.model_validate_json(self.get("/control/state").content)

    def settle(self) -> HostState:
        """The state once nothing is being loaded."""
        return until(lambda: None if (state := self.state()).loading else state)

    def infer_part(self, part: str, generation: int, arrays: Mapping[str, np.ndarray], **headers: str):
        return self.infer(f"/parts/{MODEL}/{part}/infer", arrays, **{"x-ipnext-generation": str(generation), **headers})


@dataclass
class RouterServer(Server):
    table: Path

    def state(self) -> RouterState:
        return RouterState.model_validate_json(self.get("/control/state").content)

    def follow(self, table: RouterTable) -> None:
        """Rename a table into place, as an agent does, and wait until the router uses it."""
        write_table(self.table, table)
        until(lambda: self.state().revision == table.revision)


def write_table(path: Path, table: RouterTable) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(table.model_dump_json())
    draft.rename(path)


def decode(response: httpx.Response) -> InferResponse:
    assert response.status_code == 200, response.text
    length = parse_header_length(response.headers.get("inference-header-content-length"))
    return decode_response(bytearray(response.content), length)


class Machine:
    """Starts processes and ends them."""

    def __init__(self, root: Path, store_uri: str) -> None:
        self.root = root
        self.store_uri = store_uri
        self._stack = ExitStack()
        self._client = self._stack.enter_context(httpx.Client(timeout=60))
        self._started: list[Server] = []

    def start_host(self, name: str, *extra: str, wait: bool = True) -> HostServer:
        arguments = ["--id", name, "--artifacts", self.store_uri, "--cache", str(self.root / f"cache-{name}"), *extra]
        server = HostServer(*self._start("serving.host", arguments, name), self._client)
        return self._known(server, wait=wait)

    def start_router(self, name: str, *, fork: bool = True) -> RouterServer:
        """Start a router; if `fork` is false, in an interpreter of its own."""
        table = self.root / f"{name}.json"
        started = self._start("serving.router", ["--table", str(table)], name, fork=fork)
        return self._known(RouterServer(*started, self._client, table=table), wait=True)

    def _known(self, server: Any, *, wait: bool) -> Any:
        self._started.append(server)
        if wait:
            until(server.answers)
        return server

    def _start(self, module: str, arguments: list[str], name: str, *, fork: bool = True) -> tuple[Any, str]:
        port = free_port()
        command = [sys.executable, "-m", module, "--port", str(port), "--region", REGION, *arguments]
        return self._spawn(command, name, fork=fork), f"http://127.0.0.1:{port}"

    def _spawn(self, command: Any, name: str, *, fork: bool = True) -> Any:
        log = self._stack.enter_context((self.root / f"{name}.log").open("ab"))
        start = FORKS.spawn if fork else start_interpreter
        return start(command, {**os.environ, "OMP_NUM_THREADS": "1"}, log)

    def restart(self, server: Server) -> None:
        """Start a server that was killed again, on its port, as an agent would."""
        server.process.wait(PATIENCE_SECONDS)
        server.process = self._spawn(server.process.args, "restarted")
        until(server.answers)

    def close(self) -> None:
        for server in self._started:
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
                server.process.kill()
            server.process.wait()
        self._stack.close()


@pytest.fixture
def machine(tmp_path: Path, published: Published, subprocesses: None) -> Iterator[Machine]:
    """Processes of one test."""
    machine = Machine(tmp_path, published.store.uri)
    yield machine
    machine.close()


@dataclass
class Fleet:
    """Two hosts, each holding both parts of generations 1 and 2, and a router that serves both."""

    machine: Machine
    published: Published
    hosts: tuple[HostServer, HostServer]
    router: RouterServer
    revision: int = 0

    def serve(self, *generations: int, parts: tuple[str, ...] = ("sparse", "dense"), extra: Any = ()) -> None:
        """Let the router serve these generations, with the hosts' endpoints for `parts` and the `extra` ones."""
        endpoints = [
            PartEndpoint(part=part, url=host.url, generations=generations) for part in parts for host in self.hosts
        ]
        model = RoutedModel(model=MODEL, served=tuple(map(served, generations)), endpoints=(*endpoints, *extra))
        self.follow(model)

    def follow(self, model: RoutedModel) -> None:
        self.revision += 1
        self.router.follow(RouterTable(revision=self.revision, region=REGION, models=(model,)))


def served(number: int, sync: SyncPolicy | None = None) -> ServedGeneration:
    """A generation of the snapshots of its number, which came an hour apart and have one signature."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    return ServedGeneration(
        generation=number,
        graph=GRAPH,
        snapshots={"sparse": number, "dense": number},
        sync=sync or SyncPolicy(),
        facts={part: SnapshotFacts(created_at=at, signature=part) for part in ("sparse", "dense")},
    )


@pytest.fixture(scope="package")
def session_machine(
    tmp_path_factory: pytest.TempPathFactory, published: Published, subprocesses: None
) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("session"), published.store.uri)
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def damaged_store(tmp_path_factory: pytest.TempPathFactory, published: Published) -> str:
    """Uri of a copy of the store in which one byte of a weight of `dense` 1 is another."""
    copy = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(published.store.uri.removeprefix("file://"), copy)
    files = published.sources["dense", 1].manifest.files
    blob = next(copy.rglob(next(file.sha256 for file in files if file.path == "weights.safetensors")))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    return copy.as_uri()


@pytest.fixture(scope="package")
def lone_host(
    tmp_path_factory: pytest.TempPathFactory, published: Published, damaged_store: str, subprocesses: None
) -> Any:
    """A host outside the fleet, with one inference thread and a queue of one, over the damaged store."""
    machine = Machine(tmp_path_factory.mktemp("lone"), damaged_store)
    yield machine.start_host("lone", "--queue", "1")
    machine.close()


@pytest.fixture(scope="package")
def session_fleet(session_machine: Machine, published: Published) -> Fleet:
    hosts = tuple(session_machine.start_host(name, wait=False) for name in ("host-a", "host-b"))
    router = session_machine.start_router("router")
    for host in hosts:
        until(host.answers)
        host.hold(*(published.hold(part, number) for part in ("sparse", "dense") for number in HELD))
    for host in hosts:
        assert len(host.settle().ready) == 2 * len(HELD), host.state()
    return Fleet(session_machine, published, hosts, router)


@pytest.fixture
def fleet(session_fleet: Fleet) -> Fleet:
    """The shared fleet, serving generations 1 and 2. Tests that end or change its hosts start their own."""
    session_fleet.serve(1, 2)
    return session_fleet


def table_of(revision: int, hosts: Sequence[HostServer], *generations: int) -> RouterTable:
    """A table in which each of these hosts answers for both parts of these generations."""
    endpoints = [
        PartEndpoint(part=part, url=host.url, generations=generations) for part in ("sparse", "dense") for host in hosts
    ]
    model = RoutedModel(model=MODEL, served=tuple(map(served, generations)), endpoints=tuple(endpoints))
    return RouterTable(revision=revision, region=REGION, models=(model,))


class Toolbox:
    """Plain functions of this file for test files, which cannot import it."""

    example = staticmethod(example)
    as_tensors = staticmethod(as_tensors)
    decode = staticmethod(decode)
    served = staticmethod(served)
    table_of = staticmethod(table_of)
    machine = Machine
    write_table = staticmethod(write_table)
    graph = GRAPH


@pytest.fixture(scope="session")
def toolbox() -> type[Toolbox]:
    return Toolbox
