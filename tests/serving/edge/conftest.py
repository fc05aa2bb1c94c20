"""A whole edge in this process.

A real router and a real host on loopback ports, over parts that answer what they are sent.
"""

import asyncio
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
import uvloop

from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph, Signature, TensorSpec
from ipnext.names import FRAMES
from serving.host.batching import InferenceQueue
from serving.host.frame_server import HostFrames
from serving.host.graph_executor import GraphExecutor
from serving.host.host import Host
from serving.host.part_server import PartServer
from serving.host.served_part import BatchLimits, ServedPart
from serving.http.connection import http_factory
from serving.http.limits import HttpLimits
from serving.protocol.tensors import DTYPES
from serving.router.router import Router, RouterLimits
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.metrics import RouterMetrics
from serving.routing.table import TableFollower
from serving.snapshots.held_snapshots import HeldSnapshots
from tests.waiting import PATIENCE_SECONDS

REGION = "north"
LIMITS = HttpLimits(body_bytes=8 * 2**20, read_seconds=4.0, write_seconds=4.0, linger_seconds=0.5)
SMALL = RouterLimits(max_body_bytes=LIMITS.body_bytes)


class Echo:
    """Gives `x` back as `y`, and `z` as `w` where it has one; waits for the gate first where it has one."""

    size_bytes = 0
    rows_are_independent = True

    def __init__(self, datatype, *, second=None, gate=None, answer=None):
        datatypes = [datatype] if second is None else [datatype, second]
        self.signature = Signature(
            inputs=tuple(TensorSpec(name=n, datatype=d, shape=(-1, 2)) for n, d in zip("xz", datatypes, strict=False)),
            outputs=tuple(TensorSpec(name=n, datatype=d, shape=(-1, 2)) for n, d in zip("yw", datatypes, strict=False)),
        )
        self.gate = gate
        self.answer = answer
        self.seen = []

    def infer(self, inputs):
        self.seen.append(inputs["x"])
        if self.gate is not None:
            assert self.gate.wait(PATIENCE_SECONDS)
        if self.answer is not None:
            return {"y": np.full_like(inputs["x"], self.answer)}
        return {{"x": "y", "z": "w"}[name]: array for name, array in inputs.items()}

    def warm_up(self):
        """Nothing to do."""

    def close(self):
        """Nothing to do."""


def hold(model, part, number):
    """A hold of a snapshot that answers for the generation of its number."""
    return HostedSnapshot(
        model=model,
        part=part,
        engine="echo",
        snapshot=number,
        digest="0" * 64,
        uri="file:///none",
        generations=(number,),
    )


def graph(names, parts):
    """Parts one after the other; the answer is called as the last part calls it."""
    nodes = []
    for place, (name, part) in enumerate(zip(names, parts, strict=True)):
        after = {"x": "y", "z": "w"}
        inputs = {
            spec.name: f"n{place - 1}.{after[spec.name]}" if place else f"request.{spec.name}"
            for spec in part.signature.inputs
        }
        nodes.append(GraphNode(name=f"n{place}", part=name, inputs=inputs))
    outputs = {spec.name: f"{nodes[-1].name}.{spec.name}" for spec in parts[-1].signature.outputs}
    return PartGraph(nodes=tuple(nodes), outputs=outputs)


@dataclass
class Edge:
    """One router, one host; models by name, each of the given parts."""

    root: object
    limits: RouterLimits | None = None
    hosts_walk: bool = True
    models: dict = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    threads: int = 1
    waiting: int = 64

    def add(self, model, *parts, generations=(1,)):
        self.models[model] = (parts, generations)
        return parts

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"http://{self.address}"

    def get(self, path):
        return httpx.get(self.url + path, timeout=60)

    @contextmanager
    def asking(self, model, content, headers=None):
        """A client that has sent a request, and leaves without its answer."""
        lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "host: localhost", f"content-length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        with socket.create_connection(("127.0.0.1", self.port)) as line:
            line.sendall("\r\n".join([*lines, "", ""]).encode() + bytes(content))
            yield

    @contextmanager
    def running(self):
        started = threading.Event()
        self.failure = None
        thread = threading.Thread(target=self._run, args=(started,))
        thread.start()
        assert started.wait(PATIENCE_SECONDS)
        if self.failure is not None:
            raise self.failure
        try:
            yield self
        finally:
            self.gate.set()
            self.loop.call_soon_threadsafe(self.stop.set)
            thread.join(PATIENCE_SECONDS)

    def _run(self, started):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(self._serve(started))
            except Exception as error:  # noqa: BLE001  # raised again in the test's thread
                self.failure = error
            finally:
                started.set()

    async def _serve(self, started):
        self.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        self.held = HeldSnapshots()
        self.queue = InferenceQueue(threads=self.threads, waiting=self.waiting)
        self.parts = PartServer(self.held, self.queue, id, region=REGION)
        self._hold()
        host = Host(self.held, None, self.parts, region=REGION)
        others = HostClient(HostLoadBalancer(self.loop.time), self.loop.time)
        executor = GraphExecutor(self.parts, others)
        upgrades = {FRAMES: lambda transport, rest: HostFrames(self.parts, executor).take_over(transport, rest)}
        host_server, host_connections = await self._listen(host.handle, upgrades)
        self.host_port = host_server.sockets[0].getsockname()[1]
        hosts = HostClient(HostLoadBalancer(self.loop.time), self.loop.time)
        follower = TableFollower(self._table(), region=REGION, on_change=id)
        follower.look()
        self.metrics = RouterMetrics(region=REGION, served=lambda: follower.routes.all)
        router = Router(follower, hosts, self.metrics, region=REGION, limits=self.limits, hosts_walk=self.hosts_walk)
        server, connections = await self._listen(router.handle, None)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self.stop.wait()
        for one in (server, host_server):
            one.close()
        for connection in (*connections, *host_connections):
            connection.close()
        hosts.close()
        others.close()
        self.queue.close()
        await asyncio.sleep(0.01)

    async def _listen(self, handle, upgrades):
        factory, connections = http_factory(handle, upgrades, LIMITS)
        return await self.loop.create_server(factory, "127.0.0.1", 0), connections

    def _hold(self):
        holds = [
            (hold(model, f"p{place}", number), part)
            for model, (parts, generations) in self.models.items()
            for place, part in enumerate(parts)
            for number in generations
        ]
        self.held.want([wanted for wanted, _ in holds])
        for wanted, part in holds:
            assert self.held.note_loaded(wanted, ServedPart(part, BatchLimits()))

    def _table(self):
        models = []
        for model, (parts, generations) in self.models.items():
            names = [f"p{place}" for place in range(len(parts))]
            served = [
                ServedGeneration(generation=number, graph=graph(names, parts), snapshots=dict.fromkeys(names, number))
                for number in generations
            ]
            url = f"http://127.0.0.1:{self.host_port}"
            endpoints = [PartEndpoint(part=name, url=url, generations=generations) for name in names]
            models.append(RoutedModel(model=model, served=tuple(served), endpoints=tuple(endpoints)))
        path = self.root / "table.json"
        path.write_text(RouterTable(revision=1, region=REGION, models=tuple(models)).model_dump_json())
        return path


def stocked(edge):
    """With models `echo-fp32` (one part) and `chain-fp32` (two) for each datatype, `nan` and `twin`."""
    for datatype in DTYPES:
        edge.add(f"echo-{datatype.lower()}", Echo(datatype), generations=(1, 2))
        edge.add(f"chain-{datatype.lower()}", Echo(datatype), Echo(datatype), generations=(1, 2))
    edge.add("nan", Echo("FP32", answer=np.nan))
    edge.add("twin", Echo("FP32", second="BYTES"), Echo("FP32", second="BYTES"))
    return edge


@pytest.fixture(scope="package")
def edge(tmp_path_factory, listeners):
    """Shared by the tests that change nothing. The host that answers last walks the graphs."""
    with stocked(Edge(tmp_path_factory.mktemp("edge"), SMALL)).running() as shared:
        yield shared


@pytest.fixture(scope="package")
def walking_edge(tmp_path_factory, listeners):
    """The same, where the router walks the graphs."""
    with stocked(Edge(tmp_path_factory.mktemp("walking-edge"), SMALL, hosts_walk=False)).running() as shared:
        yield shared


@pytest.fixture
def new_edge(tmp_path, listeners):
    """Makes an edge of the test's own: `new_edge(limits=...)`, then `add` and `running`."""

    def make(**settings):
        return Edge(tmp_path, **settings)

    make.echo = Echo
    make.hold = hold
    return make
