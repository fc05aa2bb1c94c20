"""A router's connection to a real host part: calls side by side, each refused, cancelled or answered by itself."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from ipnext.errors import InvalidInput
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import Signature, TensorSpec
from ipnext.names import FRAMES
from serving.host.batching import InferenceQueue
from serving.host.frame_server import HostFrames
from serving.host.graph_executor import GraphExecutor
from serving.host.part_server import PartServer
from serving.host.served_part import BatchLimits, ServedPart
from serving.http.connection import http_factory
from serving.http.limits import OpenConnections
from serving.http.messages import error_response, not_found
from serving.protocol.frames import bytes_frame, tensor_frame
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, decode_response, encode_request
from serving.routing.host_client import HostClient
from serving.routing.host_connection import ConnectionLost, Pieces, connect
from serving.routing.load_balancer import HostLoadBalancer
from serving.snapshots.held_snapshots import HeldSnapshots
from tests.waiting import PATIENCE_SECONDS, eventually


class Halving:
    """Halves `x`; `gate` holds passes up; 13 is refused, 17 breaks it."""

    rows_are_independent = False
    size_bytes = 0
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
    )

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.passes = []

    def infer(self, inputs):
        assert self.gate.wait(PATIENCE_SECONDS)
        [first, *_] = inputs["x"].tolist()
        self.passes.append(first)
        if first == 13:
            msg = "x: 13 is not taken"
            raise InvalidInput(msg)
        if first == 17:
            msg = "a secret of the part"
            raise RuntimeError(msg)
        return {"y": inputs["x"] / 2}

    def close(self):
        pass


@pytest.fixture
async def host(listeners):
    async with host_of() as host:
        yield host


@asynccontextmanager
async def host_of(budget=None):
    """A host of one part; `budget` counts the bodies of its requests."""
    connections = OpenConnections(budget)
    part = Halving()
    held = HeldSnapshots()
    hold = HostedSnapshot(
        model="m", part="p", engine="torch", snapshot=3, digest="0" * 64, uri="file:///x", generations=(7,)
    )
    held.want([hold])
    held.note_loaded(hold, ServedPart(part, BatchLimits()))
    queue = InferenceQueue(waiting=4)
    parts = PartServer(held, queue, lambda _: None, region="north", budget=connections.budget)
    executor = GraphExecutor(parts, HostClient(HostLoadBalancer(time.monotonic), time.monotonic))
    upgrades = {FRAMES: lambda transport, rest: HostFrames(parts, executor, connections).take_over(transport, rest)}
    factory, _ = http_factory(lambda request: error_response(not_found(request)), upgrades, connections=connections)
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    connection = await connect(url)
    yield SimpleNamespace(
        part=part, parts=parts, url=url, connection=connection, queue=queue, held=held, connections=connections
    )
    part.gate.set()
    connection.close()
    server.close()
    queue.close()


def infer(number, **header):
    about = {"op": "infer", "model": "m", "part": "p", "generation": 7, "deadline_ms": 60_000, **header}
    return Pieces(tensor_frame, about, {"x": Tensor("FP32", np.array([number], np.float32))})


async def test_a_call_is_answered_with_its_tensors_and_the_snapshot_that_made_them(host):
    answer = await host.connection.call(infer(8))
    assert (answer.header["status"], answer.header["snapshot"]) == (200, 3)
    assert answer.tensors()["y"].data.tolist() == [4]
    assert host.parts.in_flight == 0


async def test_calls_wait_for_each_other_in_the_part_but_not_on_the_connection(host):
    host.part.gate.clear()
    slow = asyncio.create_task(host.connection.call(infer(2)))
    refused = await asyncio.wait_for(host.connection.call(infer(2, generation=8)), PATIENCE_SECONDS)
    assert (refused.header["status"], refused.header["code"]) == (409, "GenerationNotHeld")
    host.part.gate.set()
    assert (await slow).tensors()["y"].data.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"generation": 8}, 409),
        ({"part": "q"}, 409),
        ({"deadline_ms": "soon"}, 400),
        ({"op": "dance"}, 400),
        ({"model": ["m"]}, 400),
    ],
)
async def test_a_call_that_does_not_fit_is_refused_by_itself(host, change, status):
    assert (await host.connection.call(infer(2, **change))).header["status"] == status
    assert (await host.connection.call(infer(8))).header["status"] == 200
    assert host.parts.in_flight == 0
    assert [entry.leases for entry in host.held._entries.values()] == [0], (
        "a lease that stays keeps a snapshot for ever"
    )


async def test_what_the_part_refuses_or_breaks_on_is_told_without_its_insides(host):
    refused = await host.connection.call(infer(13))
    assert (refused.header["status"], refused.header["error"]) == (400, "x: 13 is not taken")
    broken = await host.connection.call(infer(17))
    assert broken.header["status"] == 500
    assert "secret" not in broken.header["error"]


async def test_tensors_that_do_not_fit_the_signature_are_refused_by_name(host):
    about = {"op": "infer", "model": "m", "part": "p", "generation": 7, "deadline_ms": 60_000}
    wrong = {"x": Tensor("INT64", np.array([1]))}
    answer = await host.connection.call(Pieces(tensor_frame, about, wrong))
    assert answer.header["status"] == 400
    assert "'x'" in answer.header["error"]


async def test_a_v2_body_is_answered_with_a_v2_body(host):
    encoded = encode_request(InferRequest({"x": Tensor("FP32", np.array([8], np.float32))}, id="a", binary_output=True))
    about = {"op": "v2", "model": "m", "part": "p", "generation": 7, "deadline_ms": 60_000}
    about |= {"header_length": encoded.header_length, "outputs": []}
    answer = await host.connection.call(Pieces(bytes_frame, about, encoded.body))
    response = decode_response(answer.body.data, answer.header["header_length"])
    assert (response.id, response.outputs["y"].data.tolist(), answer.header["finite"]) == ("a", [4], True)
    assert response.parameters["snapshots"] == "p=3"


async def test_the_signature_is_told(host):
    about = {"op": "signature", "model": "m", "part": "p", "generation": 7}
    answer = await host.connection.call(Pieces(bytes_frame, about, b""))
    assert Signature.model_validate(answer.header["signature"]) == Halving.signature


async def test_a_cancelled_call_that_waits_is_never_run(host):
    host.part.gate.clear()
    first = asyncio.create_task(host.connection.call(infer(2)))
    await eventually(lambda: host.queue.pending == 1)
    second = asyncio.create_task(host.connection.call(infer(4)))
    await eventually(lambda: host.queue.pending == 2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    answered = await host.connection.call(infer(1, generation=8))  # the cancellation has come through before it
    assert answered.header["status"] == 409
    host.part.gate.set()
    assert (await first).header["status"] == 200
    await eventually(lambda: host.queue.pending == 0)
    assert host.part.passes == [2]


async def test_a_lost_connection_gives_up_what_waits_and_tells_the_callers(host):
    host.part.gate.clear()
    calls = [asyncio.create_task(host.connection.call(infer(n))) for n in (2, 4)]
    await eventually(lambda: host.queue.pending == 2)
    host.connection.close()
    for call in calls:
        with pytest.raises(ConnectionLost):
            await call
    host.part.gate.set()
    await eventually(lambda: host.queue.pending == 0 and host.parts.in_flight == 0)
    assert host.part.passes == [2]
    with pytest.raises(ConnectionLost):
        await host.connection.call(infer(8))


async def test_a_full_queue_refuses_with_503(host):
    host.part.gate.clear()
    calls = [asyncio.create_task(host.connection.call(infer(n))) for n in range(5)]
    await eventually(lambda: host.queue.pending == 5)
    assert (await host.connection.call(infer(9))).header["status"] == 503
    host.part.gate.set()
    assert {(await call).header["status"] for call in calls} == {200}


async def test_the_deadline_of_a_call_ends_it(host):
    host.part.gate.clear()
    answer = await asyncio.wait_for(host.connection.call(infer(2, deadline_ms=30)), PATIENCE_SECONDS)
    assert answer.header["status"] == 504


@pytest.mark.usefixtures("listeners")
async def test_what_listens_but_speaks_no_frames_is_no_host():
    factory, _ = http_factory(lambda request: error_response(not_found(request)))
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    with pytest.raises(ConnectionLost):
        await connect(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()
    with pytest.raises(ConnectionLost):
        await connect("http://127.0.0.1:1")
