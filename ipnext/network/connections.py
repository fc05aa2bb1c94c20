"""Limits of a server's connections: how many, from each address, and how long a client may keep one without a request.

`listening.BoundedListener` counts a connection as it accepts it, before a TLS handshake or a byte of HTTP. A
`BoundedConnection` wraps the protocol of an HTTP library, such as uvicorn's. All open connections are checked once
per second.
"""

import asyncio
import ipaddress
import json
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from ipnext.errors import InvalidInput, IPnextError, TooLarge, TooSlow, Unavailable

SWEEP_SECONDS: Final = 1.0
"""Interval of the checks of connections; a limit in seconds is exact to within it."""
MOST_CONNECTIONS: Final = 10_000
"""Most connections of one server if the settings name no figure, and the process may open so many files."""
RESERVED_FILES: Final = 256
"""Open files of a process that are not client connections: database, logs, uploads, calls to other processes."""
BACKLOG: Final = 128
"""Connections that wait to be accepted: all of them at once still fit into the reserve."""
STALLED_SECONDS: Final = 60.0
"""A client that reads nothing of its answer for this long is disconnected."""

LARGEST_HEAD_BYTES: Final = 2**16
"""Of a request's line and headers. The parser of a server joins a header piece by piece, at a cost that grows with its
square."""

_PHRASES: Final = {408: "Request Timeout", 413: "Content Too Large", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of one server."""

    connections: int = MOST_CONNECTIONS
    """All open connections, those in a handshake included; one more is answered 503 and closed, with TLS just
    closed."""
    per_source: int = MOST_CONNECTIONS // 2
    """Connections of one address, or of one IPv6 network of 64 bits."""
    header_seconds: float = 20.0
    """From the first byte of a request to the end of its headers, else 408; also from the connection to its first
    byte, and for the TLS handshake before that."""
    keep_alive_seconds: float = 5.0
    """Between two requests of a connection."""
    stalled_seconds: float = STALLED_SECONDS


def room_for_connections(given: int | None, *, field: str, variable: str) -> int:
    """Return a server's limit of connections: `given`, else the process's limit of open files less the reserve.

    Raises:
        InvalidInput: `given` is more than that.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return given or MOST_CONNECTIONS
    room = max(1, files - min(RESERVED_FILES, files // 2))
    if given is not None and given > room:
        msg = (
            f"{field} ({variable}): {given} connections need more open files than this process may have, "
            f"{files} (ulimit -n); allowed: at most {room}"
        )
        raise InvalidInput(msg, field=field, value=given)
    return given or min(MOST_CONNECTIONS, room)


def source_of(peer: object) -> str:
    """Return the address of a peer name; for IPv6 its network of 64 bits, which belongs to one client."""
    host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class ServerConnections:
    """The open connections of one server. Use it in one event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[BoundedConnection, str] = {}
        self._sources: Counter[str] = Counter()
        self._round: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: "BoundedConnection", source: str) -> None:
        """Count a connection, from its acceptance on. Unavailable if there is no room for it."""
        if len(self._open) >= self.limits.connections:
            msg = f"{self.limits.connections} connections are open, as many as this server takes; try again"
            raise Unavailable(msg)
        if self._sources[source] >= self.limits.per_source:
            msg = (
                f"{self.limits.per_source} connections of {source} are open, "
                "as many as this server takes of one address; try again"
            )
            raise Unavailable(msg)
        self._open[connection] = source
        self._sources[source] += 1
        if self._round is None:
            self._round = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def discard(self, connection: "BoundedConnection") -> None:
        """Count a connection no longer."""
        source = self._open.pop(connection, None)
        if source is None:
            return
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in tuple(self._open):
            connection.check(loop.time())
        self._round = loop.call_later(SWEEP_SECONDS, self._sweep) if self._open else None


class Phase(Enum):
    """What the next byte of a connection is, for the protocol that answers its requests."""

    HEAD = auto()
    """Of a request's line and headers, perhaps the first."""
    ANSWER = auto()
    """Of a body, or none is due: the headers of a request are complete, and its answer is not."""
    REST = auto()
    """Of a body that its answer did not need, which is dropped."""


class BoundedConnection(asyncio.Protocol):
    """One connection in front of the protocol that answers its requests."""

    def __init__(
        self,
        connections: ServerConnections,
        make: Callable[[], Any],
        phase_of: Callable[[Any], Phase],
        *,
        is_over: Callable[[object], bool] = lambda _: False,
    ) -> None:
        """Prepare for one connection.

        `make` makes the wrapped protocol; `phase_of` returns its phase; `is_over`: whether the connection ends, by its
        TLS object (None without TLS), even within an answer.
        """
        self._connections = connections
        self._make = make
        self._phase_of = phase_of
        self._is_over = is_over
        self._inner: Any = None
        self._transport: Any = None
        self._began: float | None = None
        """Arrival of the first byte of a request whose headers are not complete, or of what an answer left unread."""
        self._head_bytes = 0
        """Bytes of headers that have come since then."""
        self._quiet: float | None = None
        """Time since which there is no request."""
        self._heard = self._paused = self._ended = False
        self._unsent, self._stalled = 0, 0.0

    @property
    def is_made(self) -> bool:
        """Whether the connection is or was established: with TLS, after the handshake."""
        return self._inner is not None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream
        """Create and connect the protocol that answers."""
        self._transport = transport
        self._quiet = asyncio.get_running_loop().time()
        self._inner = self._make()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass on the data, and record when a request begins."""
        if self._ended:
            return
        self._heard, self._quiet = True, None
        before = self._phase_of(self._inner)
        self._inner.data_received(data)
        if self._phase_of(self._inner) is Phase.ANSWER:
            self._began = None
            return
        if self._began is None:
            self._began, self._head_bytes = asyncio.get_running_loop().time(), 0
        if before is Phase.HEAD:
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD_BYTES and not self._transport.is_closing():
                self._end(TooLarge(f"the headers of a request have more than {LARGEST_HEAD_BYTES} bytes"))

    def eof_received(self) -> bool | None:
        """Pass on the end of the input."""
        found: bool | None = self._inner.eof_received()
        return found

    def pause_writing(self) -> None:
        """Pass on that the write buffer is full."""
        self._paused, self._unsent = True, 0
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the write buffer has room again."""
        self._paused = False
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no longer, and pass on its end."""
        self._connections.discard(self)
        self._inner.connection_lost(exc)

    def check(self, now: float) -> None:
        """End the connection if its client has exceeded a limit.

        `now` is of the event loop, which limits handshakes itself.
        """
        limits = self._connections.limits
        if not self.is_made:
            return
        if self._ended or self._is_stalled(now) or self._is_over(self._transport.get_extra_info("ssl_object")):
            self._transport.abort()
        elif self._phase_of(self._inner) is Phase.ANSWER:
            self._began = self._quiet = None
        elif self._began is not None:
            if now - self._began > limits.header_seconds:
                self._end(TooSlow(f"the headers of the request have not come whole in {limits.header_seconds:g} s"))
        elif self._quiet is None:
            self._quiet = now
        elif now - self._quiet > (limits.keep_alive_seconds if self._heard else limits.header_seconds):
            self._end(None)

    def _is_stalled(self, now: float) -> bool:
        """Return whether an answer waits for a client that reads nothing of it."""
        unsent = self._transport.get_write_buffer_size()
        waits = unsent and (self._paused or self._transport.is_closing())
        if not waits or not self._unsent or unsent < self._unsent:
            self._unsent, self._stalled = unsent if waits else 0, now
        return now - self._stalled > self._connections.limits.stalled_seconds

    def _end(self, error: IPnextError | None) -> None:
        """Close the connection, with an answer if there is an error."""
        self._ended = True
        transport = self._transport
        if error is not None:
            transport.write(answer_to(error))
        transport.close()


def answer_to(error: IPnextError) -> bytes:
    """Return the HTTP answer, after which the connection is closed."""
    body = json.dumps({"code": error.code, "message": error.message}).encode()
    retry = "retry-after: 1\r\n" if error.retryable else ""
    head = (
        f"HTTP/1.1 {error.http_status} {_PHRASES[error.http_status]}\r\ncontent-type: application/json\r\n{retry}"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
