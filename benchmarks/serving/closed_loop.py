"""Many clients at once from one process: each sends its next request as soon as its answer is there (a closed loop)."""

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.serving.http_wire import LOOPBACK, answer_size
from benchmarks.serving.timing import Sample

WARM_UP_SHARE = 0.2
"""First part of the time, not counted."""


@dataclass
class _Client:
    socket: socket.socket
    number: int
    began: float = 0.0
    data: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Flow:
    """What came back of a closed loop."""

    sample: Sample
    """Of the counted time."""
    answered: int
    """All answers, the warm-up's too."""


def closed_loop(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Flow:
    """Keep `clients` connections busy. Raises ConnectionError for an answer that is not a 200."""
    poll, by_file = select.epoll(), {}
    try:
        for number in range(clients):
            client = _Client(socket.create_connection((LOOPBACK, port), timeout=30), number)
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            by_file[client.socket.fileno()] = client
            poll.register(client.socket, select.EPOLLIN)
        return _run(poll, by_file, requests, seconds)
    finally:
        poll.close()
        for client in by_file.values():
            client.socket.close()


def _run(poll: select.epoll, by_file: dict[int, _Client], requests: Sequence[bytes], seconds: float) -> Flow:
    clock, sample = time.perf_counter, Sample()
    counted = clock() + seconds * WARM_UP_SHARE
    until = counted + seconds
    for client in by_file.values():
        _send(client, requests, clock())
    now, answered = clock(), 0
    while now < until:
        for file, _ in poll.poll(1.0):
            client = by_file[file]
            if not _answered(client):
                continue
            now = clock()
            answered += 1
            if counted <= now < until:
                sample.seconds.append(now - client.began)
            client.number += len(by_file)
            _send(client, requests, now)
        now = clock()
    return Flow(sample, answered)


def _send(client: _Client, requests: Sequence[bytes], now: float) -> None:
    client.began = now
    client.data.clear()
    client.socket.sendall(requests[client.number % len(requests)])


def _answered(client: _Client) -> bool:
    more = client.socket.recv(2**16)
    client.data += more
    if not more:
        msg = f"the server ended a connection; it had sent {bytes(client.data[:200])!r}"
        raise ConnectionError(msg)
    if answer_size(client.data) is None:
        return False
    if not client.data.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(client.data[:400].decode("latin-1"))
    return True
