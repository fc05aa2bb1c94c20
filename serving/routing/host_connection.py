"""A router's connection to one host: concurrent calls in frames, each with its future."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ipnext.components.caller_proof import proof_file, read_proof
from ipnext.components.client_contexts import ClientContexts
from ipnext.components.identity import Component
from ipnext.components.sockets import is_socket_url, socket_path
from ipnext.errors import IPnextError
from ipnext.names import FRAMES, PROOF_HEADER
from serving.http.limits import AnswerBudget
from serving.protocol.frames import Frame, FrameProtocol, bytes_frame
from serving.routing.table import GenerationRoute

CONNECT_SECONDS: Final = 1.0
"""Time limit of connecting to a host, including the handshake."""
LOOK_SECONDS: Final = 0.5
"""Interval of the liveness check while answers are awaited: if nothing arrived, the client sends a ping."""
SILENT_LOOKS: Final = 4
"""Checks in a row without data after which the host counts as lost: a stopped process or a cut line sends nothing."""

ROUTES_KNOWN: Final = 256
"""Routes that both ends of a connection remember; beyond that the oldest is forgotten and sent again when needed."""


class ConnectionLost(Exception):  # not an error of the request: another host may answer
    """A connection to a host failed, or ended before the answer.

    `ended`: the host closed it after the call was sent, as a killed host does; otherwise it is unknown whether the host
    ended. `in_company`: other calls were lost with it.
    """

    def __init__(self, *, ended: bool = False, in_company: bool = False) -> None:
        super().__init__()
        self.ended = ended
        self.in_company = in_company


class HostConnection:
    """The calls in flight on one connection.

    `answers` counts the answers until their memory is no longer used. One that it refuses is read and dropped, and its
    call fails, so that the other calls go on.
    """

    def __init__(self, answers: AnswerBudget | None = None, context: ssl.SSLContext | None = None) -> None:
        """`context` is the TLS that it is made with; None: clear text, or a Unix socket."""
        self.context = context
        self._answers = answers or AnswerBudget()
        self._frames = FrameProtocol(
            self._on_frame,
            self._on_lost,
            budget=self._answers,
            on_refused=self._on_refused,
            wants=lambda header: header.get("id", 0) in self._waiting,
        )
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._numbers = count(1)
        self._routes: dict[GenerationRoute, int] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._heard = False
        self._silent_looks = 0
        self._given_up = False
        """Whether this side closes the connection."""
        self._retired = False
        """Whether it closes after its last answer."""

    @property
    def open(self) -> bool:
        """Whether calls can be made."""
        return self._frames.open

    @property
    def frames(self) -> FrameProtocol:
        """The protocol that takes over the connection."""
        return self._frames

    def send(self, pieces_of: "Pieces") -> "SentCall":
        """Send a call. ConnectionLost."""
        if not self._frames.open:
            raise ConnectionLost
        number = next(self._numbers)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        if self._watch is None:
            self._heard = self._heard or not self._silent_looks
            self._look()
        self._frames.send(pieces_of(number))
        return SentCall(self, number, answer)

    async def call(self, pieces_of: "Pieces") -> Frame:
        """Send a call and return its answer. If cancelled, the call is cancelled on the host. ConnectionLost."""
        return await self.send(pieces_of).response()

    def give_up(self, number: int) -> None:
        """Stop waiting for a call's answer, and cancel the call on the host."""
        answer = self._waiting.pop(number, None)
        if answer is not None and not (answer.done() and not answer.cancelled()):
            answer.cancel()
            self._frames.send(bytes_frame({"op": "cancel", "id": number}))
        self._close_retired()

    def register_route(self, route: GenerationRoute) -> int:
        """Return the number of a route on this connection; a new route is sent to the host first."""
        number = self._routes.get(route)
        if number is None:
            number = next(self._numbers)
            self._routes[route] = number
            if len(self._routes) > ROUTES_KNOWN:
                del self._routes[next(iter(self._routes))]
            table = route.routed.model_dump_json().encode()
            self._frames.send(bytes_frame({"op": "route", "route": number}, table))
        return number

    def retire(self) -> None:
        """Close the connection once its calls are answered. Make no new ones."""
        self._retired = True
        self._close_retired()

    def _close_retired(self) -> None:
        if self._retired and not self._waiting:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._watch is not None:
            self._watch.cancel()
        self._given_up = True
        self._frames.close()

    def _look(self) -> None:
        """Check that the host is alive.

        A host answers pings even during a long pass, because its event loop does not wait for it.
        """
        self._silent_looks = 0 if self._heard else self._silent_looks + 1
        self._heard, self._watch = False, None
        if not (self._waiting or self._frames.receiving) or not self._frames.open:
            return
        if self._silent_looks >= SILENT_LOOKS:
            self._given_up = True
            self._frames.abort()
            return
        if self._silent_looks:
            self._frames.send(bytes_frame({"op": "ping", "id": 0}))
        self._watch = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _on_refused(self, header: Mapping[str, Any], error: IPnextError) -> None:
        self._heard = True
        answer = self._waiting.pop(header.get("id", 0), None)
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self._close_retired()

    def _on_frame(self, frame: Frame) -> None:
        self._heard = True
        if frame.body.size:
            self._answers.release_with(frame.memory, frame.body.size)
        answer = self._waiting.pop(frame.header.get("id", 0), None)
        if answer is not None and not answer.done():
            answer.set_result(frame)
        self._close_retired()

    def _on_lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        lost = [answer for answer in waiting.values() if not answer.done()]
        for answer in lost:
            answer.set_exception(ConnectionLost(ended=not self._given_up, in_company=len(lost) > 1))


class SentCall:
    """A call that was sent. The caller awaits `response` or calls `give_up`."""

    __slots__ = ("_answer", "_connection", "_number")

    def __init__(self, connection: HostConnection, number: int, answer: asyncio.Future[Frame]) -> None:
        self._connection = connection
        self._number = number
        self._answer = answer

    async def response(self) -> Frame:
        """Return the answer. If cancelled, the call is cancelled on the host.

        Raises:
            ConnectionLost: the host is lost.
            AnswerTooLarge: the answer exceeds the limit of one.
            Unavailable: there is no room for the answer.
        """
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Stop waiting, and cancel the call on the host."""
        if self._answer.done() and not self._answer.cancelled():
            self._answer.exception()  # retrieved, so that asyncio does not report it
        self._connection.give_up(self._number)


class Pieces:
    """A call's frame without its number, which is added when the call is sent."""

    def __init__(self, make: Any, header: Mapping[str, Any], body: Any) -> None:
        self._make = make
        self._header = header
        self._body = body

    def naming(self, route: int) -> "Pieces":
        """Return the same frame for a route that the host knows by this number."""
        return Pieces(self._make, {**self._header, "route": route}, self._body)

    def __call__(self, number: int) -> Sequence[bytes | memoryview]:
        """Return the pieces of the frame with this number."""
        made: Sequence[bytes | memoryview] = self._make({**self._header, "id": number}, self._body)
        return made


Reach = Callable[[str], Awaitable[tuple[socket.socket, str | None]]]
"""Connects to the Unix socket of a host's URL; returns the connection and the caller's proof. OSError."""


async def connect(
    url: str,
    *,
    reach: Reach | None = None,
    answers: AnswerBudget | None = None,
    contexts: ClientContexts | None = None,
) -> HostConnection:
    """Connect to the host at `url` (http(s)://host:port, or unix://directory) and upgrade to frames. ConnectionLost.

    `reach` connects to Unix sockets; if None, this process does. `answers` bounds the host's answers. `contexts` has
    the certificate for hosts at https://, which can't be reached without one.
    """
    context = _context_for(url, contexts)
    connection = HostConnection(answers, context)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            handshake = await _begin_handshake(url, connection.frames, reach, context)
            try:
                await handshake.done
            except BaseException:
                handshake.abort()  # the frames have not taken the connection over: nothing else would close it
                raise
    except (OSError, TimeoutError) as error:
        raise ConnectionLost from error
    return connection


def _context_for(url: str, contexts: ClientContexts | None) -> ssl.SSLContext | None:
    if not url.startswith("https://"):
        return None
    if contexts is None:
        raise ConnectionLost
    return contexts.current()


async def _begin_handshake(
    url: str, frames: FrameProtocol, reach: Reach | None, context: ssl.SSLContext | None
) -> "_Handshake":
    loop = asyncio.get_running_loop()
    if is_socket_url(url) and reach is not None:
        link, given = await reach(url)
        _, handshake = await loop.create_unix_connection(lambda: _Handshake("localhost", frames, given), sock=link)
        return handshake
    if is_socket_url(url):
        path = socket_path(url, Component.ROUTER)
        proof = read_proof(proof_file(Path(path)))
        _, handshake = await loop.create_unix_connection(lambda: _Handshake("localhost", frames, proof), path)
        return handshake
    where = urlsplit(url)
    _, handshake = await loop.create_connection(
        lambda: _Handshake(where.netloc, frames),
        where.hostname or "",
        where.port or (80 if context is None else 443),
        ssl=context,
    )
    return handshake


class _Handshake(asyncio.Protocol):
    """Requests the upgrade to frames and hands the connection over once the host agrees."""

    def __init__(self, host: str, frames: FrameProtocol, proof: str | None = None) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._host = host
        self._frames = frames
        self._proof = "" if proof is None else f"{PROOF_HEADER}: {proof}\r\n"
        self._transport: asyncio.Transport | None = None
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the upgrade request."""
        self._transport = transport  # type: ignore[assignment]  # a stream's is a Transport
        head = f"GET /frames HTTP/1.1\r\nhost: {self._host}\r\nconnection: upgrade\r\nupgrade: {FRAMES}\r\n"
        transport.write(f"{head}{self._proof}\r\n".encode())  # type: ignore[attr-defined]  # as above

    def data_received(self, data: bytes) -> None:
        """Read the host's answer to the upgrade."""
        self._seen += data
        head, end, rest = self._seen.partition(b"\r\n\r\n")
        if not end or self.done.done() or self._transport is None:
            return
        if head.startswith(b"HTTP/1.1 101 "):
            self._frames.take_over(self._transport, rest)
            self.done.set_result(None)
        else:
            self._transport.close()
            self.done.set_exception(OSError("the host speaks no frames"))

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the handshake: the host closed the connection."""
        if not self.done.done():
            self.done.set_exception(exc or OSError("the host closed the connection"))
