"""Requests that are mirrored to a shadow: after the answer, bounded, and without a trace in what clients get."""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import generate_latest

from ipnext.access.keys import draw_key
from ipnext.model.access.predictions import AccessList, AccessSpec, CallerKey, ModelAccess
from ipnext.model.access.rights import Grant, Role
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.names import FRAMES
from serving.access.access_list import AccessFollower
from serving.http.connection import http_factory
from serving.http.messages import Request, error_response, not_found
from serving.protocol.frames import FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, encode_request
from serving.router.router import Router
from serving.router.shadow_mirror import MAX_JSON_BYTES, MAX_REQUEST_BYTES, QUEUE_PER_SLOT, ShadowMirror
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.metrics import RouterMetrics
from serving.routing.table import TableFollower
from tests.waiting import eventually

LIVE, SHADOW = 4, 5
CHOSEN = {"x-ipnext-chosen-by": "weight"}
URL = "/v2/models/click/infer"


class FakeHost:
    """Answers for both parts of the live and of the shadow generation; what it does for the shadow can be set."""

    def __init__(self):
        self.calls = Counter()
        """Of each generation, by part."""
        self.open = asyncio.Event()
        """Whether calls of the shadow are answered."""
        self.open.set()
        self.status, self.crashes, self.score = 200, False, 1.0
        self.rows, self.live_rows = 1, 1
        self.url, self.connections = "", set()

    def take_over(self, transport, rest):
        running = {}

        def on_frame(frame):
            number = frame.header["id"]
            if frame.header["op"] == "cancel":
                running.pop(number).cancel()
            else:
                running[number] = asyncio.get_running_loop().create_task(self.answer(protocol, frame.header))

        protocol = FrameProtocol(on_frame, lambda: self.connections.discard(protocol))
        self.connections.add(protocol)
        protocol.take_over(transport, rest)

    async def answer(self, protocol, header):
        mirrored = header["generation"] == SHADOW
        self.calls[header["generation"], header["part"]] += 1
        if mirrored:
            await self.open.wait()
        if mirrored and self.crashes:
            protocol.abort()
            return
        if mirrored and self.status != 200:
            protocol.send(bytes_frame({"id": header["id"], "status": self.status, "code": "told", "error": "told to"}))
            return
        score = np.full(self.rows if mirrored else self.live_rows, self.score if mirrored else 1.0, np.float32)
        names = {"sparse": ("embedding", "stamp"), "dense": ("score", "stamps")}[header["part"]]
        answer = {"id": header["id"], "status": 200, "snapshot": header["generation"]}
        protocol.send(tensor_frame(answer, dict.fromkeys(names, Tensor("FP32", score))))

    def mirrored(self):
        return sum(count for (generation, _), count in self.calls.items() if generation == SHADOW)


@asynccontextmanager
async def running():
    host = FakeHost()
    factory, _ = http_factory(lambda request: error_response(not_found(request)), {FRAMES: host.take_over})
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    host.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield host
    finally:
        server.close()
        for connection in tuple(host.connections):
            connection.close()


class Rig:
    """A router in this process over fake hosts; the test sends answers itself, by `after_sent`."""

    def __init__(self, place, toolbox, *, access=None, held_bytes=2**20):
        self.place, self.toolbox = place, toolbox
        self.loads = HostLoadBalancer(time.monotonic)
        self.hosts = HostClient(self.loads, time.monotonic)
        self.metrics = RouterMetrics(region="north", served=lambda: self.follower.routes.all)
        client = HostClient(HostLoadBalancer(time.monotonic), time.monotonic, mirrors=True)
        self.mirror = ShadowMirror(client, region="north", hosts_walk=False, held_bytes=held_bytes)
        self.follower = TableFollower(place / "t.json", region="north", on_change=self.mirror.follow)
        self.router = Router(
            self.follower,
            self.hosts,
            self.metrics,
            region="north",
            hosts_walk=False,
            access=access,
            mirror=self.mirror,
        )

    def serve(self, *hosts, shadow=True, generations=(LIVE, SHADOW), access="open", **settings):
        """Put a table in force. `hosts` have the live generation and the shadow."""
        endpoints = [
            PartEndpoint(part=part, url=host.url, generations=generations)
            for part in ("sparse", "dense")
            for host in hosts
        ]
        found = Shadow(served=self.toolbox.served(SHADOW), **{"share": 1.0, "seed": 1} | settings)
        model = RoutedModel(
            model="click",
            served=(self.toolbox.served(LIVE),),
            endpoints=tuple(endpoints),
            shadow=found if shadow else None,
            access=access,
        )
        table = RouterTable(revision=time.time_ns(), region="north", models=(model,))
        self.toolbox.write_table(self.place / "t.json", table)
        self.follower.look()

    async def ask(self, *, binary=True, rows=1, path=URL, sent=True, **headers):
        """One request and its answer, which is sent."""
        tensors = {"ids": Tensor("INT64", np.arange(rows)), "features": Tensor("FP32", np.zeros(1, np.float32))}
        encoded = encode_request(InferRequest(tensors, binary_output=binary), binary=binary)
        given = {**encoded.headers, **CHOSEN, **headers}
        request = Request("POST", path, {k.lower(): v for k, v in given.items() if v}, bytearray(encoded.body))
        response = self.router.handle(request)
        response = await response if asyncio.iscoroutine(response) else response
        if sent and response.after_sent is not None:
            response.after_sent()
        return response

    @property
    def comparison(self):
        [found] = self.mirror.comparisons
        return found

    async def settled(self):
        """The comparison once nothing is under way."""
        await eventually(lambda: self.comparison.under_way == 0)
        return self.comparison

    def close(self):
        self.hosts.close()
        self.router.close()


@pytest.fixture
async def rig(tmp_path, toolbox, listeners):
    made = Rig(tmp_path, toolbox)
    yield made
    made.close()


@pytest.fixture
async def host(listeners):
    async with running() as found:
        yield found


async def idle():
    """Let the loop run all that is ready."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_the_mirrored_request_begins_after_the_answer_was_sent_and_runs_the_whole_graph(rig, host):
    rig.serve(host)
    host.score = 1.5
    response = await rig.ask(sent=False)
    await idle()
    assert (response.status, host.mirrored()) == (200, 0)
    response.after_sent()
    found = await rig.settled()
    assert host.calls == {(number, part): 1 for number in (LIVE, SHADOW) for part in ("sparse", "dense")}
    assert (found.key, found.chosen, found.compared, found.mismatched) == (("click", SHADOW, 1), 1, 1, 0)
    assert found.outputs.keys() == {"score", "stamps"}
    assert sum(found.latency.values()) == sum(found.shadow_latency.values()) == 1


@pytest.mark.parametrize("binary", [True, False])
async def test_the_client_gets_the_same_answer_with_and_without_a_shadow(rig, host, binary):
    rig.serve(host, shadow=False)
    plain = await rig.ask(binary=binary)
    assert plain.after_sent is None
    rig.serve(host)
    mirrored = await rig.ask(binary=binary)
    assert (mirrored.status, bytes(mirrored.body), mirrored.headers) == (plain.status, bytes(plain.body), plain.headers)
    assert (await rig.settled()).compared == 1


async def test_compressed_bodies_are_compared_as_they_were_before(rig, host):
    rig.serve(host)
    host.rows = host.live_rows = 2000
    response = await rig.ask(**{"accept-encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert (await rig.settled()).compared == 1


async def test_a_shadow_that_hangs_costs_clients_nothing_and_what_does_not_fit_is_dropped(rig, host):
    rig.serve(host, max_in_flight=2)
    host.open.clear()
    room = 2 + 2 * QUEUE_PER_SLOT
    for _ in range(room + 3):
        assert (await rig.ask()).status == 200
    await eventually(lambda: host.mirrored() == 2)
    found = rig.comparison
    assert (found.chosen, found.under_way, found.dropped) == (room + 3, room, {"queue": 3})
    host.open.set()
    assert (await rig.settled()).compared == room


async def test_a_deadline_ends_a_mirrored_request(rig, host):
    rig.serve(host, deadline_seconds=0.02)
    host.open.clear()
    assert (await rig.ask()).status == 200
    assert (await rig.settled()).failures == {"DeadlineExceeded": 1}


@pytest.mark.parametrize(
    ("changes", "failure"),
    [({"crashes": True}, "HostLost"), ({"status": 500}, "InternalError"), ({"status": 503}, "Unavailable")],
)
async def test_a_shadow_that_fails_is_counted_and_takes_no_host_from_clients(rig, host, changes, failure):
    async with running() as other:
        rig.serve(host, other)
        for one in (host, other):
            vars(one).update(changes)
        for _ in range(12):
            assert (await rig.ask()).status == 200
            found = await rig.settled()
        assert sum(found.failures.values()) == 12
        assert failure in found.failures
        assert [rig.loads.standing(one.url) for one in (host, other)] == ["in", "in"]


async def test_a_mirrored_request_is_tried_once(rig, host):
    async with running() as other:
        rig.serve(host, other)
        host.status = other.status = 503
        assert (await rig.ask()).status == 200
        await rig.settled()
        assert host.mirrored() + other.mirrored() == 1


async def test_nothing_of_a_shadow_is_counted_as_traffic(rig, host):
    rig.serve(host)
    for _ in range(3):
        await rig.ask()
    await rig.settled()
    [traffic] = rig.metrics.traffic
    assert (traffic.generation, traffic.requests, traffic.in_flight) == (LIVE, 3, 0)
    assert (traffic.chosen["north"].requests, traffic.chosen["north"].under_way) == (3, 0)
    lines = [line for line in rig.metrics.text().decode().splitlines() if f'generation="{SHADOW}"' in line]
    assert lines
    assert all(line.startswith("ipnext_shadow_") for line in lines)


async def test_limits_of_callers_count_each_request_once(tmp_path, toolbox, host):
    key = draw_key()
    spec = AccessSpec.model_validate(
        {"predictions": "authenticated", "limits": {"perKey": {"requestsPerSecond": 1e-6, "burst": 3}}}
    )
    access = AccessList(
        revision=1,
        models=(ModelAccess(model="click", owner="ads", access=spec),),
        keys=(CallerKey(id=key.id, name="app", digest=key.digest, grants=(Grant(role=Role.CALLER, owner="ads"),)),),
    )
    (tmp_path / "access.json").write_text(access.model_dump_json())
    follower = AccessFollower(tmp_path / "access.json")
    follower.look()
    rig = Rig(tmp_path, toolbox, access=follower)
    rig.serve(host, access="authenticated")
    answers = [(await rig.ask(authorization=f"Bearer {key.text}")).status for _ in range(4)]
    found = await rig.settled()
    rig.close()
    assert answers == [200, 200, 200, 429]
    assert found.compared == 3


@pytest.mark.parametrize(
    "pin", [{"x-ipnext-generation": "5"}, {"path": "/v2/models/click/versions/5/infer"}], ids=["header", "version"]
)
async def test_no_request_finds_the_shadow(rig, host, pin):
    rig.serve(host)
    response = await rig.ask(**pin)
    assert response.status == 404
    assert b"served: 4" in response.body
    assert host.mirrored() == 0


async def test_no_list_has_the_shadow(rig, host):
    rig.serve(host)
    for path, method in (("/v2/repository/index", "POST"), ("/v2/models/stats", "GET"), ("/v1/models", "GET")):
        response = rig.router.handle(Request(method, path))
        response = await response if asyncio.iscoroutine(response) else response
        assert b'"5"' not in response.body, path


async def test_only_good_answers_to_requests_whose_generation_a_gateway_chose_are_mirrored(rig, host):
    rig.serve(host)
    assert (await rig.ask(**{"x-ipnext-chosen-by": ""})).status == 200
    assert (await rig.ask(**{"x-ipnext-deadline-ms": "none"})).status == 400
    assert (await rig.settled()).chosen == 0
    await rig.ask()
    assert (await rig.settled()).chosen == 1


@pytest.mark.parametrize(
    "form", [{"rows": MAX_REQUEST_BYTES // 8}, {"rows": MAX_JSON_BYTES // 4, "binary": False}], ids=["body", "JSON"]
)
async def test_large_bodies_are_not_mirrored(rig, host, form):
    rig.serve(host)
    assert (await rig.ask(**form)).status == 200
    found = await rig.settled()
    assert (found.chosen, found.dropped) == (1, {"size": 1})


async def test_bodies_that_wait_take_a_bounded_memory_that_is_given_back(tmp_path, toolbox, host):
    rig = Rig(tmp_path, toolbox, held_bytes=2000)
    rig.serve(host)
    host.open.clear()
    for _ in range(9):
        await rig.ask()
    found = rig.comparison
    assert found.dropped["memory"] == 9 - found.under_way
    assert 0 < found.under_way < 9
    host.open.set()
    await rig.settled()
    await rig.ask()
    assert (await rig.settled()).dropped == found.dropped
    rig.close()


async def test_without_a_host_for_the_shadow_nothing_waits(rig, host):
    rig.serve(host, generations=(LIVE,))
    assert (await rig.ask()).status == 200
    assert rig.comparison.dropped == {"no_host": 1}
    rig.serve(host)
    assert (await rig.ask()).status == 200
    found = await rig.settled()
    assert (found.chosen, found.compared) == (2, 1), "the same comparison goes on once there is one"


async def test_another_form_of_the_answer_is_a_mismatch(rig, host):
    rig.serve(host)
    host.rows = 2
    await rig.ask()
    found = await rig.settled()
    assert (found.compared, found.mismatched, found.mismatches) == (1, 1, {"shape": 1})


async def test_another_seed_begins_another_comparison_and_other_hosts_do_not(rig, host):
    async with running() as other:
        rig.serve(host)
        await rig.ask()
        await rig.settled()
        rig.serve(host, other, share=0.999, max_in_flight=3)
        assert rig.comparison.compared == 1
        host.open.clear()
        other.open.clear()
        await rig.ask()
        await eventually(lambda: host.mirrored() + other.mirrored() == 3)
        rig.serve(host, other, seed=2)
        assert (rig.comparison.key, rig.comparison.chosen, rig.comparison.under_way) == (("click", SHADOW, 2), 0, 0)
        for one in (host, other):
            one.open.set()
        await rig.ask()
        assert (await rig.settled()).compared == 1
        rig.serve(host, shadow=False)
        assert rig.mirror.comparisons == ()


async def test_a_share_of_none_of_the_requests_mirrors_none(rig, host):
    rig.serve(host, share=1e-9)
    for _ in range(20):
        assert (await rig.ask()).status == 200
    assert (await rig.settled()).chosen == 0
    assert b"ipnext_shadow_requests_total" in generate_latest(rig.metrics.registry)
