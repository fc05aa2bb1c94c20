"""How a router treats hosts that fail, lie or refuse: one more try of the whole request, never a mixed answer."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from ipnext.model.deployment import PartEndpoint, RoutedModel, RouterTable
from serving.asgi import Application
from serving.balancing import EndpointLoads
from serving.host_client import HostClient
from serving.protocol import InferRequest, InferResponse, encode_request, encode_response
from serving.router import Router
from serving.router_metrics import RouterMetrics
from serving.router_table import TableFollower
from serving.tensors import Tensor


class FakeHost:
    """A host that answers as told, and remembers what it was asked."""

    def __init__(self, part, *, snapshot=4, status=200, finite=True, delay=0.0):
        self.part, self.snapshot, self.status, self.finite, self.delay = part, snapshot, status, finite, delay
        self.generations = []
        self.deadlines = []
        self.cancelled = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.generations.append(request.headers["x-ipnext-generation"])
        self.deadlines.append(int(request.headers["x-ipnext-deadline-ms"]))
        body = await request.read()
        assert body
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.status != 200:
            return web.json_response({"error": "told to"}, status=self.status)
        score = np.array([1.0 if self.finite else np.nan], np.float32)
        names = {"sparse": ("embedding", "stamp"), "dense": ("score", "stamps")}[self.part]
        encoded = encode_response(InferResponse("click", {name: Tensor("FP32", score) for name in names}), binary=names)
        headers = {**encoded.headers, "x-ipnext-snapshots": f"{self.part}={self.snapshot}"}
        return web.Response(body=encoded.body, headers=headers)


@asynccontextmanager
async def running(host: FakeHost):
    app = web.Application()
    app.router.add_post("/parts/{model}/{part}/infer", host.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield host
    finally:
        await runner.cleanup()


@pytest.fixture
async def ask(tmp_path, toolbox):
    """Ask a router over fake hosts one request."""
    metrics = RouterMetrics(region="north")

    async def call(*hosts, binary=True, leave=None, **headers):
        endpoints = tuple(PartEndpoint(part=host.part, url=host.url, generations=(4,)) for host in hosts)
        model = RoutedModel(model="click", served=(toolbox.served(4),), endpoints=endpoints)
        toolbox.write_table(tmp_path / "t.json", RouterTable(revision=time.time_ns(), region="north", models=(model,)))
        follower = TableFollower(tmp_path / "t.json", region="north")
        follower.look()
        async with aiohttp.ClientSession() as session:
            client = HostClient(session, EndpointLoads(time.monotonic), time.monotonic)
            router = Router(follower, client, metrics, region="north")
            return await through(Application(router.handle), headers, binary=binary, leave=leave)

    call.metrics = metrics
    return call


async def through(application, headers, *, binary, leave):
    tensors = {"ids": Tensor("INT64", np.array([1])), "features": Tensor("FP32", np.zeros(1, np.float32))}
    encoded = encode_request(InferRequest(tensors, binary_output=binary))
    sent = [{"type": "http.request", "body": encoded.body}]
    answers = []

    async def receive():
        if sent:
            return sent.pop()
        await (asyncio.Event() if leave is None else leave).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        answers.append(message)

    raw = {**encoded.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/models/click/infer",
        "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
    }
    await application(scope, receive, send)
    if not answers:
        return None
    return answers[0]["status"], dict(answers[0]["headers"]), answers[1]["body"]


async def test_all_calls_of_a_request_name_one_generation_and_the_time_left(ask):
    async with running(FakeHost("sparse", delay=0.05)) as sparse, running(FakeHost("dense")) as dense:
        status, headers, _ = await ask(sparse, dense, x_ipnext_deadline_ms="2000")
    assert status == 200
    assert headers[b"x-ipnext-snapshots"] == b"dense=4,sparse=4"
    assert sparse.generations == dense.generations == ["4"]
    assert dense.deadlines[0] <= sparse.deadlines[0] - 40 <= 2000


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


async def test_a_host_that_used_another_snapshot_never_gets_into_an_answer(ask):
    async with running(FakeHost("sparse")) as sparse, running(FakeHost("dense", snapshot=3)) as liar:
        status, headers, body = await ask(sparse, liar)
        assert status == 503
        assert headers[b"retry-after"] == b"1"
        assert "dense=3, generation 4 needs dense=4" in json.loads(body)["error"]
        async with running(FakeHost("dense")) as honest:
            assert (await ask(sparse, liar, honest))[0] == 200
            assert (await ask(sparse, honest, liar))[0] == 200


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (500, 500), (504, 504)])
async def test_other_refusals_are_passed_on_without_a_second_try(ask, status, expected):
    async with running(FakeHost("sparse", status=status)) as sparse, running(FakeHost("dense")) as dense:
        assert (await ask(sparse, dense))[0] == expected
    assert len(sparse.generations) == 1


async def test_the_deadline_cancels_the_hosts_work(ask, toolbox):
    async with running(FakeHost("sparse", delay=30)) as sparse, running(FakeHost("dense")) as dense:
        began = time.monotonic()
        status, _, _ = await ask(sparse, dense, x_ipnext_deadline_ms="50")
        assert status == 504
        assert time.monotonic() - began < 5
        await toolbox.eventually(lambda: sparse.cancelled)


async def test_a_client_that_leaves_cancels_the_hosts_work(ask, toolbox):
    leave = asyncio.Event()
    async with running(FakeHost("sparse", delay=30)) as sparse, running(FakeHost("dense")) as dense:
        work = asyncio.create_task(ask(sparse, dense, leave=leave))
        await toolbox.eventually(lambda: sparse.generations)
        leave.set()
        assert await work is None
        await toolbox.eventually(lambda: sparse.cancelled)


async def test_non_finite_answers_are_counted_given_in_binary_and_refused_in_json(ask):
    async with running(FakeHost("sparse")) as sparse, running(FakeHost("dense", finite=False)) as dense:
        assert (await ask(sparse, dense))[0] == 200
        status, _, body = await ask(sparse, dense, binary=False)
    assert status == 500
    assert "holds NaN or infinity" in json.loads(body)["error"]
    [traffic] = ask.metrics.traffic
    assert (traffic.requests, traffic.errors, traffic.non_finite, traffic.in_flight) == (2, 1, 2, 0)
