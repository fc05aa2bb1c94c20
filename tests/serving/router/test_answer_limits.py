"""What a router keeps of hosts' answers is bounded.

One answer, all of them together, and those that no client reads.
"""

import asyncio
import gc
import json
import socket
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from serving.http.connection import http_factory
from serving.http.limits import AnswerBudget, OpenConnections, UnreadAnswers
from serving.http.messages import Response
from serving.protocol.frames import FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.tensors import Tensor
from serving.router.router import Router
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.metrics import RouterMetrics
from serving.routing.table import TableFollower
from tests.serving.router.test_router_calls import FakeHost, request_of, running
from tests.waiting import eventually

ROW_BYTES = 1000


class Sized(FakeHost):
    """Answers with outputs of `size` bytes each, and keeps its answers until `gate` is set."""

    def __init__(self, part, size=ROW_BYTES):
        super().__init__(part)
        self.size = size
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def answer(self, protocol, frame):
        self.asked += 1
        await self.gate.wait()
        names = {"sparse": ("embedding", "stamp"), "dense": ("score", "stamps")}[self.part]
        score = Tensor("FP32", np.zeros(self.size // 4, np.float32))
        answer = {"id": frame.header["id"], "status": 200, "snapshot": self.snapshot}
        protocol.send(tensor_frame(answer, dict.fromkeys(names, score)))


@pytest.fixture
def routed(tmp_path, toolbox, listeners):
    """A router over these hosts, whose answers have this budget."""

    @asynccontextmanager
    async def made(budget, *hosts):
        endpoints = tuple(PartEndpoint(part=host.part, url=host.url, generations=(4,)) for host in hosts)
        model = RoutedModel(model="click", served=(toolbox.served(4),), endpoints=endpoints)
        toolbox.write_table(tmp_path / "t.json", RouterTable(revision=1, region="north", models=(model,)))
        follower = TableFollower(tmp_path / "t.json", region="north")
        follower.look()
        client = HostClient(HostLoadBalancer(time.monotonic), time.monotonic, answers=budget)
        router = Router(follower, client, RouterMetrics(region="north"), region="north", hosts_walk=False)
        try:
            yield lambda **headers: router.handle(request_of(headers, binary=True))
        finally:
            client.close()

    return made


async def test_an_answer_beyond_the_limit_is_refused_and_the_connection_goes_on(routed):
    budget = AnswerBudget(10 * ROW_BYTES, 100 * ROW_BYTES)
    async with (
        running(Sized("sparse")) as sparse,
        running(Sized("dense", 100 * ROW_BYTES)) as dense,
        routed(budget, sparse, dense) as ask,
    ):
        refused = await ask()
        dense.size = ROW_BYTES
        answered = await ask()
    assert (refused.status, refused.headers["x-ipnext-error"]) == (502, "AnswerTooLarge")
    assert "10000 bytes" in json.loads(refused.body)["error"]
    assert "--max-answer-bytes" in json.loads(refused.body)["error"]
    assert answered.status == 200
    assert len(dense.connections) <= 1, "one connection for both"
    assert dense.asked == 2, "the refused request is not repeated"


async def test_answers_beyond_the_budget_are_refused_until_others_are_let_go_of(routed):
    budget = AnswerBudget(2**21, 3 * 2**20)
    async with (
        running(Sized("sparse")) as sparse,
        running(Sized("dense", 2**20 - 2**12)) as dense,
        routed(budget, sparse, dense) as ask,
    ):
        dense.gate.clear()
        asked = [asyncio.ensure_future(ask()) for _ in range(3)]
        await eventually(lambda: dense.asked == 3)
        dense.gate.set()
        answers = await asyncio.gather(*asked)
        statuses = sorted(answer.status for answer in answers)
        del asked, answers
        await asyncio.sleep(0)
        again = (await ask()).status
        gc.collect()
        await asyncio.sleep(0)
        left = budget.held_bytes
    assert statuses[0] == 200
    assert statuses[-1] == 503
    assert again == 200
    assert left == 0


async def test_a_body_that_no_call_waits_for_takes_no_memory():
    """A host that sends what it was not asked for, or goes on after the call was given up."""

    class Wire(asyncio.Transport):
        def set_protocol(self, protocol):
            pass

        def pause_reading(self):
            pass

        resume_reading = abort = pause_reading

    kept = []
    protocol = FrameProtocol(kept.append, lambda: None, budget=AnswerBudget(), wants=lambda header: header["id"] == 7)
    wire = b"".join(bytes_frame({"id": 8}, bytes(200_000)) + bytes_frame({"id": 7}, b"kept"))
    protocol.take_over(Wire(), wire)
    assert [(frame.header["id"], bytes(frame.body)) for frame in kept] == [(7, b"kept")]


async def test_clients_that_do_not_read_lose_their_answers_before_others_do(listeners):
    """The one that has waited longest is cut as soon as all unread answers take more than their share."""
    size = 2**24
    connections = OpenConnections(unread=UnreadAnswers(2 * size))
    factory, _ = http_factory(lambda _: Response(200, bytes(size)), connections=connections)
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    place = server.sockets[0].getsockname()[:2]
    writers = []

    async def asked():
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        link.setblocking(False)
        await asyncio.get_running_loop().sock_connect(link, place)
        reader, writer = await asyncio.open_connection(sock=link, limit=2**12)
        before = connections.unread.total_bytes
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await eventually(lambda: connections.unread.total_bytes != before)
        writers.append(writer)
        return reader

    try:
        first = await asked()
        for _ in range(3):
            last = await asked()
        assert connections.unread.total_bytes <= 2 * size
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await first.readexactly(size)
        assert len(await last.readexactly(size)) == size, "a newer one is read to its end"
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()


async def test_memory_that_a_thread_used_last_is_given_back():
    """The host that executes a graph computes in threads with the tensors of other parts."""
    budget, held = AnswerBudget(), [np.empty(1000, np.uint8)]
    budget.take(1000, body=1000)
    budget.release_with(held[0], 1000)
    await asyncio.to_thread(held.clear)
    await eventually(lambda: budget.held_bytes == 0)
