"""Bytes of any kind into the HTTP server over the V2 codec: every answer is a whole 2xx or 4xx, and none is missing."""

import asyncio
import json

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.http.connection import http_factory
from serving.http.messages import Response
from serving.protocol.v2 import HEADER_LENGTH, InferResponse, decode_request, encode_response, parse_header_length

TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1]}
JSON = json.dumps({"id": "a", "inputs": [TENSOR]}).encode()
BINARY_HEAD = json.dumps(
    {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}}],
     "parameters": {"binary_data_output": True}}
).encode()  # fmt: skip
BINARY = BINARY_HEAD + b"\x02\x00\x00\x00ab\x01\x00\x00\x00c"
SEEDS = [
    b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"POST /infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(JSON), JSON),
    b"POST /infer HTTP/1.1\r\nhost: localhost\r\n%s: %d\r\ncontent-length: %d\r\n\r\n%s"
    % (HEADER_LENGTH.encode(), len(BINARY_HEAD), len(BINARY), BINARY),
    b"POST /infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    % (len(JSON), JSON),
    b"POST /infer HTTP/1.0\r\nconnection: keep-alive\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n",
]


@st.composite
def mutated(draw):
    """Valid requests one after the other, with a few bytes changed, dropped, doubled or put in."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 8)))
        data[at:end] = draw(st.binary(max_size=4) | st.just(bytes(data[at:end]) * 2))
    return bytes(data)


class Wire(asyncio.Transport):
    """What a connection writes."""

    def __init__(self):
        super().__init__()
        self.written = bytearray()
        self.ended = False

    def write(self, data):
        assert not self.ended, "nothing is written after the end"
        self.written += data

    def writelines(self, pieces):
        self.write(b"".join(pieces))

    def write_eof(self):
        self.ended = True

    def close(self):
        self.ended = True

    def pause_reading(self):
        """Nothing is read here."""

    def resume_reading(self):
        """Nothing is read here."""


class Answers:
    """Reads answers; httptools calls it."""

    def __init__(self, written):
        self.statuses = []
        self.body = b""
        self.bodies = []
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(bytes(written))

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        status = self.parser.get_status_code()
        if status != 100:
            self.statuses.append(status)
            self.bodies.append(self.body)
        self.body = b""


def handle(request):
    if request.path != "/infer":
        return Response(200, b"{}")
    wanted = decode_request(request.content, parse_header_length(request.header(HEADER_LENGTH)))
    encoded = encode_response(
        InferResponse("m", wanted.inputs, "1", wanted.id), binary=wanted.binary_names(wanted.inputs)
    )
    return Response(200, encoded.body, encoded.headers)


async def feed(data, size):
    seen = []
    factory, _ = http_factory(lambda request: (seen.append(request), handle(request))[1])
    connection, wire = factory(), Wire()
    connection.connection_made(wire)
    for start in range(0, len(data), size):
        if not wire.ended:
            connection.data_received(data[start : start + size])
    connection.check_pace(1e12)
    connection.connection_lost(None)
    return wire, seen


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=400, deadline=None)
@given(mutated() | st.binary(max_size=300), st.integers(1, 400))
def test_any_bytes_are_answered_by_whole_answers_and_nothing_is_left_open(runner, data, size):
    wire, seen = runner.run(feed(data, size))
    answers = Answers(wire.written)
    assert all(200 <= status < 300 or 400 <= status < 500 for status in answers.statuses)
    assert len(answers.statuses) - len(seen) in (0, 1), "an answer for each request, and one for what is none"
    if len(answers.statuses) > len(seen):
        assert answers.statuses[-1] in (400, 403, 408, 413, 421)
        assert wire.ended
    for status, body in zip(answers.statuses, answers.bodies, strict=True):
        assert status < 400 or list(json.loads(body)) == ["error"]


@settings(max_examples=100, deadline=None)
@given(mutated(), st.lists(st.integers(1, 400), min_size=2, max_size=2))
def test_how_the_bytes_are_cut_into_pieces_changes_no_answer(runner, data, sizes):
    first, second = (Answers(runner.run(feed(data, size))[0].written).statuses for size in sizes)
    assert first == second
