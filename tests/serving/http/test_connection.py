"""HTTP/1.1 over real sockets: whole requests in, answers in order, and nothing that a client sends ends the process."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from ipnext.errors import InvalidInput
from serving.http import connection as http_connection
from serving.http.connection import http_factory
from serving.http.messages import Response, not_found
from tests.waiting import PATIENCE_SECONDS, eventually


class Answers:
    """Answers by path: at once, when told, with an error, or with what it was sent."""

    def __init__(self):
        self.requests = []
        self.gates = {}
        self.cancelled = []

    def handle(self, request):
        self.requests.append(request)
        if request.path.startswith("/wait"):
            return self.wait(request)
        match request.path:
            case "/echo":
                return Response(200, bytes(request.content), {"x-said": request.header("x-say") or ""})
            case "/refuse":
                msg = "rows: 0 must be at least 1"
                raise InvalidInput(msg, field="rows")
            case "/break":
                msg = "a secret of the house"
                raise RuntimeError(msg)
        raise not_found(request)

    async def wait(self, request):
        gate = self.gates.setdefault(request.path, asyncio.Event())
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.path)
            raise
        if request.path == "/wait/broken":
            msg = "no"
            raise InvalidInput(msg)
        return Response(200, request.path.encode())


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
async def connect(answers, listeners):
    taken = []

    def upgrade(transport, rest):
        taken.append(rest)
        transport.write(b"hello")
        transport.close()

    factory, _ = http_factory(answers.handle, {"frames": upgrade})
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)

    @asynccontextmanager
    async def connected():
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()

    connected.taken = taken
    yield connected
    server.close()


async def answer(reader):
    """Status, headers and body of the next answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def post(path, body=b"", *lines):
    head = "".join(
        f"{line}\r\n" for line in (f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *lines)
    )
    return head.encode() + b"\r\n" + body


async def test_a_connection_serves_request_after_request(connect):
    async with connect() as (reader, writer):
        for body in (b"one", b"", bytes(200_000)):
            writer.write(post("/echo", body, "X-Say: hi"))
            status, headers, got = await answer(reader)
            assert (status, got, headers["x-said"]) == (200, body, "hi")


async def test_pieces_of_any_size_make_the_same_request(connect, answers):
    async with connect() as (reader, writer):
        for byte in post("/echo?x=1", b"abc"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await answer(reader))[2] == b"abc"
    assert [request.path for request in answers.requests] == ["/echo"]


async def test_chunks_make_one_body_that_can_be_written_to(connect, answers):
    async with connect() as (reader, writer):
        writer.write(
            b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: "
            b"chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        assert (await answer(reader))[2] == b"abcde"
    answers.requests[0].content[0] = 1


async def test_headers_behind_the_body_are_dropped(connect, answers):
    """They come after the check of the source, and however many they are they take no memory."""
    async with connect() as (reader, writer):
        writer.write(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n")
        writer.write(b"host: evil.example\r\nX-Say: hi\r\n\r\n" + post("/echo", b"next", "X-Say: ho"))
        status, headers, body = await answer(reader)
        assert (status, body, headers["x-said"]) == (200, b"abc", "")
        assert (await answer(reader))[1]["x-said"] == "ho"
    assert answers.requests[0].headers == {"host": "localhost", "transfer-encoding": "chunked"}


async def test_of_two_credentials_neither_counts_alone(connect, answers):
    """A gateway may read the first one and a router the last one: they are one text, which no key has."""
    async with connect() as (reader, writer):
        writer.write(post("/echo", b"", "Authorization: Bearer a", "AUTHORIZATION: Bearer b"))
        assert (await answer(reader))[0] == 200
    assert answers.requests[0].headers["authorization"] == "Bearer a, Bearer b"


async def test_answers_leave_in_the_order_of_their_requests(connect, answers):
    async with connect() as (reader, writer):
        writer.write(post("/wait/1") + post("/echo", b"2") + post("/echo", b"3"))
        await eventually(lambda: answers.gates)
        assert len(answers.requests) == 1, "the next begins when the former has its answer"
        answers.gates["/wait/1"].set()
        assert [(await answer(reader))[2] for _ in range(3)] == [b"/wait/1", b"2", b"3"]


async def test_more_requests_than_may_wait_are_answered_all_the_same(connect, answers):
    count = 3 * http_connection.MAX_PIPELINED
    async with connect() as (reader, writer):
        writer.write(post("/wait/1"))
        await eventually(lambda: answers.gates)
        for number in range(count):
            writer.write(post("/echo", str(number).encode()))
        answers.gates["/wait/1"].set()
        assert (await answer(reader))[2] == b"/wait/1"
        assert [int((await answer(reader))[2]) for _ in range(count)] == list(range(count))


async def test_a_client_that_leaves_cancels_what_runs_for_it(connect, answers):
    async with connect() as (_, writer):
        writer.write(post("/wait/1") + post("/echo"))
        await eventually(lambda: answers.gates)
    await eventually(lambda: answers.cancelled == ["/wait/1"])
    assert len(answers.requests) == 1


async def test_errors_are_answered_and_the_connection_goes_on(connect, answers):
    async with connect() as (reader, writer):
        writer.write(post("/refuse"))
        status, headers, body = await answer(reader)
        assert (status, headers["x-ipnext-error"], body) == (
            400,
            "InvalidInput",
            b'{"error": "rows: 0 must be at least 1"}',
        )
        writer.write(post("/break"))
        status, _, body = await answer(reader)
        assert status == 500
        assert b"secret" not in body
        writer.write(post("/wait/broken"))
        await eventually(lambda: answers.gates)
        answers.gates["/wait/broken"].set()
        assert (await answer(reader))[0] == 400
        writer.write(post("/nowhere"))
        assert (await answer(reader))[0] == 404


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x00\x01\x02 nonsense\r\n\r\n", b"no HTTP/1.1 request"),
        (b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: -3\r\n\r\n", b"no HTTP/1.1 request"),
        (
            b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
            b"no HTTP/1.1 request",
        ),
        (
            b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nabc",
            b"no HTTP/1.1 request",
        ),
        (
            b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"Transfer-Encoding",
        ),
        (
            b"POST /echo HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"Transfer-Encoding",
        ),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_ends(connect, answers, sent, reason):
    async with connect() as (reader, writer):
        writer.write(sent)
        status, headers, body = await answer(reader)
        assert (status, headers["connection"]) == (400, "close")
        assert reason in body
        assert await reader.read() == b""
    assert not answers.requests


async def test_a_refusal_waits_for_the_answers_before_it(connect, answers):
    async with connect() as (reader, writer):
        writer.write(post("/wait/1") + b"nonsense\r\n\r\n" + post("/echo"))
        await eventually(lambda: answers.gates)
        answers.gates["/wait/1"].set()
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 400]
        assert await reader.read() == b""
    assert len(answers.requests) == 1


async def test_a_client_that_asks_first_is_told_to_go_on(connect):
    async with connect() as (reader, writer):
        whole = post("/echo", b"abc", "expect: 100-continue")
        writer.write(whole[:-3])
        told = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)
        assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await answer(reader))[2] == b"abc"


async def test_a_client_that_asks_first_is_told_so_behind_the_answers_before(connect, answers):
    async with connect() as (reader, writer):
        whole = post("/echo", b"abc", "expect: 100-continue")
        writer.write(post("/wait/1") + whole[:-3])
        await eventually(lambda: answers.gates)
        answers.gates["/wait/1"].set()
        assert (await answer(reader))[2] == b"/wait/1"
        assert (
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS) == b"HTTP/1.1 100 Continue\r\n\r\n"
        )
        writer.write(b"abc")
        assert (await answer(reader))[2] == b"abc"


async def test_close_and_head_are_honoured(connect):
    async with connect() as (reader, writer):
        writer.write(b"HEAD /echo HTTP/1.1\r\nhost: localhost\r\n\r\n" + post("/echo", b"x", "connection: close"))
        assert b"content-length: 0" in await reader.readuntil(b"\r\n\r\n")
        _, headers, body = await answer(reader)
        assert (headers["connection"], body) == ("close", b"x")
        assert await reader.read() == b""


async def test_a_connection_may_change_over_to_a_protocol_that_is_known(connect, answers):
    async with connect() as (reader, writer):
        writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: frames\r\n\r\nREST")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await reader.read() == b"hello"
    assert connect.taken == [b"REST"]
    assert not answers.requests
    async with connect() as (reader, writer):
        writer.write(b"GET /echo HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n")
        assert (await answer(reader))[0] == 200


class RecordingTransport(asyncio.Transport):
    """Remembers what is written to it."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def write(self, data):
        self.events.append(bytes(data).rpartition(b"\r\n\r\n")[2])

    def close(self):
        self.events.append("closed")


@pytest.mark.parametrize("waits", [False, True])
async def test_what_follows_an_answer_is_called_after_the_answer_was_written(waits):
    events = []
    response = Response(200, b"answer", after_sent=lambda: events.append("after"))

    async def later():
        return response

    factory, _ = http_factory(lambda _: later() if waits else response)
    protocol = factory()
    protocol.connection_made(RecordingTransport(events))
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await eventually(lambda: "after" in events)
    assert events == [b"answer", "after"]
    protocol.connection_lost(None)


async def test_nothing_follows_an_answer_whose_client_has_left():
    events, gate = [], asyncio.Event()

    async def later():
        await gate.wait()
        return Response(200, b"answer", after_sent=lambda: events.append("after"))

    factory, _ = http_factory(lambda _: later())
    protocol = factory()
    protocol.connection_made(RecordingTransport(events))
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    protocol.connection_lost(None)
    gate.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert events == []
