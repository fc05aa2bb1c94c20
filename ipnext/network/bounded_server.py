"""uvicorn with limited connections: a `BoundedListener` in place of the asyncio servers that it makes."""

import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ipnext.errors import InvalidInput
from ipnext.network.connections import BACKLOG, LARGEST_HEAD_BYTES, ConnectionLimits, Phase, ServerConnections
from ipnext.network.listener import BoundedListener, bound_sockets


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a limit on what it takes besides bodies.

    It takes no requests behind a protocol that it does not speak.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._framing_bytes = 0
        """Bytes since the last ones of a body: of headers, of the frames of chunks, of trailers."""
        self._in_head = False
        self._ends = False
        """Whether nothing that comes now is a request."""
        self._cycles: list[RequestResponseCycle] = []

    def data_received(self, data: bytes) -> None:
        """Parse the data; end a connection that sends no bytes of a body for too long within a request."""
        if self._ends:
            return
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > LARGEST_HEAD_BYTES and not self._in_head:
            self._ends = True
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request of the connection that nobody waits for its answer any more."""
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin the headers of a request."""
        self._framing_bytes, self._in_head = 0, True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers are dropped."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request, or queue it."""
        self._in_head = False
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self.cycle is not None:
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._framing_bytes = 0
        super().on_body(body)

    def _unsupported_upgrade_warning(self) -> None:
        """Answer as if no other protocol was asked for, and close: what follows is of that protocol, and no request."""
        self._ends = True
        if self.cycle is not None:
            self.cycle.keep_alive = False


class BoundedServer(uvicorn.Server):
    """Listens on the host and port of its configuration, within the limits."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits, context: ssl.SSLContext | None = None) -> None:
        """`context` is the server's TLS context; None: clear text."""
        super().__init__(config)
        self._connections = ServerConnections(limits)
        self._context = context

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start uvicorn, then accept connections. Conflict if the port is taken."""
        bound = bound_sockets(self.config.host, self.config.port) if sockets is None else sockets
        await super().startup(sockets=[])
        for one in bound:
            listener = BoundedListener(one, self._connections, self._protocol, _phase_of, context=lambda: self._context)
            listener.start()
            self.servers.append(listener)  # type: ignore[arg-type]  # uvicorn closes them as it does its own

    def _protocol(self) -> Any:
        return BoundedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def bounded_config(
    app: Callable[..., Any], *, host: str, port: int, keep_alive_seconds: int, trusted_proxies: Sequence[str] = ()
) -> uvicorn.Config:
    """Return uvicorn's configuration for an application.

    `X-Forwarded-For` and `X-Forwarded-Proto` count only if the peer is one of `trusted_proxies`, addresses or networks.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="error",  # it warns of each malformed request, and who sends them has no credential
        access_log=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=keep_alive_seconds,
        backlog=BACKLOG,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        ws="none",
    )


def server_context(certificate: Path, key: Path, *, field: str, variable: str) -> ssl.SSLContext:
    """Return the server's TLS context. InvalidInput if the files are no certificate and its key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        msg = (
            f"{field} ({variable}): {certificate} and {key} are no certificate and its key without a "
            f"password, as PEM: {error}"
        )
        raise InvalidInput(msg, field=field, value=str(certificate)) from error
    return context


def _no_password() -> str:
    msg = "the key needs a password"
    raise ValueError(msg)


def _phase_of(protocol: Any) -> Phase:
    """Return the phase of a connection of uvicorn's, which reads on when an answer did not need the whole body."""
    cycle = protocol.cycle
    if cycle is None or cycle.scope is not protocol.scope:  # the headers of another request have begun
        return Phase.HEAD
    if not cycle.response_complete:
        return Phase.ANSWER
    return Phase.REST if cycle.more_body else Phase.HEAD
