"""A graph walked by the host that answers last.

One generation, whole retries, nothing left running, and work that overlaps.
"""

import asyncio
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest
from prometheus_client import generate_latest

from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph, Signature, TensorSpec
from ipnext.names import FRAMES
from serving.host.batching import InferenceQueue
from serving.host.frame_server import HostFrames
from serving.host.graph_executor import GraphExecutor
from serving.host.part_server import PartServer
from serving.host.served_part import BatchLimits, ServedPart
from serving.http.connection import http_factory
from serving.http.limits import AnswerBudget
from serving.http.messages import Request, error_response, not_found
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, decode_response, encode_request
from serving.router.router import Router
from serving.routing.host_call import CallState, RetryOnOtherHost
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.metrics import RouterMetrics
from serving.routing.table import TableFollower, generation_route
from serving.snapshots.held_snapshots import HeldSnapshots
from tests.waiting import PATIENCE_SECONDS, eventually

GRAPH = PartGraph(
    nodes=(
        GraphNode(name="left", part="left", inputs={"x": "request.x"}),
        GraphNode(name="right", part="right", inputs={"x": "request.x"}),
        GraphNode(name="sum", part="sum", inputs={"x": "request.x", "left": "left.y", "right": "right.y"}),
    ),
    outputs={"total": "sum.y"},
)
TWICE = PartGraph(
    nodes=(
        GraphNode(name="first", part="left", inputs={"x": "request.x"}),
        GraphNode(name="between", part="right", inputs={"x": "first.y"}),
        GraphNode(name="again", part="left", inputs={"x": "between.y"}),
    ),
    outputs={"total": "again.y"},
)


class Scaling:
    """Gives 10 times the sum of its inputs, and remembers what it did."""

    rows_are_independent = False
    size_bytes = 0

    def __init__(self, *names):
        spec = {name: TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in (*names, "y")}
        self.signature = Signature(inputs=tuple(spec[name] for name in names), outputs=(spec["y"],))
        self.gate = threading.Event()
        self.gate.set()
        self.done = []
        self.begun = 0

    def infer(self, inputs):
        assert self.gate.wait(PATIENCE_SECONDS)
        self.done.append(sorted(inputs))
        return {"y": np.float32(10) * sum(inputs.values())}

    def stage(self, late):
        return Stages(self, late) if late == {"left", "right"} else None

    def close(self):
        pass


class Stages:
    """What `sum` can do before the others have answered."""

    def __init__(self, part, late):
        self.part, self.late = part, late

    def begin(self, inputs):
        assert inputs.keys().isdisjoint(self.late)
        self.part.begun += 1
        return dict(inputs)

    def complete(self, state, inputs):
        return self.part.infer({**state, **{name: inputs[name] for name in self.late}})


class FakeFleet:
    """Hosts of one part each, in this process; calls between them go through real sockets."""

    def __init__(self, stack):
        self.stack = stack
        self.hosts = {}
        self.clients = {}
        """Of each host: for calls of clients' requests, and of mirrored ones."""
        self.endpoints = []

    async def host(self, part, *, snapshot=4, generations=(4,), gateless=True, name=None, answers=None, hardware=""):
        engine = Scaling(*(("x", "left", "right") if part == "sum" else ("x",)))
        served = ServedPart(engine, BatchLimits())
        served.costs.note(8, 1e-6 if gateless else 1.0)
        held = HeldSnapshots()
        hold = HostedSnapshot(
            model="m",
            part=part,
            engine="torch",
            snapshot=snapshot,
            digest="0" * 64,
            uri="file:///x",
            generations=generations,
        )
        held.want([hold])
        held.note_loaded(hold, served)
        queue = InferenceQueue()
        self.stack.callback(queue.close)
        self.stack.callback(engine.gate.set)
        parts = PartServer(held, queue, lambda _: None, region="north")
        client, mirrors = (
            HostClient(HostLoadBalancer(time.monotonic), time.monotonic, answers=answers) for _ in range(2)
        )
        for one in (client, mirrors):
            self.stack.callback(one.close)
        self.clients[name or part] = client, mirrors
        executor = GraphExecutor(parts, client, mirrors)
        upgrades = {FRAMES: lambda transport, rest: HostFrames(parts, executor).take_over(transport, rest)}
        factory, _ = http_factory(lambda request: error_response(not_found(request)), upgrades)
        server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        self.stack.callback(server.close)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.endpoints.append(PartEndpoint(part=part, url=url, generations=(4,), hardware=hardware))
        self.hosts[name or part] = engine
        return parts


@pytest.fixture
async def fleet(listeners):
    async with AsyncExitStack() as stack:
        yield FakeFleet(stack)


@pytest.fixture
def router(fleet, tmp_path, toolbox):
    @asynccontextmanager
    async def made(graph=GRAPH, **by_hardware):
        snapshots = {node.part: 4 for node in graph.nodes}
        served = ServedGeneration(generation=4, graph=graph, snapshots=snapshots, by_hardware=by_hardware)
        model = RoutedModel(model="m", served=(served,), endpoints=tuple(fleet.endpoints))
        toolbox.write_table(tmp_path / "t.json", RouterTable(revision=time.time_ns(), region="north", models=(model,)))
        follower = TableFollower(tmp_path / "t.json", region="north")
        follower.look()
        client = HostClient(HostLoadBalancer(time.monotonic), time.monotonic)
        metrics = RouterMetrics(region="north")
        try:
            yield Router(follower, client, metrics, region="north")
        finally:
            client.close()

    return made


async def ask(router, numbers=(1.0, 2.0), **headers):
    encoded = encode_request(InferRequest({"x": Tensor("FP32", np.array(numbers, np.float32))}, binary_output=True))
    raw = {**encoded.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = Request("POST", "/v2/models/m/infer", {k.lower(): v for k, v in raw.items()}, bytearray(encoded.body))
    response = await router.handle(request)
    if response.status != 200:
        return response.status, bytes(response.body).decode()
    lower = {name.lower(): value for name, value in response.headers.items()}
    answer = decode_response(response.body, int(lower["inference-header-content-length"]))
    return response.status, answer, lower


async def test_the_answer_is_the_graphs_and_names_the_snapshot_of_each_part(fleet, router):
    for part in ("left", "right", "sum"):
        await fleet.host(part)
    async with router() as edge:
        status, answer, headers = await ask(edge)
    assert status == 200
    assert answer.outputs["total"].data.tolist() == [210, 420]
    assert answer.parameters["snapshots"] == "left=4,right=4,sum=4"
    assert headers["x-ipnext-snapshots"] == "left=4,right=4,sum=4"


async def test_the_last_part_begins_before_the_others_have_answered(fleet, router):
    for part in ("left", "right", "sum"):
        await fleet.host(part, gateless=part == "sum")
    fleet.hosts["left"].gate.clear()
    async with router() as edge:
        asked = asyncio.create_task(ask(edge))
        await eventually(lambda: fleet.hosts["sum"].begun)
        assert not fleet.hosts["left"].done
        fleet.hosts["left"].gate.set()
        status, answer, _ = await asked
    assert (status, answer.outputs["total"].data.tolist()) == (200, [210, 420])
    assert len(fleet.hosts["sum"].done) == 1


async def test_a_part_may_appear_twice_in_the_walk(fleet, router):
    for part in ("left", "right"):
        await fleet.host(part)
    async with router(TWICE) as edge:
        status, answer, _ = await ask(edge)
    assert (status, answer.outputs["total"].data.tolist()) == (200, [1000, 2000])
    assert len(fleet.hosts["left"].done) == 2


async def test_a_host_without_the_generation_costs_one_more_try_of_the_whole_request(fleet, router):
    await fleet.host("left", generations=(3,), name="old")
    for part in ("left", "right", "sum"):
        await fleet.host(part)
    async with router() as edge:
        for _ in range(4):
            assert (await ask(edge))[0] == 200
    assert not fleet.hosts["old"].done
    assert len(fleet.hosts["sum"].done) == 4


async def test_a_walk_that_is_made_again_is_counted(fleet, router):
    await fleet.host("left", generations=(3,), name="old")
    *_, last = [await fleet.host(part) for part in ("right", "sum")]
    async with router() as edge:
        assert (await ask(edge))[0] == 503
    assert last.tally.walk_retries["m", 4] >= 1


async def test_derivatives_of_hardware_kinds_answer_and_are_named(fleet, router):
    plain = await fleet.host("left", name="plain", hardware="large", gateless=False)
    derived = await fleet.host("left", snapshot=9, name="derived", hardware="small", gateless=False)
    await fleet.host("right")
    await fleet.host("sum", snapshot=8, hardware="small")
    engines = [fleet.hosts[name] for name in ("plain", "derived")]
    for engine in engines:
        engine.gate.clear()
    async with router(small={"left": 9, "sum": 8}) as edge:
        asked = [asyncio.create_task(ask(edge)) for _ in range(2)]
        await eventually(lambda: plain.in_flight and derived.in_flight)
        for engine in engines:
            engine.gate.set()
        answers = await asyncio.gather(*asked)
        told = generate_latest(edge._metrics.registry).decode().splitlines()
    assert [answer.outputs["total"].data.tolist() for _, answer, _ in answers] == [[210, 420]] * 2
    named = [(answer.parameters["snapshots"], headers["x-ipnext-snapshots"]) for _, answer, headers in answers]
    expected = ("left=4,right=4,sum=8", "left=9,right=4,sum=8")
    assert sorted(named) == [(text, text) for text in expected]
    counts = [line for line in told if line.startswith("ipnext_substituted_answers_total{")]
    assert counts
    assert all(line.endswith(" 0.0") for line in counts)


@pytest.mark.parametrize("liar", ["left", "sum"])
async def test_a_derivative_of_another_hardware_kind_never_gets_into_an_answer(fleet, router, liar):
    for part in ("left", "right", "sum"):
        await fleet.host(part, snapshot=9 if part == liar else 4, hardware="large")
    async with router(small={"left": 9, "sum": 9}) as edge:
        status, text = await ask(edge)
    assert status == 503
    assert f"answered with {liar}=9, needed is {liar}=4" in text


async def walk(fleet, *, mirrors):
    """Ask the host of the last part as a router does, which mirrors the request or has it from a client."""
    served = ServedGeneration(generation=4, graph=GRAPH, snapshots=dict.fromkeys(("left", "right", "sum"), 4))
    model = RoutedModel(model="m", served=(served,), endpoints=tuple(fleet.endpoints))
    body = encode_request(InferRequest({"x": Tensor("FP32", np.array([1.0], np.float32))}, binary_output=True))
    client = HostClient(HostLoadBalancer(time.monotonic), time.monotonic, mirrors=mirrors)
    asked = CallState(deadline=time.monotonic() + PATIENCE_SECONDS)
    try:
        return await client.walk(generation_route(model, served), (body.body, body.header_length), asked)
    finally:
        client.close()


@pytest.mark.parametrize("mirrors", [False, True])
async def test_calls_of_mirrored_requests_and_of_clients_share_no_connection(fleet, mirrors):
    for part in ("left", "right", "sum"):
        await fleet.host(part)
    answer = await walk(fleet, mirrors=mirrors)
    assert decode_response(answer.body.data, answer.header["header_length"]).outputs["total"].data.tolist() == [210]
    url = fleet.endpoints[0].url
    reached = [client.connection(url) is not None for client in fleet.clients["sum"]]
    assert reached == [not mirrors, mirrors]


async def test_a_mirrored_walk_that_is_made_again_is_not_counted(fleet):
    await fleet.host("left", generations=(3,), name="old")
    *_, last = [await fleet.host(part) for part in ("right", "sum")]
    with pytest.raises(RetryOnOtherHost):
        await walk(fleet, mirrors=True)
    assert last.tally.walk_retries == {}


async def test_a_walker_without_the_generation_is_not_asked_twice(fleet, router):
    await fleet.host("sum", generations=(3,), name="old")
    for part in ("left", "right", "sum"):
        await fleet.host(part)
    async with router() as edge:
        for _ in range(4):
            assert (await ask(edge))[0] == 200
    assert not fleet.hosts["old"].done


@pytest.mark.parametrize("liar", ["left", "sum"])
async def test_another_snapshot_never_gets_into_an_answer(fleet, router, liar):
    for part in ("left", "right", "sum"):
        await fleet.host(part, snapshot=3 if part == liar else 4)
    async with router() as edge:
        status, text = await ask(edge)
        assert status == 503
        assert "no host answers" in text
        await fleet.host(liar, name="honest")
    async with router() as edge:
        for _ in range(4):
            assert (await ask(edge))[0] == 200


async def test_the_deadline_ends_what_the_other_parts_do(fleet, router):
    parts = [await fleet.host(part, gateless=part == "sum") for part in ("left", "right", "sum")]
    fleet.hosts["left"].gate.clear()
    async with router() as edge:
        status, text = await ask(edge, x_ipnext_deadline_ms="60")
        assert status == 504
        assert "60 ms" in text or "deadline" in text
        fleet.hosts["left"].gate.set()
        await eventually(lambda: not any(host.in_flight for host in parts))
    assert not fleet.hosts["sum"].done


async def test_a_client_that_leaves_ends_the_walk(fleet, router):
    parts = [await fleet.host(part, gateless=part == "sum") for part in ("left", "right", "sum")]
    fleet.hosts["left"].gate.clear()
    async with router() as edge:
        asked = asyncio.create_task(ask(edge))
        await eventually(lambda: fleet.hosts["sum"].begun)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        fleet.hosts["left"].gate.set()
        await eventually(lambda: not any(host.in_flight for host in parts))
    assert not fleet.hosts["sum"].done


async def test_a_draining_host_finishes_its_walks_and_takes_no_more(fleet, router):
    *_, last = [await fleet.host(part, gateless=part == "sum") for part in ("left", "right", "sum")]
    fleet.hosts["left"].gate.clear()
    async with router() as edge:
        asked = asyncio.create_task(ask(edge))
        await eventually(lambda: fleet.hosts["sum"].begun)
        last.drain.begin()
        assert (await ask(edge))[0] == 503
        fleet.hosts["left"].gate.set()
        assert (await asked)[0] == 200


async def test_what_a_request_lacks_is_told_by_the_walker(fleet, router):
    for part in ("left", "right", "sum"):
        await fleet.host(part)
    async with router() as edge:
        encoded = encode_request(InferRequest({"z": Tensor("FP32", np.zeros(1, np.float32))}))
        headers = {name.lower(): value for name, value in encoded.headers.items()}
        response = await edge.handle(Request("POST", "/v2/models/m/infer", headers, bytearray(encoded.body)))
    assert response.status == 400
    assert b"'x'" in response.body


async def test_answers_of_other_parts_have_the_limit_of_the_host_that_executes(fleet, router):
    for part in ("left", "right"):
        await fleet.host(part)
    await fleet.host("sum", answers=AnswerBudget(answer_bytes=1000))
    async with router() as edge:
        status, text = await ask(edge, [1.0] * 1000)
        assert (status, "more than 1000 bytes" in text) == (502, True)
        assert (await ask(edge))[0] == 200
