"""Bodies count as what they become: unpacked, parsed, decoded, in frames.

What finds no room is refused, and all is given back.
"""

import asyncio
import gzip
import tracemalloc
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import orjson
import pytest

from ipnext.errors import TooLarge, Unavailable
from serving.http import compression
from serving.http import limits as http_limits
from serving.http.compression import unpack_request
from serving.http.limits import BodyBudget, HttpLimits
from serving.http.messages import Request
from serving.protocol.frames import FrameProtocol, bytes_frame
from serving.protocol.json_size import MAX_STRUCTURES, SMALL_BYTES, most_values, parsed_bytes
from serving.protocol.tensors import Tensor, decoded_bytes
from serving.protocol.v2 import InferRequest, decode_request, encode_request
from serving.routing.host_connection import Pieces
from tests.serving.host.test_frame_server import host_of
from tests.waiting import PATIENCE_SECONDS, eventually

MEGA = 2**20


def budget(held_bytes, **more):
    return BodyBudget(HttpLimits(held_bytes=held_bytes, small_bytes=1000, **more))


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"{}," * 100_000 + b"{}]",
        b"[" + b"[]," * 100_000 + b"[]]",
        b"[" + b'{"":"x"},' * 100_000 + b"{}]",
        b"[" + b"[1.5]," * 100_000 + b"1]",
        b"[" + b"0," * 100_000 + b"1]",
        b"[" + b"1.5," * 100_000 + b"1]",
        b"[" + b"9007199254740993," * 100_000 + b"1]",
        b"[" + b'"ab",' * 100_000 + b"1]",
        '["{}"]'.format('","'.join("\u4e00" * 100_000)).encode(),
        '["{}"]'.format("a" * 1_000_000 + "\U0001f600").encode(),
        '["{}"]'.format("a" * 1_000_000 + "\u4e00").encode(),
        b"{" + b",".join(b'"%d":1.5' % number for number in range(100_000)) + b"}",
        b"[" + b'{"a":{"b":1.5,"c":"dd"}},' * 50_000 + b"1]",
    ],
    ids=lambda text: text[:24].decode(errors="replace"),
)
def test_json_becomes_at_most_what_is_told_before_it_is_parsed(text):
    told = parsed_bytes(text)
    tracemalloc.start()
    try:
        values = orjson.loads(text)
        became, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert values
    assert became <= told <= 10 * became + 10 * len(text)


def test_more_structures_than_are_taken_are_refused_before_they_are_parsed():
    half = MAX_STRUCTURES // 2
    assert parsed_bytes(b"[" + b"{}," * (half - 1) + b"[]," * half + b"1]")
    with pytest.raises(TooLarge, match=f"at most {MAX_STRUCTURES}"):
        parsed_bytes(b"[" + b"{}," * half + b"[]," * half + b"1]")
    with pytest.raises(TooLarge):
        decode_request(b'{"inputs":[' + b"[]," * MAX_STRUCTURES + b"1]}")


@pytest.mark.parametrize("longer", [0, SMALL_BYTES])
@pytest.mark.parametrize(
    ("value", "values"),
    [
        ({"a": 1, "b": [1, 2, {"c": 'x,[{"y"}'}]}, 6),
        ({"a": "\\", "b,": '\\",'}, 2),
        (["ü", None], 2),
    ],
)
def test_values_of_a_text_are_counted_outside_its_strings(value, values, longer):
    text = orjson.dumps([value, "," * longer]).decode()
    assert most_values(text) == values + 2


def test_a_short_text_is_not_looked_at():
    assert parsed_bytes(b"[" * SMALL_BYTES) == 0


def test_tensors_that_lie_in_their_body_take_nothing_beside_it():
    x = Tensor("FP32", np.arange(8, dtype=np.float32))
    words = Tensor("BYTES", np.array([b"a" * 10, b""], np.object_))
    for binary, own in ((True, 10 + 2 * 41), (False, 32 + 10 + 2 * 41)):
        body = encode_request(InferRequest({"x": x, "words": words}), binary=binary)
        content = bytearray(body.body)
        wanted = decode_request(content, body.header_length)
        assert decoded_bytes(wanted.inputs.values(), beside=content) == own


async def unpack(held, size):
    counted = budget(held)
    content = bytearray(gzip.compress(bytes(size)))
    request = Request("POST", "/x", {"content-encoding": "gzip"}, content)
    with counted.claim() as claim:
        got = await unpack_request(request, limit=2 * size, claim=claim)
        assert len(got.content) == counted.held_bytes == size
    assert counted.held_bytes == 0


@pytest.mark.parametrize("size", [3 * MEGA, 20 * MEGA])
async def test_a_packed_body_counts_as_what_it_unpacks_to(size):
    await unpack(2 * size, size)


async def test_a_body_that_unpacks_beyond_the_budget_is_refused_on_the_way(monkeypatch):
    steps = []
    go_on = compression._Unpacking.advance
    monkeypatch.setattr(compression._Unpacking, "advance", lambda one, size: steps.append(size) or go_on(one, size))
    with pytest.raises(Unavailable, match="are under way; try again"):
        await unpack(8 * MEGA, 64 * MEGA)
    assert len(steps) < 4, "the rest is not unpacked"


@pytest.fixture
async def host(listeners):
    counted = budget(4 * MEGA)
    async with host_of(counted) as host:
        host.budget = counted
        yield host


def v2(values, **more):
    header = {"op": "v2", "model": "m", "part": "p", "generation": 7, "deadline_ms": 60_000, "outputs": []}
    body = encode_request(InferRequest({"x": Tensor("FP32", np.asarray(values, np.float32))}), binary=False)
    return Pieces(bytes_frame, {**header, "header_length": body.header_length, **more}, body.body)


async def test_frames_count_until_they_are_answered_and_json_as_its_numbers(host):
    host.part.gate.clear()
    values = np.full(20_000, 2.0)
    pieces = v2(values)
    assert len(pieces._body) > SMALL_BYTES
    call = asyncio.create_task(host.connection.call(pieces))
    await eventually(lambda: host.parts.in_flight)
    assert host.budget.held_bytes == len(pieces._body) + 4 * values.size
    host.part.gate.set()
    assert (await call).header["status"] == 200
    await eventually(lambda: host.budget.held_bytes == 0)


async def test_json_that_finds_no_room_is_refused_before_it_is_parsed(host):
    """Its text would fit, its values would not."""
    values = np.full(200_000, 2.0)
    assert len(v2(values)._body) < MEGA
    answer = await host.connection.call(v2(values))
    assert (answer.header["status"], answer.header["code"]) == (503, "Unavailable")
    assert (host.part.passes, host.budget.held_bytes) == ([], 0)


async def test_a_frame_that_finds_no_room_is_dropped_and_the_next_one_answered(host):
    answer = await host.connection.call(Pieces(bytes_frame, {"op": "ping"}, bytes(4 * MEGA)))
    assert (answer.header["status"], answer.header["code"]) == (503, "Unavailable")
    assert host.budget.held_bytes == 0
    assert (await host.connection.call(v2([8.0]))).header["status"] == 200


async def test_a_frame_that_finds_no_room_any_more_while_it_comes_is_dropped(host):
    async with half_a_frame(host, MEGA) as (reader, writer, rest):
        host.budget.held_bytes += 3 * MEGA
        writer.write(rest + b"".join(bytes_frame({"op": "ping", "id": 2})))
        assert [header["status"] for header in await answers(reader, 2)] == [503, 200]
        assert host.budget.held_bytes == 3 * MEGA


async def test_a_connection_that_ends_within_a_frame_gives_back_what_has_come_of_it(host):
    async with half_a_frame(host, MEGA):
        pass
    await eventually(lambda: host.budget.held_bytes == 0)


async def test_a_frame_that_stalls_ends_its_connection_and_holds_nothing(listeners, monkeypatch):
    monkeypatch.setattr(http_limits, "SWEEP_SECONDS", 0.02)
    counted = budget(4 * MEGA, read_seconds=0.2, window_seconds=0.05)
    async with host_of(counted) as host:
        host.budget = counted
        async with half_a_frame(host, 1000) as (reader, _, _):
            assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""
        assert counted.held_bytes == 0
        assert (await host.connection.call(v2([8.0]))).header["status"] == 200, "one that sends whole frames goes on"


async def test_a_router_that_takes_no_answers_is_cut_off(listeners, monkeypatch):
    monkeypatch.setattr(http_limits, "SWEEP_SECONDS", 0.02)
    async with host_of(budget(64 * MEGA, write_seconds=0.2)) as host, speaking_frames(host) as (_, writer):
        head = {"op": "v2", "model": "m", "part": "p", "generation": 7, "deadline_ms": 60_000, "outputs": []}
        body = encode_request(InferRequest({"x": Tensor("FP32", np.zeros(2 * MEGA, np.float32))}, binary_output=True))
        for number in range(1, 4):
            frame = bytes_frame({**head, "header_length": body.header_length, "id": number}, body.body)
            writer.write(b"".join(frame))
        await eventually(lambda: host.part.passes)  # how many of the three depends on when the first answer is given up
        await eventually(lambda: len(host.connections) == 1)
        assert (await host.connection.call(v2([8.0]))).header["status"] == 200


@asynccontextmanager
async def speaking_frames(host):
    where = host.url.removeprefix("http://")
    name, port = where.split(":")
    reader, writer = await asyncio.open_connection(name, int(port), limit=2**16)
    writer.write(
        f"GET /frames HTTP/1.1\r\nhost: {where}\r\nconnection: upgrade\r\nupgrade: ipnext-frames\r\n\r\n".encode()
    )
    try:
        assert b"101" in await reader.readuntil(b"\r\n\r\n")
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def half_a_frame(host, size):
    """A connection on which half of a frame has come, and the rest of it."""
    frame = b"".join(bytes_frame({"op": "ping", "id": 1}, bytes(size)))
    async with speaking_frames(host) as (reader, writer):
        writer.write(frame[: len(frame) - size // 2])
        await eventually(lambda: host.budget.held_bytes == size - size // 2)
        yield reader, writer, frame[len(frame) - size // 2 :]


async def answers(reader, count):
    found = []
    protocol = FrameProtocol(lambda frame: found.append(frame.header), lambda: None)
    protocol._transport = SimpleNamespace(close=lambda: None, abort=lambda: None)
    while len(found) < count:
        protocol._feed(await asyncio.wait_for(reader.read(2**16), PATIENCE_SECONDS))
    return found
