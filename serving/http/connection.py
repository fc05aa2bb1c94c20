"""HTTP/1.1 for host and router: httptools parses, each request goes to one handler, answers are sent in order.

A handler that answers at once costs no task and no further turn of the event loop; uvicorn's path through ASGI takes
about as long as a small model (docs/decisions/0009). A connection may switch to another protocol by `Upgrade`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import httptools
import structlog

from ipnext.errors import Forbidden, InvalidInput, IPnextError, TooLarge, TooSlow
from ipnext.names import PROOF_HEADER
from ipnext.network.allowed_hosts import AllowedHosts
from serving.http.body_writer import BodyWriter
from serving.http.dialects import V2, DialectOf, always_v2
from serving.http.limits import BodyBudget, HttpLimits, OpenConnections, RequestPace
from serving.http.listeners import SocketGuard
from serving.http.messages import Answer, BodySource, Handler, Request, Response, StreamedAnswer
from serving.http.response_head import format_head, format_stream_head, format_whole

MAX_PIPELINED: Final = 32
"""Requests that may wait on one connection; beyond that the server stops reading from it."""
_MAX_PIPELINED_BYTES: Final = 2**20
_VERSIONS: Final = ("1.1", "1.0")
FRAMES_PATH: Final = "/frames"
"""The path of an upgrade in the table of callers, independent of the request's path."""
_SOURCES: Final = frozenset({"origin", "sec-fetch-site"})
"""Headers that identify a browser's request and the origin of its page."""
_JOINED: Final = _SOURCES | {"authorization"}
"""Headers whose values are joined: two credentials are none."""
_JOINED_BYTES: Final = 64 * 2**10
"""Bodies below this size are written in one piece with the head."""

Upgrade = Callable[[asyncio.Transport, bytes], None]
"""Takes over a connection: its transport, and the bytes after the request."""


class HttpProtocol(asyncio.Protocol):
    """One connection.

    `open_connections` contains it while it is open; `upgrades` maps protocol names to their handlers.
    """

    def __init__(
        self,
        handler: Handler,
        open_connections: OpenConnections,
        upgrades: Mapping[str, Upgrade],
        allowed: AllowedHosts,
        guard: SocketGuard | None = None,
        dialect_of: DialectOf = always_v2,
    ) -> None:
        self._handler = handler
        self._dialect_of = dialect_of
        self._open = open_connections
        self._budget = open_connections.budget
        self._upgrades = upgrades
        self._limits = open_connections.budget.limits
        self._allowed = allowed
        self._guard = guard
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[Request | IPnextError, bool]] = deque()
        self._running: asyncio.Future[Any] | None = None
        """The answer that is awaited, or the end of the one that is streamed."""
        self._flow: BodySource | None = None
        """Source of the streamed answer."""
        self._body = bytearray()
        self._held_bytes = 0
        """Bytes of bodies that are not answered yet."""
        self._pace: RequestPace | None = None
        """Pace of the request that has begun and is incomplete."""
        self._expected = False
        """Whether the client waits for `100 Continue` before it sends its body."""
        self._progress = False
        """Whether headers or a body chunk began or ended in the bytes just read."""
        self._paused = False
        self._over = False
        """Whether the connection ends after its pending answers: nothing more is read."""
        self._choked: tuple[float, int] | None = None
        """Time since which the client has read nothing, and the bytes that wait for it."""
        self._begin()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection, and refuse it if the guard does."""
        self._transport = transport  # type: ignore[assignment]  # a stream's is a Transport
        self._open.add(self)
        if self._guard is not None:
            try:
                self._guard.check_connection(transport)
            except Forbidden as error:
                self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Release the connection and cancel its running request: the client has gone."""
        self._transport = None
        self._open.discard(self)
        self._open.unread.discard(self)
        self._budget.held_bytes -= self._held_bytes
        self._waiting.clear()
        if self._running is not None:
            self._running.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse bytes of requests; refuse the request if they are invalid."""
        if self._over:
            return
        try:
            self._progress = False
            self._parser.feed_data(data)
            if not self._progress:
                self._count_text(len(data))
            if self._reading and self._pace is None:
                self._pace = RequestPace(time.monotonic())
        except httptools.HttpParserUpgrade as change:
            self._change_over(data[change.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, IPnextError) else InvalidInput(f"the request: {cause}"))
        except httptools.HttpParserError as error:
            self._refuse(InvalidInput(f"this is no HTTP/1.1 request: {error}"))
        except IPnextError as error:
            self._refuse(error)

    def pause_writing(self) -> None:
        """Pause the streamed answer: the client reads more slowly than it is produced."""
        if self._transport is not None:
            waiting = self._transport.get_write_buffer_size()
            self._choked = (time.monotonic(), waiting)
            self._open.unread.add(self, waiting)
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        """Resume answers: the client has read the buffered bytes."""
        self._choked = None
        self._open.unread.discard(self)
        if self._flow is not None:
            self._flow.resume()
        elif self._running is None:
            self._answer_next()

    # httptools calls these

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begin()
        self._reading = True

    def on_url(self, url: bytes) -> None:
        """Append to the request's target, which may arrive in pieces."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header.

        Trailers after a chunked body are dropped (RFC 9110, 6.5.1): the request was judged by the headers before.
        """
        if not self._in_head:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key == "host":
            self._hosts += 1
        if key in _JOINED and key in self._headers:
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        """Check the headers before the body is read."""
        self._text_bytes = 0
        self._dialect = self._dialect_of(self._url.decode("latin-1"))
        self._count_text(len(self._url) + sum(len(key) + len(text) + 4 for key, text in self._headers.items()))
        self._in_head = False
        self._on_text_end()
        self._check_source()
        if self._guard is not None:
            self._check_caller(self._guard)
        self._check_framing()
        length = self._headers.get("content-length", "0")
        if length.isdigit():
            size = int(length[:18])
            if size > self._body_limit:
                raise _too_large(self._body_limit, f"{length[:18]} bytes")
            self._limits.check_held(self._budget.held_bytes + size, size)
        self._expected = self._headers.get("expect", "").lower() == "100-continue"
        self._invite()

    def on_chunk_header(self) -> None:
        """Note that the size of a body chunk is complete."""
        self._on_text_end()

    def on_chunk_complete(self) -> None:
        """Note that a body chunk is complete, or the trailers after the last one."""
        self._on_text_end()

    def on_body(self, chunk: bytes) -> None:
        """Append a piece of the body. TooLarge, Unavailable."""
        self._on_text_end()
        self._body += chunk
        self._held_bytes += len(chunk)
        self._budget.held_bytes += len(chunk)
        self._limits.check_held(self._budget.held_bytes, len(self._body))
        if len(self._body) > self._body_limit:
            raise _too_large(self._body_limit, "more")

    def on_message_complete(self) -> None:
        """Queue the complete request, and answer it if none is running."""
        self._on_text_end()
        self._reading = self._expected = False
        self._pace = None
        upgrade = self._parser.should_upgrade()
        if upgrade and self._headers.get("upgrade", "").lower() in self._upgrades:
            return
        method = self._parser.get_method().decode("latin-1")
        path = self._url.partition(b"?")[0].decode("latin-1")
        request = Request(method, path, self._headers, self._body)
        self._body = bytearray()  # only the request keeps what was read: its answer may stream for minutes
        keep = self._parser.should_keep_alive() and not upgrade and not self._open.closing
        self._waiting.append((request, keep))
        if self._running is None:
            self._answer_next()
        if self._waiting and not self._paused and self._full and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    # ours

    @property
    def _body_limit(self) -> int:
        """Most bytes of the body of the request that is read."""
        limit = self._dialect.body_bytes
        return self._limits.body_bytes if limit is None else limit

    @property
    def idle(self) -> bool:
        """Whether no request is in flight, and all answers have been sent."""
        left = self._transport is None or not self._transport.get_write_buffer_size()
        return left and self._running is None and not self._waiting

    @property
    def _full(self) -> bool:
        """Whether the limit of waiting requests, or of their bytes, is reached."""
        sizes = [len(request.content) for request, _ in self._waiting if isinstance(request, Request)]
        return len(sizes) >= MAX_PIPELINED or sum(sizes) > _MAX_PIPELINED_BYTES

    def close(self) -> None:
        """Close the connection once the written bytes have been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now; bytes that are not sent yet are lost."""
        if self._transport is not None:
            self._transport.abort()

    def check_pace(self, now: float) -> None:
        """End the connection if the client is too slow to send, or to read its answer."""
        if self._transport is None:
            return
        if self._choked is not None:
            self._check_taking(self._transport, self._choked, now)
        elif self._pace is not None and not self._waiting and not self._over:
            try:
                self._pace.check(now, len(self._body), self._limits)
            except TooSlow as error:
                self._refuse(error)

    def _check_taking(self, transport: asyncio.Transport, choked: tuple[float, int], now: float) -> None:
        since, size = choked
        left = transport.get_write_buffer_size()
        if self._limits.takes_too_little(now - since, size - left):
            transport.abort()
        elif now - since > self._limits.write_seconds:
            self._choked = (now, left)

    def _begin(self) -> None:
        self._url = b""
        self._dialect = V2
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._in_head = True
        self._text_bytes = 0
        """Bytes since the request or a body chunk last began or ended: request line, headers, sizes of chunks."""
        self._hosts = 0
        self._reading = False

    def _check_source(self) -> None:
        """Refuse requests for another host, or from a page of another origin. HTTP/1.0 may omit its host."""
        headers, host = self._headers, self._headers.get("host", "")
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            msg = f"HTTP/{version} is not served; use HTTP/1.1"
            raise InvalidInput(msg, field="version", value=version, allowed=_VERSIONS)
        if self._hosts != 1 and (self._hosts or version != "1.0"):
            msg = f"Host: a request has exactly one, got {self._hosts}"
            raise InvalidInput(msg, field="Host")
        if self._hosts:
            self._allowed.check_host(host)
        if not headers.keys().isdisjoint(_SOURCES):
            self._allowed.check_source(self._parser.get_method().decode("latin-1"), host, headers)

    def _check_caller(self, guard: SocketGuard) -> None:
        """Refuse callers without proof, and paths that are not for the callers of this socket.

        An upgrade is checked by its protocol, not its path. No handler sees the proof.
        """
        change = self._headers.get("upgrade", "").lower()
        path = FRAMES_PATH if change in self._upgrades else self._url.decode("latin-1")
        guard.check(path, self._headers.pop(PROOF_HEADER, None))

    def _check_framing(self) -> None:
        """Refuse a body whose end another parser could see elsewhere (RFC 9112, 6.1)."""
        coding = self._headers.get("transfer-encoding")
        if coding is None:
            return
        if self._parser.get_http_version() != "1.1" or coding.strip().lower() != "chunked":
            msg = f"Transfer-Encoding: {coding[:40]!r} must be chunked, in HTTP/1.1"
            raise InvalidInput(msg, field="Transfer-Encoding", value=coding, allowed=("chunked",))

    def _count_text(self, size: int) -> None:
        self._text_bytes += size
        if self._text_bytes > self._limits.head_bytes:
            place = (
                "request line and headers"
                if self._in_head
                else "headers behind the body, or the size of a piece of it,"
            )
            msg = f"the {place} are larger than {self._limits.head_bytes} bytes"
            raise TooLarge(msg, field="headers")

    def _on_text_end(self) -> None:
        self._progress, self._text_bytes = True, 0

    def _invite(self) -> None:
        """Send `100 Continue` if the client waits for it, once the earlier answers have been sent."""
        if self._expected and self._running is None and not self._waiting and self._transport is not None:
            self._expected = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer_next(self) -> None:
        while self._waiting and self._transport is not None and self._choked is None:
            request, keep = self._waiting.popleft()
            if self._paused and not self._full:
                self._paused = False
                self._transport.resume_reading()
            if isinstance(request, IPnextError):
                self._end_with(request)
                return
            try:
                answer = self._handler(request)
            except Exception as error:  # noqa: BLE001  # the process edge: the client gets an answer, the log the reason
                self._write(request, self._respond_to_error(error, request), keep=keep)
                continue
            if isinstance(answer, Response):
                self._write(request, answer, keep=keep)
                continue
            self._await(request, answer, keep=keep)
            return
        self._invite()

    def _await(self, request: Request, answer: Awaitable[Answer], *, keep: bool) -> None:
        running = asyncio.ensure_future(answer)
        self._running = running

        def on_end(done: asyncio.Future[Answer]) -> None:
            self._running = None
            if done.cancelled():
                self.close()
                return
            error = done.exception()
            found = done.result() if error is None else self._respond_to_error(error, request)
            if isinstance(found, StreamedAnswer):
                self._stream(request, found, keep=keep)
                return
            self._write(request, found, keep=keep)
            self._answer_next()

        running.add_done_callback(on_end)

    def _stream(self, request: Request, answer: StreamedAnswer, *, keep: bool) -> None:
        """Forward the pieces of an answer as they arrive.

        If the client leaves, the flow is cancelled, like an awaited answer.
        """
        transport = self._transport
        if transport is None:
            answer.flow.cancel()
            return
        self._release_body(request)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        sized = "content-length" in answer.headers
        chunked = not sized and self._parser.get_http_version() != "1.0"
        whole_keep = keep and (sized or chunked)
        body = BodyWriter(
            transport, format_stream_head(answer, chunked=chunked, keep=whole_keep), done, chunked=chunked
        )
        self._running, self._flow = done, answer.flow

        def on_end(done: asyncio.Future[bool]) -> None:
            self._running = self._flow = None
            if done.cancelled():
                answer.flow.cancel()
            elif not done.result() or not whole_keep:
                self._finish(transport)
            else:
                self._answer_next()

        done.add_done_callback(on_end)
        answer.flow.start(body)

    def _finish(self, transport: asyncio.Transport) -> None:
        self._over = True
        self._waiting.clear()
        transport.close()

    def _release_body(self, request: Request) -> None:
        self._held_bytes -= len(request.content)
        self._budget.held_bytes -= len(request.content)

    def _write(self, request: Request, response: Response, *, keep: bool) -> None:
        transport = self._transport
        if transport is None:
            return
        self._release_body(request)
        body = b"" if request.method == "HEAD" else response.body
        head = format_head(response, len(response.body), keep=keep)
        if len(body) < _JOINED_BYTES:
            transport.write(b"".join((head, body)))
        else:
            transport.writelines((head, body))
        if response.after_sent is not None:  # in a turn of its own, so that its errors are not the connection's
            asyncio.get_running_loop().call_soon(response.after_sent)
        if not keep:
            self._finish(transport)

    def _refuse(self, error: IPnextError) -> None:
        """Queue a refusal of unreadable input, in its turn among the answers."""
        if self._over:
            return
        self._over = True
        self._pace = None
        self._waiting.append((error, False))
        if self._running is None:
            self._answer_next()

    def _end_with(self, error: IPnextError) -> None:
        """Send an error and end the connection, since the input after an unreadable request cannot be parsed.

        Further bytes from the client are read and dropped for a while: if a connection with unread bytes is closed, it
        is reset, and the client would not see the answer (RFC 9112, section 9.6).
        """
        transport = self._transport
        if transport is not None:
            transport.write(format_whole(self._dialect.error(error), keep=False))
            transport.write_eof()
            asyncio.get_running_loop().call_later(self._limits.linger_seconds, transport.close)

    def _respond_to_error(self, error: BaseException, request: Request) -> Response:
        answer = self._dialect_of(request.path).error
        if isinstance(error, IPnextError):
            return answer(error)
        structlog.get_logger().error("request failed", path=request.path, exc_info=error)
        return answer(IPnextError("internal error; the log of the process has the reason"))

    def _change_over(self, rest: bytes) -> None:
        name = self._headers.get("upgrade", "").lower()
        change = self._upgrades.get(name)
        if change is None or self._transport is None:
            return  # answered like any request; the connection ends with the answer
        self._open.discard(self)
        self._transport.write(
            f"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {name}\r\n\r\n".encode()
        )
        change(self._transport, rest)


def _too_large(limit: int, size: str) -> TooLarge:
    msg = f"the body must have at most {limit} bytes, got {size}; send less in one request"
    return TooLarge(msg, field="body")


def http_factory(  # noqa: PLR0913 - what a server gives to its connections
    handler: Handler,
    upgrades: Mapping[str, Upgrade] | None = None,
    limits: HttpLimits | None = None,
    allowed: AllowedHosts | None = None,
    *,
    connections: OpenConnections | None = None,
    guard: SocketGuard | None = None,
    dialect_of: DialectOf = always_v2,
) -> tuple[Callable[[], HttpProtocol], OpenConnections]:
    """Return the connection factory of one server, and the set of its open connections.

    `limits` applies if `connections` is None.
    """
    opened = OpenConnections(BodyBudget(limits)) if connections is None else connections
    known: Mapping[str, Any] = upgrades or {}
    answered = allowed or AllowedHosts()
    return lambda: HttpProtocol(handler, opened, known, answered, guard, dialect_of), opened
