"""HTTP/1.1 for host and router: httptools parses, each request goes to one handler, answers leave in order.

A handler that answers at once costs no task and no other turn of the event loop; uvicorn's way through ASGI takes about
as long as a small model (docs/decisions/0009). A connection may change over to another protocol by `Upgrade`.
"""

import asyncio
import http
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableSet
from typing import Any, Final

import httptools
import structlog

from ipnext.errors import InvalidInput, IPnextError
from serving.http import Handler, Request, Response, error_response

MAX_BODY_BYTES: Final = 256 * 2**20
"""A larger request body is refused."""
MAX_HEAD_BYTES: Final = 64 * 2**10
"""A larger request line with headers is refused."""
MAX_PIPELINED: Final = 32
"""Requests that may wait on one connection; then nothing more is read from it."""

_LINGER_SECONDS: Final = 2.0
"""How long a refused client may still send."""

Upgrade = Callable[[asyncio.Transport, bytes], None]
"""Takes a connection over: its transport, and what came after the request."""

_REASONS: Final = {status.value: status.phrase for status in http.HTTPStatus}


class HttpProtocol(asyncio.Protocol):
    """One connection. `open_connections` holds it while it is open; `upgrades` are protocols by the name that asks for them."""

    def __init__(
        self, handler: Handler, open_connections: MutableSet["HttpProtocol"], upgrades: Mapping[str, Upgrade]
    ) -> None:
        self._handler = handler
        self._open = open_connections
        self._upgrades = upgrades
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[Request | IPnextError, bool]] = deque()
        self._running: asyncio.Future[Response] | None = None
        self._refused = False
        self._begin()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = transport  # type: ignore[assignment]  # a stream's is a Transport
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """The client has gone: nobody waits for what runs."""
        self._transport = None
        self._open.discard(self)
        self._waiting.clear()
        if self._running is not None:
            self._running.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
            if self._head_bytes >= 0:
                self._count_head(len(data))
        except httptools.HttpParserUpgrade as change:
            self._change_over(data[change.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, IPnextError) else InvalidInput(f"the request: {cause}"))
        except httptools.HttpParserError as error:
            self._refuse(InvalidInput(f"this is no HTTP/1.1 request: {error}"))
        except IPnextError as error:
            self._refuse(error)

    # httptools calls these

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """The request's target; it may come in pieces."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The body follows."""
        self._head_bytes = -1
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        """A piece of the body."""
        self._body += chunk
        if len(self._body) > MAX_BODY_BYTES:
            msg = f"the body is larger than {MAX_BODY_BYTES} bytes; send fewer rows"
            raise InvalidInput(msg, field="body")

    def on_message_complete(self) -> None:
        """The whole request is there."""
        upgrade = self._parser.should_upgrade()
        if upgrade and self._headers.get("upgrade", "").lower() in self._upgrades:
            return
        method = self._parser.get_method().decode("latin-1")
        path = self._url.partition(b"?")[0].decode("latin-1")
        request = Request(method, path, self._headers, self._body)
        self._waiting.append((request, self._parser.should_keep_alive() and not upgrade))
        if self._running is None:
            self._answer_next()
        elif len(self._waiting) == MAX_PIPELINED and self._transport is not None:
            self._transport.pause_reading()

    # ours

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._running is None and not self._waiting

    def close(self) -> None:
        """Close the connection once what is written has left."""
        if self._transport is not None:
            self._transport.close()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._head_bytes = 0

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            msg = f"the request line and headers are larger than {MAX_HEAD_BYTES} bytes"
            raise InvalidInput(msg, field="headers")

    def _answer_next(self) -> None:
        while self._waiting and self._transport is not None:
            request, keep = self._waiting.popleft()
            if isinstance(request, IPnextError):
                self._end_with(request)
                return
            if len(self._waiting) == MAX_PIPELINED - 1:
                self._transport.resume_reading()
            try:
                answer = self._handler(request)
            except Exception as error:  # noqa: BLE001  # the process edge: the client gets an answer, the log the reason
                self._write(request, _judged(error, request), keep=keep)
                continue
            if isinstance(answer, Response):
                self._write(request, answer, keep=keep)
                continue
            self._await(request, answer, keep=keep)
            return

    def _await(self, request: Request, answer: Awaitable[Response], *, keep: bool) -> None:
        running = asyncio.ensure_future(answer)
        self._running = running

        def ended(done: asyncio.Future[Response]) -> None:
            self._running = None
            if done.cancelled():
                self.close()
                return
            error = done.exception()
            self._write(request, done.result() if error is None else _judged(error, request), keep=keep)
            self._answer_next()

        running.add_done_callback(ended)

    def _write(self, request: Request, response: Response, *, keep: bool) -> None:
        transport = self._transport
        if transport is None:
            return
        body = b"" if request.method == "HEAD" else response.body
        head = _head(response, len(response.body), keep=keep)
        if len(body) < MAX_HEAD_BYTES:
            transport.write(b"".join((head, body)))
        else:
            transport.writelines((head, body))
        if not keep:
            transport.close()

    def _refuse(self, error: IPnextError) -> None:
        """Answer so, in its turn, what cannot be read as a request."""
        self._refused = True
        self._waiting.append((error, False))
        if self._running is None:
            self._answer_next()

    def _end_with(self, error: IPnextError) -> None:
        """What comes after a request that cannot be read is not known: the connection ends.

        What the client still sends is read and dropped for a while: a connection closed over unread bytes is reset, and
        the client would not see the answer (RFC 9112, section 9.6).
        """
        transport = self._transport
        if transport is not None:
            transport.write(_whole(error_response(error), keep=False))
            transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, transport.close)

    def _change_over(self, rest: bytes) -> None:
        name = self._headers.get("upgrade", "").lower()
        change = self._upgrades.get(name)
        if change is None or self._transport is None:
            return  # answered as any request; the connection ends with the answer
        self._open.discard(self)
        self._transport.write(
            f"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {name}\r\n\r\n".encode()
        )
        change(self._transport, rest)


def _judged(error: BaseException, request: Request) -> Response:
    if isinstance(error, IPnextError):
        return error_response(error)
    structlog.get_logger().error("request failed", path=request.path, exc_info=error)
    return error_response(IPnextError("internal error; the log of the process has the reason"))


def _head(response: Response, size: int, *, keep: bool) -> bytes:
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}\r\ncontent-length: {size}\r\n"]
    lines += [f"{key}: {value}\r\n" for key, value in response.headers.items()]
    lines.append("\r\n" if keep else "connection: close\r\n\r\n")
    return "".join(lines).encode("latin-1", "replace")


def _whole(response: Response, *, keep: bool) -> bytes:
    return b"".join((_head(response, len(response.body), keep=keep), response.body))


def http_factory(
    handler: Handler, upgrades: Mapping[str, Upgrade] | None = None
) -> tuple[Callable[[], HttpProtocol], MutableSet[HttpProtocol]]:
    """What makes the connections of one server, and the set that holds the open ones."""
    connections: set[HttpProtocol] = set()
    known: Mapping[str, Any] = upgrades or {}
    return lambda: HttpProtocol(handler, connections, known), connections
