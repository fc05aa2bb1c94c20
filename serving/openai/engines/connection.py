"""Connections to engines that serve HTTP/1.1 themselves, such as vLLM's server.

Kept alive, one request at a time on each. Pieces of an answer are forwarded inside the callback that received them, all
of one callback in one write, without a task or a queue in between.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import httptools

from ipnext.components.identity import Component
from ipnext.components.sockets import is_socket_url, socket_path
from serving.http.limits import AnswerBudget
from serving.openai.engines.response import EngineAnswer, EngineLost

CONNECT_SECONDS: Final = 1.0
"""Time limit of connecting to an engine."""
HEAD_BYTES: Final = 2**18
"""Bytes that an engine may send without a byte of a body, such as headers; one that sends more is lost."""
IDLE_SECONDS: Final = 2.0
"""Longest idle time after which a connection is reused: less than the 5 s after which vLLM's server closes it."""

_OK: Final = 200
"""First status that is no interim answer."""
_REFUSED: Final = 400
"""First status that an engine may send before it has read the request."""


class EngineConnection(asyncio.Protocol):
    """One connection to an engine; it returns to `pool` after each complete answer."""

    def __init__(self, pool: "EngineConnectionPool") -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: EngineAnswer | None = None
        self._headers: dict[str, str] = {}
        self._paused = False
        self._text_bytes = 0
        """Bytes received since the last byte of a body."""
        self.idle_since = 0.0

    @property
    def open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def _unsent_bytes(self) -> int:
        """Bytes of a request that the engine has not read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def ask(self, request: bytes, body: bytes | bytearray, answers: AnswerBudget) -> EngineAnswer:
        """Send a request. If the answer is cancelled, this connection is closed."""
        assert self._transport is not None  # noqa: S101  # only open connections are used
        self._answer = EngineAnswer(self, answers)
        self._text_bytes = 0
        self._pool.busy.add(self)
        if len(body) < 2**16:
            self._transport.write(request + body)
        else:
            self._transport.writelines((request, body))
        return self._answer

    def pause(self) -> None:
        """Pause reading."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Resume reading."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the connection at once, so that the engine stops its work for it."""
        self._answer = None
        self._pool.busy.discard(self)
        if self._transport is not None:
            self._transport.abort()

    def cut(self) -> None:
        """Close the connection at once, and mark its answer as broken by the engine."""
        if self._transport is not None:
            self._transport.abort()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.lost(cut=True)
        self.connection_lost(None)

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport: the engine accepted the connection."""
        self._transport = transport  # type: ignore[assignment]  # a stream's is a Transport

    def data_received(self, data: bytes) -> None:
        """Parse pieces of an answer and forward them. Bytes for which nothing asked end the connection."""
        if self._answer is None:
            self.close()
            return
        self._text_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.cut()
        if self._text_bytes > HEAD_BYTES:
            self.cut()
        if self._answer is not None:
            self._answer.pass_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Mark the current answer, if any, as lost: the engine has gone."""
        self._transport = None
        self._pool.busy.discard(self)
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.lost()

    # httptools calls these

    def on_message_begin(self) -> None:
        """Begin an answer. A second one to the same request ends the connection."""
        self._headers = {}
        if self._answer is None:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Pass status and headers to the answer.

        An engine that has not read a request can refuse it, but not serve it.
        """
        status = self._parser.get_status_code()
        if self._answer is None:
            return
        if _OK <= status < _REFUSED and self._unsent_bytes:
            self.cut()
        else:
            self._answer.head(status, self._headers)

    def on_body(self, piece: bytes) -> None:
        """Pass a piece of the body to the answer."""
        self._text_bytes = 0
        if self._answer is not None:
            self._answer.piece(piece)

    def on_message_complete(self) -> None:
        """Complete the answer and return the connection to the pool, unless it has unsent bytes of the request."""
        answer = self._answer
        if answer is None or self._parser.get_status_code() < _OK:  # an interim answer
            return
        self._answer = None
        self._pool.busy.discard(self)
        self.resume()
        if self._unsent_bytes:
            self.close()
        elif self._parser.should_keep_alive():
            self._pool.take_back(self)
        elif self._transport is not None:
            self._transport.close()
        answer.whole()


class EngineConnectionPool:
    """The connections to one engine; the most recently used idle one is used first."""

    def __init__(self, url: str, answers: AnswerBudget | None = None) -> None:
        """`answers` counts the bytes of answers that are kept."""
        where = urlsplit(url)
        self._answers = answers or AnswerBudget()
        self._socket = socket_path(url, Component.ROUTER) if is_socket_url(url) else None
        self._host, self._port = where.hostname or "", where.port or 80
        self._netloc = where.netloc or "localhost"
        self._url = url
        self._idle: list[EngineConnection] = []
        """Idle connections, by the time since which they are idle."""
        self._sweep: asyncio.TimerHandle | None = None
        """Closes connections that nothing reuses."""
        self.busy: set[EngineConnection] = set()
        """Connections with an answer in progress."""
        self.left = False
        """Whether the engine has left the table, so that each connection closes after its answer."""

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | bytearray,
        answers: AnswerBudget | None = None,
    ) -> EngineAnswer:
        """Send a request; return its answer once the head and the first piece of the body have arrived.

        `answers` counts the kept bytes of this answer; None: the budget of the pool. EngineLost if there is no answer;
        if an idle connection was just closed by the engine, `reused` is set. AnswerTooLarge, Unavailable.
        """
        request = self._head(method, path, headers, len(body))
        budget = answers or self._answers
        connection = self._newest_idle()
        if connection is None:
            return await (await self._connect()).ask(request, body, budget).wait_begun()
        try:
            return await connection.ask(request, body, budget).wait_begun()
        except EngineLost as error:
            self.close()
            raise EngineLost(str(error), reused=True, sent=error.sent) from error

    def take_back(self, connection: EngineConnection) -> None:
        """Take back a connection whose answer is complete."""
        if self.left:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._close_old)

    def cut(self) -> int:
        """Close all connections at once; return the number of answers that this breaks."""
        self.close()
        busy = tuple(self.busy)
        for connection in busy:
            connection.cut()
        return len(busy)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _close_old(self) -> None:
        """Close the connections that are not reused any more, and come back for the others."""
        now = time.monotonic()
        self._sweep, idle, self._idle = None, self._idle, []
        for connection in idle:
            if connection.open and now - connection.idle_since < IDLE_SECONDS:
                self._idle.append(connection)
            else:
                connection.close()
        if self._idle:
            left = IDLE_SECONDS - (now - self._idle[0].idle_since)
            self._sweep = asyncio.get_running_loop().call_later(left, self._close_old)

    def _newest_idle(self) -> EngineConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open and time.monotonic() - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _head(self, method: str, path: str, headers: Mapping[str, str], size: int) -> bytes:
        host = headers.get("host", self._netloc)
        lines = [f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {size}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items() if name != "host"]
        lines.append("\r\n")
        return "".join(lines).encode("latin-1", "replace")

    async def _connect(self) -> EngineConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self._socket is not None:
                    made = await loop.create_unix_connection(lambda: EngineConnection(self), self._socket)
                else:
                    made = await loop.create_connection(lambda: EngineConnection(self), self._host, self._port)
        except (OSError, TimeoutError) as error:
            msg = f"{self._url}: no connection: {error or 'timed out'}"
            raise EngineLost(msg, sent=False) from error
        return made[1]
