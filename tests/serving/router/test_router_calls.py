"""How a router treats hosts that fail, lie or refuse: one more try of the whole request, never a mixed answer."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.names import FRAMES
from serving.http.connection import http_factory
from serving.http.messages import Request, error_response, not_found
from serving.protocol.frames import FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, encode_request
from serving.router.router import Router
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.metrics import RouterMetrics
from serving.routing.table import TableFollower
from tests.waiting import eventually


class FakeHost:
    """A host that answers as told, and remembers what it was asked."""

    def __init__(self, part, *, snapshot=4, status=200, finite=True, delay=0.0):
        self.part, self.snapshot, self.status, self.finite, self.delay = part, snapshot, status, finite, delay
        self.generations = []
        self.deadlines = []
        self.cancelled = 0
        self.url = ""
        self.connections = set()

    def take_over(self, transport, rest):
        """Speak frames on this connection."""
        running = {}

        def on_frame(frame):
            if frame.header["op"] == "route":
                return
            number = frame.header["id"]
            if frame.header["op"] == "cancel":
                running.pop(number).cancel()
            else:
                running[number] = asyncio.get_running_loop().create_task(self.answer(protocol, frame))

        protocol = FrameProtocol(on_frame, lambda: self.connections.discard(protocol))
        self.connections.add(protocol)
        protocol.take_over(transport, rest)

    async def answer(self, protocol, frame):
        header = frame.header
        self.generations.append(header["generation"])
        self.deadlines.append(header["deadline_ms"])
        assert frame.tensors()
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.status != 200:
            protocol.send(bytes_frame({"id": header["id"], "status": self.status, "code": "told", "error": "told to"}))
            return
        score = Tensor("FP32", np.array([1.0 if self.finite else np.nan], np.float32))
        names = {"sparse": ("embedding", "stamp"), "dense": ("score", "stamps")}[self.part]
        answer = {"id": header["id"], "status": 200, "snapshot": self.snapshot}
        protocol.send(tensor_frame(answer, dict.fromkeys(names, score)))


class Crashing(FakeHost):
    """Ends its connections on the first calls, `times` at most, and takes the next ones: it is back at once."""

    def __init__(self, part, times=9):
        super().__init__(part)
        self.times = times
        self.crashes = 0

    async def answer(self, protocol, frame):
        if self.crashes < self.times:
            self.crashes += 1
            protocol.abort()
            return
        await super().answer(protocol, frame)


class Executing(FakeHost):
    """Executes graphs, and says that the JSON of its answer has this length."""

    def __init__(self, part, length):
        super().__init__(part)
        self.length = length

    async def answer(self, protocol, frame):
        self.generations.append(frame.header["generation"])
        answer = {"id": frame.header["id"], "status": 200, "snapshot": 4, "snapshots": {"dense": 4, "sparse": 4}}
        protocol.send(bytes_frame({**answer, "finite": True, "header_length": self.length}, b"{}raw"))


@asynccontextmanager
async def running(host: FakeHost):
    factory, _ = http_factory(lambda request: error_response(not_found(request)), {FRAMES: host.take_over})
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    host.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield host
    finally:
        server.close()
        for connection in tuple(host.connections):
            connection.close()


@pytest.fixture
async def ask(tmp_path, toolbox, listeners):
    """Ask a router over fake hosts one request."""
    metrics = RouterMetrics(region="north")

    async def call(*hosts, binary=True, walk=False, **headers):
        endpoints = tuple(PartEndpoint(part=host.part, url=host.url, generations=(4,)) for host in hosts)
        model = RoutedModel(model="click", served=(toolbox.served(4),), endpoints=endpoints)
        toolbox.write_table(tmp_path / "t.json", RouterTable(revision=time.time_ns(), region="north", models=(model,)))
        follower = TableFollower(tmp_path / "t.json", region="north")
        follower.look()
        client = HostClient(HostLoadBalancer(time.monotonic), time.monotonic)
        router = Router(follower, client, metrics, region="north", hosts_walk=walk)
        try:
            response = await router.handle(request_of(headers, binary=binary))
        finally:
            client.close()
        return response.status, response.headers, response.body

    call.metrics = metrics
    return call


def request_of(headers, *, binary):
    tensors = {"ids": Tensor("INT64", np.array([1])), "features": Tensor("FP32", np.zeros(1, np.float32))}
    encoded = encode_request(InferRequest(tensors, binary_output=binary))
    raw = {**encoded.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request("POST", "/v2/models/click/infer", {k.lower(): v for k, v in raw.items()}, bytearray(encoded.body))


async def test_all_calls_of_a_request_name_one_generation_and_the_time_left(ask):
    async with running(FakeHost("sparse", delay=0.05)) as sparse, running(FakeHost("dense")) as dense:
        status, headers, _ = await ask(sparse, dense, x_ipnext_deadline_ms="60000")
    assert status == 200
    assert headers["x-ipnext-snapshots"] == "dense=4,sparse=4"
    assert sparse.generations == dense.generations == [4]
    assert dense.deadlines[0] <= sparse.deadlines[0] - 40 <= 60_000


@pytest.mark.parametrize("status", [409, 503])
async def test_a_host_that_refuses_costs_one_more_try_of_the_whole_request(ask, status):
    async with (
        running(FakeHost("sparse")) as sparse,
        running(FakeHost("dense", status=status)) as bad,
        running(FakeHost("dense")) as good,
    ):
        for _ in range(2):  # whichever is asked first
            assert (await ask(sparse, bad, good))[0] == 200
            assert (await ask(sparse, good, bad))[0] == 200
    assert bad.generations
    assert len(sparse.generations) == 4 + len(bad.generations), "the whole request, not the failed call"


async def test_a_request_that_ends_its_host_is_sent_to_no_other_one(ask):
    """Whichever is asked first ends, as by a crash; the other one answers all that did not end a host."""
    async with (
        running(FakeHost("sparse")) as sparse,
        running(Crashing("dense")) as one,
        running(Crashing("dense")) as two,
    ):
        status, headers, body = await ask(sparse, one, two, x_ipnext_deadline_ms="1500")
    assert sorted((one.crashes, two.crashes)) == [0, 2], "back once, and ended again"
    assert (status, headers["x-ipnext-error"]) == (500, "QueryOfDeath")
    assert "ended while it had this request" in json.loads(body)["error"]


async def test_a_request_that_waits_for_its_host_is_answered_by_it_once_it_is_back(ask):
    async with (
        running(FakeHost("sparse")) as sparse,
        running(Crashing("dense", times=1)) as one,
        running(Crashing("dense", times=1)) as two,
    ):
        status, _, _ = await ask(sparse, one, two)
    assert status == 200
    assert sorted((one.crashes, two.crashes)) == [0, 1]


async def test_a_host_that_used_another_snapshot_never_gets_into_an_answer(ask):
    async with running(FakeHost("sparse")) as sparse, running(FakeHost("dense", snapshot=3)) as liar:
        status, headers, body = await ask(sparse, liar)
        assert status == 503
        assert headers["retry-after"] == "1"
        assert "dense=3, needed is dense=4" in json.loads(body)["error"]
        async with running(FakeHost("dense")) as honest:
            assert (await ask(sparse, liar, honest))[0] == 200
            assert (await ask(sparse, honest, liar))[0] == 200


@pytest.mark.parametrize("length", ["2\r\nx-ipnext-refused: 1", "2", 2.0, True, -1, 0, 6, [2]])
async def test_a_host_writes_no_header_of_the_answer(ask, length):
    async with running(FakeHost("sparse")) as sparse, running(Executing("dense", length)) as liar:
        status, headers, body = await ask(sparse, liar, walk=True)
        assert status == 503
        assert "inference-header-content-length" not in headers
        assert "header_length" in json.loads(body)["error"]
        async with running(Executing("dense", 2)) as honest:
            for hosts in ((liar, honest), (honest, liar)):
                status, headers, body = await ask(sparse, *hosts, walk=True)
                assert (status, headers["inference-header-content-length"], bytes(body)) == (200, "2", b"{}raw")


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (500, 500), (504, 504)])
async def test_other_refusals_are_passed_on_without_a_second_try(ask, status, expected):
    async with running(FakeHost("sparse", status=status)) as sparse, running(FakeHost("dense")) as dense:
        assert (await ask(sparse, dense))[0] == expected
    assert len(sparse.generations) == 1


async def test_the_deadline_cancels_the_hosts_work(ask):
    async with running(FakeHost("sparse", delay=600)) as sparse, running(FakeHost("dense")) as dense:
        status, _, _ = await ask(sparse, dense, x_ipnext_deadline_ms="50")
        assert status == 504
        await eventually(lambda: sparse.cancelled)


async def test_a_client_that_leaves_cancels_the_hosts_work(ask):
    async with running(FakeHost("sparse", delay=600)) as sparse, running(FakeHost("dense")) as dense:
        work = asyncio.create_task(ask(sparse, dense))
        await eventually(lambda: sparse.generations)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await eventually(lambda: sparse.cancelled)


async def test_non_finite_answers_are_counted_given_in_binary_and_refused_in_json(ask):
    async with running(FakeHost("sparse")) as sparse, running(FakeHost("dense", finite=False)) as dense:
        assert (await ask(sparse, dense))[0] == 200
        status, _, body = await ask(sparse, dense, binary=False)
    assert status == 500
    assert "holds NaN or infinity" in json.loads(body)["error"]
    [traffic] = ask.metrics.traffic
    assert (traffic.requests, traffic.errors, traffic.non_finite, traffic.in_flight) == (2, 1, 2, 0)
