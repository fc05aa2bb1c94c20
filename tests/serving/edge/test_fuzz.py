"""Mutated requests to a real router, and mutated calls to a real host.

Whole answers, no hang, and the next one is served.
"""

import asyncio
import gzip
import socket

import httptools
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.host.batching import InferenceQueue
from serving.host.frame_server import HostFrames
from serving.host.graph_executor import GraphExecutor
from serving.host.part_server import PartServer
from serving.host.served_part import BatchLimits, ServedPart
from serving.protocol.frames import ALIGNMENT, FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, encode_request
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.snapshots.held_snapshots import HeldSnapshots
from tests.waiting import eventually

X = Tensor("FP32", np.array([[1, 2]], np.float32))
BINARY = encode_request(InferRequest({"x": X}, binary_output=True))
JSON = encode_request(InferRequest({"x": X}), binary=False).body
PACKED = gzip.compress(JSON)


def post(path, body, *lines):
    head = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *lines]
    return "".join(f"{line}\r\n" for line in head).encode() + b"\r\n" + body


SEEDS = [
    post("/v2/models/echo-fp32/infer", JSON),
    post("/v2/models/chain-fp32/infer", JSON, "accept-encoding: gzip", "x-ipnext-deadline-ms: 900"),
    post("/v2/models/chain-fp32/infer", BINARY.body, f"inference-header-content-length: {BINARY.header_length}"),
    post("/v2/models/echo-fp32/versions/1/infer", PACKED, "content-encoding: gzip"),
    post("/v2/repository/index", b'{"ready": true}'),
    b"GET /v2/models/chain-fp32 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /v2/models/chain-fp32/stats HTTP/1.1\r\nhost: localhost\r\nx-ipnext-generation: 1\r\n\r\n",
]


@st.composite
def mutated(draw, seeds, most):
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 6)))
        data[at:end] = draw(st.binary(max_size=4) | st.just(bytes(data[at:end]) * 2))
    return bytes(data)


class Answers:
    """The statuses of whole answers; httptools calls it."""

    def __init__(self, data):
        self.statuses = []
        self.whole = True
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.whole = False

    def on_message_complete(self):
        self.whole = True
        self.statuses.append(self.parser.get_status_code())


def talk(edge, data):
    """All that the router answers, and a good request behind it.

    The router ends the connection, or the good one does.
    """
    with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as connection:
        connection.sendall(
            data + b"\r\n\r\nGET /v2/health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        received = bytearray()
        while piece := connection.recv(65536):
            received += piece
    return bytes(received)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated(SEEDS, 3))
def test_any_request_to_the_router_gets_whole_answers_and_the_connection_ends(edge, data):
    answers = Answers(talk(edge, data))
    assert answers.whole
    assert answers.statuses
    assert all(status < 300 or 400 <= status < 500 or status == 504 for status in answers.statuses)


def test_after_all_that_the_router_serves(edge):
    assert edge.get("/v2/models/chain-fp32/ready").json()["ready"] is True


CALL = {"id": 1, "model": "m", "part": "p", "generation": 1, "deadline_ms": 60_000}
V2 = {**CALL, "op": "v2", "outputs": ["y"], "header_length": BINARY.header_length}


def pieces(parts):
    return b"".join(bytes(part) for part in parts)


CALLS = [
    pieces(tensor_frame({**CALL, "op": "infer"}, {"x": X})),
    pieces(bytes_frame(V2, BINARY.body)),
    pieces(bytes_frame({**CALL, "op": "signature"})),
    pieces(bytes_frame({"op": "cancel", "id": 1})),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.text(max_size=3) | st.sampled_from(["x", "FP32", "BYTES"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


@st.composite
def changed_calls(draw):
    """Calls that are frames, with one field of the header changed."""
    header = dict(draw(st.sampled_from([{**CALL, "op": "infer", "tensors": [["x", "FP32", [1, 2], 8]]}, V2])))
    header[draw(st.sampled_from(sorted(header)))] = draw(VALUES)
    return pieces(bytes_frame(header, BINARY.body if header.get("op") == "v2" else bytes(ALIGNMENT)))


class Wire(asyncio.Transport):
    """What a connection writes, in frames again."""

    def __init__(self):
        super().__init__()
        self.frames = []
        self.reader = FrameProtocol(self.frames.append, lambda: None)
        self.ended = False

    def write(self, data):
        self.reader._feed(bytes(data))

    def writelines(self, parts):
        self.write(b"".join(parts))

    def close(self):
        self.ended = True

    abort = close

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        """Nothing is read here."""

    def resume_reading(self):
        """Nothing is read here."""


@pytest.fixture
def ask(new_edge):
    """Sends bytes to the frames of a host, in pieces, and gives back the headers of all answers."""
    part = new_edge.echo("FP32")
    hold = new_edge.hold("m", "p", 1)
    unhandled = []

    async def asked(data, size):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        held = HeldSnapshots()
        held.want([hold])
        held.note_loaded(hold, served)
        queue = InferenceQueue()
        parts = PartServer(held, queue, id, region="north")
        host = HostFrames(parts, GraphExecutor(parts, HostClient(HostLoadBalancer(loop.time), loop.time)))
        wire = Wire()
        host.take_over(wire, b"")
        for start in range(0, len(data), size):
            if not wire.ended:
                wire.protocol._feed(data[start : start + size])
            await asyncio.sleep(0)
        await eventually(lambda: not queue.pending, every_seconds=0.001)
        wire.protocol.connection_lost(None)
        queue.close()
        assert queue.pending == 0
        return [frame.header for frame in wire.frames], wire.ended

    served = ServedPart(part, BatchLimits())
    for rows in (1, 2, 4):
        served.costs.note(rows, 1e-4)
    with asyncio.Runner() as runner:
        yield lambda data, size: runner.run(asked(data, size))
    assert not unhandled


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated(CALLS, 2) | changed_calls() | st.binary(max_size=200), st.integers(1, 300))
def test_any_frames_to_a_host_are_answered_or_end_the_connection(ask, data, size):
    answers, _ = ask(data, size)
    assert all(answer["status"] in (200, 400, 409, 504) for answer in answers), answers


def test_good_calls_are_answered(ask):
    answers, ended = ask(b"".join(CALLS), 1000)
    assert [answer["status"] for answer in answers].count(200) >= 2, answers
    assert not ended
