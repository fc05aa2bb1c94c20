"""The client of every HTTP server here.

A plain blocking socket that stays open, requests written beforehand, answers not read further. So the client's share is
small and the same for all: what is measured is the server and the loopback.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
_PIECE = 2**18
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request_bytes(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a POST in its wire form."""
    lines = [f"POST {path} HTTP/1.1", f"host: {LOOPBACK}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer_size(data: bytes | bytearray) -> int | None:
    """Bytes of the answer that `data` begins with; None while more of it is to come."""
    end = data.find(_HEAD_END)
    if end < 0:
        return None
    head = bytes(data[:end]).lower()
    at = head.find(_LENGTH)
    if at < 0:
        return len(data) if data.endswith(b"\r\n0\r\n\r\n") else None  # chunked
    stop = head.find(b"\r\n", at)
    size = end + len(_HEAD_END) + int(head[at + len(_LENGTH) : stop if stop > 0 else end])
    return size if len(data) >= size else None


def read_answer(data: bytes | bytearray) -> Answer:
    """Take a whole answer apart."""
    head, _, body = bytes(data).partition(_HEAD_END)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "chunked" in headers.get("transfer-encoding", ""):
        body = _joined(body)
    return Answer(int(first.split()[1]), headers, body)


def _joined(chunks: bytes) -> bytes:
    body = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        body, chunks = body + rest[:length], rest[length + 2 :] if length else b""
    return body


def answers(port: int) -> bool:
    """Whether an empty request gets a 200; OSError if no server listens."""
    with Connection(port) as connection:
        return bool(connection.exchange(request_bytes("/", b"", {})))


class Connection:
    """One connection to a port of this machine, closed at the end of its block."""

    def __init__(self, port: int, *, seconds: float = 30.0) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), timeout=seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, request: bytes) -> bytes:
        """Send a request, return its answer's bytes. ConnectionError if it is not a 200 or does not come."""
        self._socket.sendall(request)
        data = self._socket.recv(_PIECE)
        while answer_size(data) is None:
            more = self._socket.recv(_PIECE)
            if not more:
                msg = f"the server ended the connection after {len(data)} bytes"
                raise ConnectionError(msg)
            data += more
        if not data.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(data[:400].decode("latin-1"))
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
