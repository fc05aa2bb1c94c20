"""Listening sockets that count connections as they accept them: for the API, agents and the proxy of Temporal's UI.

An asyncio server calls its protocol only after the TLS handshake. Clients that begin handshakes and end none would not
be counted, so the connections are accepted here, and passed to the event loop if there is room for them.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Final

import structlog

from ipnext.errors import Conflict, Unavailable
from ipnext.network.connections import BACKLOG, BoundedConnection, Phase, ServerConnections, answer_to, source_of

PAUSE_SECONDS: Final = 1.0
"""Pause before the next accept if the system refused one, such as for lack of open files."""


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind a socket for each address of `host`. They accept connections once they listen.

    Raises:
        Conflict: an address or the port is taken, or is none of this machine.
    """
    flags = socket.AI_PASSIVE
    with ExitStack() as stack:
        try:
            addresses = dict.fromkeys(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
            found = [_bound(stack, family, address) for family, _, _, _, address in addresses]
        except OSError as error:
            raise _not_there(host, port, error) from error
        stack.pop_all()
        return found


def _not_there(host: str, port: int, error: OSError) -> Conflict:
    why = error.strerror or error
    return Conflict(
        f"cannot listen on {host}:{port}: {why}; end the program that does, or choose another address or port"
    )


def _bound(stack: ExitStack, family: int, address: Any) -> socket.socket:
    one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)
    return one


class BoundedListener:
    """Accepts the connections of one bound socket within the limits. Use it in one event loop."""

    def __init__(
        self,
        listener: socket.socket,
        connections: ServerConnections,
        protocol: Callable[[], Any],
        phase_of: Callable[[Any], Phase],
        *,
        context: Callable[[], ssl.SSLContext | None] = lambda: None,
        is_over: Callable[[object], bool] = lambda _: False,
    ) -> None:
        """Prepare to listen on `listener`, which is closed with this object.

        `protocol` makes the protocol of a connection; `phase_of` is that of `BoundedConnection`. `context` returns the
        TLS context of the next connection; None: clear text. `is_over`: whether a connection with this TLS object has
        to end.
        """
        self._listener = listener
        self._connections = connections
        self._protocol, self._phase_of = protocol, phase_of
        self._context = context
        self._is_over = is_over
        self._accepting: asyncio.Task[None] | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen, and accept from now on. Conflict if another process was faster."""
        self._listener.setblocking(False)
        try:
            self._listener.listen(BACKLOG)
        except OSError as error:  # another process listens there by now
            host, port, *_ = self._listener.getsockname()
            raise _not_there(host, port, error) from error
        self._accepting = asyncio.create_task(self._accept(), name="accept connections")
        self._accepting.add_done_callback(lambda _: self._listener.close())  # also if it ends before it began

    def close(self) -> None:
        """Accept no new connections, and end those whose handshake is not done."""
        if self._accepting is None:
            self._listener.close()
            return
        for task in (self._accepting, *self._connecting):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed."""
        tasks = [*self._connecting, *([] if self._accepting is None else [self._accepting])]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, peer = await loop.sock_accept(self._listener)
            except ConnectionAbortedError:  # the client was faster
                continue
            except OSError as error:
                structlog.get_logger().warning("connections are not accepted", reason=str(error))
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._take(client, peer)
            await asyncio.sleep(0)  # many connections at once must not block other tasks

    def _take(self, client: socket.socket, peer: object) -> None:
        """Count a connection and pass it on, or refuse it."""
        connection = BoundedConnection(self._connections, self._protocol, self._phase_of, is_over=self._is_over)
        context = self._context()
        try:
            self._connections.add(connection, source_of(peer))
        except Unavailable as error:
            with client:
                if context is None:
                    with suppress(OSError):
                        client.send(answer_to(error))
            return
        task = asyncio.create_task(self._connect(client, connection, context), name="connect a client")
        self._connecting.add(task)
        task.add_done_callback(lambda done: self._release(done, connection, client))

    async def _connect(
        self, client: socket.socket, connection: BoundedConnection, context: ssl.SSLContext | None
    ) -> None:
        """Do the TLS handshake, if there is TLS; after that the connection runs by itself."""
        limit = None if context is None else self._connections.limits.header_seconds
        with suppress(OSError):  # it is late, has gone, speaks no TLS, or its certificate is invalid
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, client, ssl=context, ssl_handshake_timeout=limit
            )

    def _release(self, task: asyncio.Task[None], connection: BoundedConnection, client: socket.socket) -> None:
        """Remove the handshake, and the connection if it failed."""
        self._connecting.discard(task)
        if not connection.is_made:
            self._connections.discard(connection)
            client.close()
