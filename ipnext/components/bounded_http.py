"""Calls of components over HTTP whose answers are bounded: in bytes as they arrive, and in the time of the whole call.

A component that was taken over answers whatever it likes: without an end, a byte at a time, or packed a thousandfold.
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

import httpcore
import httpx

from ipnext.components.certificates import is_past
from ipnext.errors import Unavailable

_CONNECTIONS: Final = 100
_IDLE_CONNECTIONS: Final = 20
_IDLE_SECONDS: Final = 30.0
"""An idle connection is kept this long: longer than the pause between two checks of an agent, so that not each of them
takes a TLS handshake."""
CONNECTION_SECONDS: Final = 60.0
"""Longest use of a connection: far below the time from which a certificate has a successor to its end."""

_ENDS_AT: ContextVar[float | None] = ContextVar("ends_at", default=None)
"""End of the call that this thread makes, by the monotonic clock."""


class AnswerRefused(Unavailable):
    """An answer that is not read to its end: it is larger than allowed, or packed."""


class BoundedAnswer(NamedTuple):
    """An answer that was read whole."""

    status: int
    content: bytes


class BoundedClient:
    """HTTP client whose `call` has an end. Safe to use from several threads; close it."""

    def __init__(self, *, context: ssl.SSLContext | None = None) -> None:
        """`context`: the certificates of a TLS connection; None for clear text. No proxy of the environment is used."""
        self._http = httpx.Client(transport=DeadlineTransport(context), trust_env=False, follow_redirects=False)

    def call(
        self,
        method: str,
        url: str,
        *,
        content: str | None = None,
        most_bytes: int,
        seconds: float,
        connect_seconds: float,
    ) -> BoundedAnswer:
        """Make one call; `seconds` bound all of it, `most_bytes` the body of the answer.

        Raises:
            AnswerRefused: the body is larger, or it is compressed.
            httpx.TransportError: no whole answer in time.
        """
        headers = {"Accept-Encoding": "identity"}
        if content is not None:
            headers["content-type"] = "application/json"
        timeout = httpx.Timeout(seconds, connect=min(connect_seconds, seconds))
        with (
            ending_at(time.monotonic() + seconds),
            self._http.stream(method, url, content=content, headers=headers, timeout=timeout) as answer,
        ):
            return BoundedAnswer(answer.status_code, _body(answer, most_bytes))

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


def _body(answer: httpx.Response, most_bytes: int) -> bytes:
    packing = answer.headers.get("content-encoding", "identity").strip().lower()
    if packing not in {"", "identity"}:
        msg = f"its answer is packed ({packing[:40]!r}), which was not asked for"
        raise AnswerRefused(msg)
    content = bytearray()
    for chunk in answer.iter_raw():
        content += chunk
        if len(content) > most_bytes:
            msg = f"its answer is larger than {most_bytes} bytes, the most that is read"
            raise AnswerRefused(msg)
    return bytes(content)


@contextmanager
def ending_at(moment: float) -> Iterator[None]:
    """End every step on a `DeadlineTransport` that this thread makes in the block, by the monotonic clock."""
    token = _ENDS_AT.set(moment)
    try:
        yield
    finally:
        _ENDS_AT.reset(token)


def _remaining_seconds(timeout: float | None) -> float | None:
    """Return the time that one step of the call may take: its own limit, and what is left of the whole."""
    ends_at = _ENDS_AT.get()
    if ends_at is None:
        return timeout
    left = ends_at - time.monotonic()
    if left <= 0:
        msg = "the answer was not complete in time"
        raise httpcore.ReadTimeout(msg)
    return left if timeout is None else min(timeout, left)


class DeadlineTransport(httpx.HTTPTransport):
    """Transport whose connections end each step with the call that it is for: httpx limits only single reads."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(verify=context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_IDLE_CONNECTIONS,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=_DeadlineBackend(),
        )


class _DeadlineBackend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = super().connect_tcp(host, port, _remaining_seconds(timeout), local_address, socket_options)
        return _DeadlineStream(stream)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._began = time.monotonic()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _remaining_seconds(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _remaining_seconds(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, _remaining_seconds(timeout)))

    def get_extra_info(self, info: str) -> Any:
        """Return the same.

        A connection that is old, or to a component whose certificate has expired, seems closed: it is used no more.
        """
        if info == "is_readable" and (
            time.monotonic() - self._began > CONNECTION_SECONDS
            or is_past(self._stream.get_extra_info("ssl_object"), time.time())
        ):
            return True
        return self._stream.get_extra_info(info)
