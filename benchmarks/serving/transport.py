"""What carries a call from router to host: round trips of the same bodies through candidates, in one run.

    python -m benchmarks.serving.transport [--seconds S] [--json FILE]        (needs the extra `bench`)

An echo server of each kind runs in a process of its own on loopback and answers a body with a body of the size that a
part's outputs have. The caller is one task that waits for each answer: HTTP with a raw body (the server of hosts, and
uvicorn), frames (serving.protocol.frames), ZeroMQ (pyzmq, asyncio), and a bare stream of length-prefixed bytes as the
floor. Prints microseconds and the ratio to frames, smallest and median, and the processor time of both ends for each
call.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil
import uvicorn
import uvloop
import zmq.asyncio

from ipnext.names import FRAMES
from serving.http.connection import http_factory
from serving.http.messages import Request, Response
from serving.protocol.frames import FrameProtocol, bytes_frame
from serving.routing.host_connection import Pieces, connect

BODIES = {"batch 1": (264, 1_700), "batch 64": (17_000, 107_000), "batch 256": (67_000, 426_000)}
"""Bytes of a request and of an answer: ids of 26 tables and their embeddings of 16 floats, half of them on each
host."""

Call = Callable[[bytes], Awaitable[int]]


class Frames:
    """Our transport."""

    name = "frames"

    @staticmethod
    async def serve(listener: socket.socket, answer: bytes) -> None:
        """Answer frames with frames."""

        def take_over(transport: asyncio.Transport, rest: bytes) -> None:
            protocol = FrameProtocol(
                lambda frame: protocol.send(bytes_frame({"id": frame.header["id"], "status": 200}, answer)),
                lambda: None,
            )
            protocol.take_over(transport, rest)

        factory, _ = http_factory(lambda _: Response(404), {FRAMES: take_over})
        await (await asyncio.get_running_loop().create_server(factory, sock=listener)).serve_forever()

    @staticmethod
    async def call(port: int) -> Call:
        """Connect."""
        connection = await connect(f"http://127.0.0.1:{port}")

        async def call(body: bytes) -> int:
            frame = await connection.call(Pieces(bytes_frame, {"op": "infer"}, body))
            return int(frame.body.size)

        return call


class OwnHttp:
    """HTTP with a raw body, by the server of hosts."""

    name = "http, own server"

    @staticmethod
    async def serve(listener: socket.socket, answer: bytes) -> None:
        """Answer requests."""

        def handle(_: Request) -> Response:
            return Response(200, answer)

        factory, _ = http_factory(handle)
        await (await asyncio.get_running_loop().create_server(factory, sock=listener)).serve_forever()

    @staticmethod
    async def call(port: int) -> Call:
        """Connect; the answer's length is all that is read of its head, so that the client costs little."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)

        async def call(body: bytes) -> int:
            writer.write(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return len(await reader.readexactly(size))

        return call


class Uvicorn(OwnHttp):
    """HTTP with a raw body, by uvicorn with httptools and uvloop."""

    name = "http, uvicorn"

    @staticmethod
    async def serve(listener: socket.socket, answer: bytes) -> None:
        """Answer requests."""
        head = [(b"content-length", str(len(answer)).encode())]

        async def application(
            scope: dict[str, object],
            receive: Callable[[], Awaitable[dict[str, object]]],
            send: Callable[[dict[str, object]], Awaitable[None]],
        ) -> None:
            if scope["type"] != "http":
                return
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": answer})

        config = uvicorn.Config(application, log_level="error", lifespan="off", http="httptools", access_log=False)
        await uvicorn.Server(config).serve(sockets=[listener])


class ZeroMq:
    """DEALER to ROUTER."""

    name = "zmq"

    @staticmethod
    async def serve(listener: socket.socket, answer: bytes) -> None:
        """Answer messages."""
        port = listener.getsockname()[1]
        listener.close()
        router = zmq.asyncio.Context().socket(zmq.ROUTER)
        router.bind(f"tcp://127.0.0.1:{port}")
        while True:
            peer, number, _ = await router.recv_multipart(copy=False)
            await router.send_multipart([peer, number, answer], copy=False)

    @staticmethod
    async def call(port: int) -> Call:
        """Connect."""
        dealer = zmq.asyncio.Context().socket(zmq.DEALER)
        dealer.connect(f"tcp://127.0.0.1:{port}")

        async def call(body: bytes) -> int:
            await dealer.send_multipart([b"1", body], copy=False)
            _, got = await dealer.recv_multipart(copy=False)
            return len(got)

        return call


class Stream:
    """Length and bytes, no more: the floor of what asyncio can do on TCP with its streams."""

    name = "asyncio stream"
    _PREFIX = struct.Struct("<Q")

    @classmethod
    async def serve(cls, listener: socket.socket, answer: bytes) -> None:
        """Answer messages."""

        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError):
                while True:
                    [size] = cls._PREFIX.unpack(await reader.readexactly(8))
                    await reader.readexactly(size)
                    writer.write(cls._PREFIX.pack(len(answer)))
                    writer.write(answer)

        await (await asyncio.start_server(on_connection, sock=listener, limit=2**20)).serve_forever()

    @classmethod
    async def call(cls, port: int) -> Call:
        """Connect."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)

        async def call(body: bytes) -> int:
            writer.write(cls._PREFIX.pack(len(body)) + body)
            [size] = cls._PREFIX.unpack(await reader.readexactly(8))
            return len(await reader.readexactly(size))

        return call


KINDS: tuple[type[Frames | OwnHttp | Uvicorn | ZeroMq | Stream], ...] = (Frames, OwnHttp, Uvicorn, ZeroMq, Stream)


def _run_server(number: int, listener: socket.socket, answer: bytes) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(KINDS[number].serve(listener, answer))


class Candidate:
    """One kind with its server's process and its connection."""

    def __init__(self, number: int, answer: bytes) -> None:
        self.kind = KINDS[number]
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        if self.kind is not ZeroMq:
            listener.listen()
        self._process = multiprocessing.get_context("fork").Process(target=_run_server, args=(number, listener, answer))
        self._process.start()
        listener.close()
        self._server = psutil.Process(self._process.pid)
        self.seconds: list[float] = []
        self.processor = 0.0

    async def connect(self, body: bytes) -> None:
        """Connect and warm up."""
        for _ in range(100):
            try:
                self._call = await self.kind.call(self._port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                break
        for _ in range(200):
            await self._call(body)

    async def turn(self, body: bytes, calls: int) -> None:
        """So many calls, timed."""
        began, own = sum(self._server.cpu_times()[:2]), time.process_time()
        for _ in range(calls):
            start = time.perf_counter()
            await self._call(body)
            self.seconds.append(time.perf_counter() - start)
        self.processor += sum(self._server.cpu_times()[:2]) - began + time.process_time() - own

    def end(self) -> None:
        """End the server."""
        self._process.terminate()
        self._process.join()


async def _measure(body_bytes: int, answer_bytes: int, seconds: float) -> dict[str, dict[str, float]]:
    body = os.urandom(body_bytes)
    candidates = [Candidate(number, os.urandom(answer_bytes)) for number in range(len(KINDS))]
    try:
        for candidate in candidates:
            await candidate.connect(body)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for candidate in candidates:
                await candidate.turn(body, 200)
    finally:
        for candidate in candidates:
            candidate.end()
    return {
        one.kind.name: {
            "min_us": min(one.seconds) * 1e6,
            "p50_us": statistics.median(one.seconds) * 1e6,
            "cpu_us": one.processor / len(one.seconds) * 1e6,
        }
        for one in candidates
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each size of body (default 10)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    arguments = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for size, (body, answer) in BODIES.items():
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results[size] = runner.run(_measure(body, answer, arguments.seconds))
        frames = results[size]["frames"]
        print(f"{size}: {body:,} bytes there, {answer:,} back")
        for name, figures in results[size].items():
            cells = (f"{key[:-3]} {value:7.0f} us ({value / frames[key]:.2f})" for key, value in figures.items())
            print(f"  {name:17} {'   '.join(cells)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
