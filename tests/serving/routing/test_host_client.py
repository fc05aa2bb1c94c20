"""Hosts that fall silent are given up, slow ones are not; lost ones are sought and found.

A part answers from one snapshot.
"""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from ipnext.errors import IPnextError
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph, SyncPolicy
from ipnext.names import FRAMES
from serving.graph import run_graph
from serving.http.connection import http_factory
from serving.http.messages import error_response, not_found
from serving.protocol.frames import FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.tensors import Tensor
from serving.routing import host_connection, load_balancer
from serving.routing.host_call import CallState, HostEnded, RetryOnOtherHost
from serving.routing.host_client import HostClient
from serving.routing.host_connection import ConnectionLost, Pieces, connect
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.retries import run_with_retry
from serving.routing.table import compile_routes
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("listeners")

X = {"x": Tensor("FP32", np.zeros((1, 1), np.float32))}


class Host:
    """Answers each call with its generation's number, as snapshot and as data, after `seconds`, or once `let_go`."""

    def __init__(self, seconds=0.0, *, silent=False, status=200, finite=True):
        self.seconds, self.silent, self.status, self.finite = seconds, silent, status, finite
        self.pings = self.cancelled = 0
        self.asked = []
        self.open = set()
        self.url = ""
        self.kept = None
        self._server = None

    def take_over(self, transport, rest):
        protocol = FrameProtocol(lambda frame: self.take(protocol, frame), lambda: self.open.discard(protocol))
        self.open.add(protocol)
        protocol.take_over(transport, rest)

    def take(self, protocol, frame):
        header = frame.header
        if header["op"] == "ping":
            self.pings += 1
        if header["op"] == "cancel":
            self.cancelled += 1
        if self.silent or header["op"] == "cancel":
            return
        if header["op"] == "ping":
            protocol.send(bytes_frame({"id": header["id"], "status": 200}))
            return
        self.asked.append(header["generation"])
        if self.kept is not None:
            self.kept.append((protocol, header))
            return
        asyncio.get_running_loop().call_later(self.seconds, self.answer, protocol, header)

    def keep(self):
        """Answer no call from now on before `let_go`."""
        self.kept = []

    def let_go(self):
        kept, self.kept = self.kept, None
        for protocol, header in kept:
            self.answer(protocol, header)

    def answer(self, protocol, header):
        answer = {"id": header["id"], "status": self.status, "error": "told so", "snapshot": header["generation"]}
        answer |= {} if self.finite else {"finite": False}
        y = Tensor("FP32", np.full((1, 1), header["generation"], np.float32))
        protocol.send(tensor_frame(answer, {"y": y}))

    async def start(self, port=0):
        factory, _ = http_factory(lambda request: error_response(not_found(request)), {FRAMES: self.take_over})
        self._server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def end(self):
        self._server.close()
        for protocol in tuple(self.open):
            protocol.abort()
        await self._server.wait_closed()


@asynccontextmanager
async def running(*hosts):
    for host in hosts:
        await host.start()
    try:
        yield hosts
    finally:
        for host in hosts:
            await host.end()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(host_connection, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(load_balancer, "FIRST_SECONDS", 0.05)


def call():
    return Pieces(tensor_frame, {"op": "infer", "generation": 1}, X)


async def test_a_host_that_works_long_on_a_call_gives_signs_of_life_and_is_waited_for():
    async with running(Host()) as [host]:
        host.keep()
        connection = await connect(host.url)
        asked = asyncio.create_task(connection.call(call()))
        await eventually(lambda: host.pings > 2 * host_connection.SILENT_LOOKS)
        host.let_go()
        assert (await asked).header["status"] == 200
        connection.close()


async def test_a_connection_that_is_being_made_when_the_client_is_closed_is_closed_and_no_other_is_made():
    async with running(Host()) as [host]:
        client = HostClient(HostLoadBalancer(time.monotonic), time.monotonic)
        asked = asyncio.create_task(client.reach(host.url))
        await asyncio.sleep(0)  # one turn, in which it begins to connect
        assert client._connecting
        client.close()
        connection = await asked
        await eventually(lambda: not (connection.open or host.open or client._connecting))
        assert client.connection(host.url) is None
        with pytest.raises(ConnectionLost):
            await client.reach(host.url)


async def test_calls_that_began_without_a_connection_share_the_one_that_the_first_of_them_made(client):
    async with running(Host()) as [host]:
        calls = [client.begin(route([host], (2,)), "p", X, client.attempt()) for _ in range(3)]
        for begun in calls:
            await begun.response()
        assert len(host.open) == 1
        client.close()
        await eventually(lambda: not host.open)


async def test_a_late_report_of_a_former_connections_loss_ejects_a_host_for_a_while_only(client):
    async with running(Host()) as [host]:
        connection = await client.reach(host.url)
        client.note_lost(host.url)
        await eventually(lambda: not client._seeking, seconds=10)
        assert client.connection(host.url) is connection
        assert client._loads.seconds_until_sought(host.url) is None
        assert len(host.open) == 1


class Mute:
    """A host that takes connections, reads, and answers nothing."""

    def __init__(self):
        self.asked = self.ended = 0

    async def take(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        await reader.read()
        self.ended += 1
        writer.close()


@asynccontextmanager
async def mute():
    host = Mute()
    async with await asyncio.start_server(host.take, "127.0.0.1", 0) as server:
        yield host, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_handshake_that_is_cancelled_as_one_that_takes_too_long_is_leaves_no_connection():
    async with mute() as (host, url):
        connecting = asyncio.create_task(connect(url))
        await eventually(lambda: host.asked == 1)
        connecting.cancel()
        await eventually(lambda: host.ended == 1)
        with pytest.raises(asyncio.CancelledError):
            await connecting


async def test_a_host_that_gives_no_sign_of_life_is_given_up_with_all_its_calls():
    async with running(Host(silent=True)) as [host]:
        connection = await connect(host.url)
        outcomes = await asyncio.gather(*(connection.call(call()) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 3
        assert not connection.open
        assert host.pings >= 2


async def test_callers_that_leave_before_a_silent_host_is_given_up_do_not_start_its_time_anew():
    async with running(Host(silent=True)) as [host]:
        connection = await connect(host.url)
        left = 0
        while connection.open and left < 40:
            with suppress(TimeoutError, ConnectionLost):
                async with asyncio.timeout(0.07):
                    await connection.call(call())
            await asyncio.sleep(0.05)
            left += 1
        assert left < 20


async def test_a_connection_without_calls_is_left_in_peace():
    async with running(Host()) as [host]:
        connection = await connect(host.url)
        await connection.call(call())
        await eventually(lambda: connection._watch is None)
        host.silent, pings = True, host.pings
        await asyncio.sleep(0.4)  # what must not happen has no event
        assert connection.open
        assert host.pings == pings
        connection.close()


def route(hosts, *generations, graph=None, sync=None):
    """Of generation 2, whose part `p` the hosts hold in these generations."""
    graph = graph or PartGraph(nodes=(GraphNode(name="p", part="p", inputs={"x": "request.x"}),), outputs={"y": "p.y"})
    served = tuple(
        ServedGeneration(generation=n, graph=graph, snapshots={"p": n}, sync=sync or SyncPolicy(), facts=FACTS)
        for n in (1, 2)
    )
    endpoints = tuple(
        PartEndpoint(part="p", url=host.url, generations=held) for host, held in zip(hosts, generations, strict=True)
    )
    table = RouterTable(revision=1, region="r", models=(RoutedModel(model="m", served=served, endpoints=endpoints),))
    return compile_routes(table).model("m").choose("2")


FACTS = {"p": {"created_at": "2026-01-01T00:00:00Z", "signature": "s"}}


@pytest.fixture
async def client():
    loop = asyncio.get_running_loop()
    made = HostClient(HostLoadBalancer(loop.time), loop.time)
    made.attempt = lambda seconds=60.0: CallState(loop.time() + seconds)
    yield made
    made.close()


async def test_a_lost_host_is_found_again_without_a_request_that_tries_it(client):
    async with running(Host(), Host()) as hosts:
        first, second = hosts
        one = route(hosts, (2,), (2,))
        for _ in range(2):
            await client.infer(one, "p", X, client.attempt())
        await first.end()
        lost = 0
        for _ in range(6):
            try:
                await client.infer(one, "p", X, client.attempt())
            except RetryOnOtherHost:
                lost += 1
        assert lost == 1, "the others pass it over"
        seen = len(second.asked)
        await first.start(first.port)
        await eventually(lambda: first.open)
        assert len(second.asked) == seen
        asked = len(first.asked)
        for _ in range(4):
            await client.infer(one, "p", X, client.attempt())
        assert len(first.asked) > asked


async def test_a_call_leaves_before_its_answer_is_awaited_and_the_host_is_told_when_nobody_will(client):
    async with running(Host()) as [host]:
        one = route([host], (2,))
        await client.infer(one, "p", X, client.attempt())
        host.keep()
        begun, given_up = (client.begin(one, "p", X, client.attempt()) for _ in range(2))
        await eventually(lambda: len(host.asked) == 3)
        given_up.give_up()
        await eventually(lambda: host.cancelled == 1)
        host.let_go()
        assert (await begun.response()).tensors()["y"].data == [[2.0]]
        client.forget(frozenset())
        await eventually(lambda: not host.open)


async def test_a_lost_host_that_left_the_table_is_sought_no_more(client):
    async with running(Host(), Host()) as hosts:
        one = route(hosts, (2,), (2,))
        for host in hosts:
            await host.end()
        with pytest.raises(RetryOnOtherHost):
            await client.infer(one, "p", X, client.attempt())
        client.forget(frozenset({hosts[1].url}))
        await hosts[0].start(hosts[0].port)
        await asyncio.sleep(0.3)  # what must not happen has no event
        assert not hosts[0].open
        await hosts[1].start(hosts[1].port)


async def test_a_host_whose_answers_fail_one_after_another_is_passed_over(client, monkeypatch):
    monkeypatch.setattr(load_balancer, "FIRST_SECONDS", 60.0)
    async with running(Host(), Host(status=500)) as hosts:
        one = route(hosts, (2,), (2,))
        failed = 0
        for _ in range(20):
            failed += await ask_with_retry(client, one) != 200
        assert failed == load_balancer.STRIKES - 1, "the last failure is answered by the other host"
        assert len(hosts[1].asked) == load_balancer.STRIKES


async def test_requests_that_fail_on_every_host_eject_none(client, monkeypatch):
    """A client sends what no host can answer whenever it is one host's turn; the other host does well in between."""
    monkeypatch.setattr(load_balancer, "FIRST_SECONDS", 60.0)
    async with running(Host(), Host()) as hosts:
        one = route(hosts, (2,), (2,))
        for number in range(40):
            for host in hosts:
                host.status = 500 if number % 2 else 200
            await ask_with_retry(client, one)
            assert [client._loads.standing(host.url) for host in hosts] == ["in", "in"]


async def test_an_answer_that_is_not_finite_is_no_failure_of_its_host(client):
    async with running(Host(), Host(status=500, finite=False)) as hosts:
        one = route(hosts, (2,), (2,))
        for _ in range(20):
            await ask_with_retry(client, one)
        assert client._loads.standing(hosts[1].url) == "in"
        assert len(hosts[1].asked) == 10


async def ask_with_retry(client, one):
    """Return the status of a request, as a router answers it."""
    asked = client.attempt()
    try:
        await run_with_retry(
            lambda: client.infer(one, "p", X, asked), asked, again=lambda _: None, subject="generation 1 of m"
        )
    except IPnextError as error:
        return error.http_status
    return 200


async def test_a_host_that_lets_deadlines_pass_is_passed_over(client, monkeypatch):
    monkeypatch.setattr(load_balancer, "FIRST_SECONDS", 60.0)
    async with running(Host(), Host(seconds=600)) as hosts:
        one = route(hosts, (2,), (2,))
        for _ in range(20):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.infer(one, "p", X, client.attempt(0.5))
        assert len(hosts[1].asked) == load_balancer.STRIKES


async def test_a_client_that_leaves_before_its_deadline_is_no_strike(client):
    async with running(Host(seconds=600)) as hosts:
        one = route(hosts, (2,))
        for _ in range(2 * load_balancer.STRIKES):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    await client.infer(one, "p", X, client.attempt(600))
        assert client._loads._hosts[hosts[0].url].strikes == 0


TWICE = PartGraph(
    nodes=(
        GraphNode(name="a", part="p", inputs={"x": "request.x"}),
        GraphNode(name="b", part="p", inputs={"x": "request.x"}),
        GraphNode(name="c", part="p", inputs={"x": "a.y"}),
    ),
    outputs={"a": "a.y", "b": "b.y", "c": "c.y"},
)


async def test_a_part_that_a_request_calls_several_times_answers_from_one_snapshot_also_unsynced(client):
    async with running(Host(), Host()) as hosts:
        one = route(hosts, (1,), (2,), graph=TWICE, sync=SyncPolicy(policy="unsynced"))
        seen = set()
        for _ in range(12):
            attempt = client.attempt()

            async def ask(part, inputs, attempt=attempt):
                return await client.infer(one, part, inputs, attempt)

            answer = await run_graph(one.plan, X, ask)
            numbers = {int(tensor.data[0, 0]) for tensor in answer.values()}
            assert numbers == {attempt.used["p"]}
            seen |= numbers
        assert seen == {1, 2}, "different requests use different ones"


async def test_bounded_asks_another_snapshot_once_the_exact_one_is_lost(client):
    async with running(Host(), Host()) as hosts:
        old, exact = hosts
        one = route(hosts, (1,), (2,), sync=SyncPolicy(policy="bounded", max_snapshots=1))
        for _ in range(4):
            attempt = client.attempt()
            await client.infer(one, "p", X, attempt)
            assert attempt.used == {"p": 2}
        await exact.end()
        attempt = client.attempt()
        with pytest.raises((RetryOnOtherHost, HostEnded)):
            await client.infer(one, "p", X, attempt)
        attempt.used.clear()
        await client.infer(one, "p", X, attempt)
        assert attempt.used == {"p": 1}
        assert old.asked == [1]
        await exact.start(exact.port)
