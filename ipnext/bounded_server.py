"""uvicorn with limited connections: a `BoundedListener` in place of the asyncio servers that it makes."""

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from ipnext.connections import BACKLOG, ConnectionLimits, Connections, Phase
from ipnext.errors import InvalidInput
from ipnext.listening import BoundedListener, bound_sockets


class BoundedServer(uvicorn.Server):
    """Listens on the host and port of its configuration, within the limits."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits, context: ssl.SSLContext | None = None) -> None:
        """`context` is the server's TLS context; None: clear text."""
        super().__init__(config)
        self._connections = Connections(limits)
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
        make: Any = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def bounded_config(app: Callable[..., Any], *, host: str, port: int, keep_alive_seconds: int) -> uvicorn.Config:
    """Return uvicorn's configuration for an application."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=keep_alive_seconds,
        backlog=BACKLOG,
        ws="none",
    )


def server_context(certificate: Path, key: Path, *, field: str, variable: str) -> ssl.SSLContext:
    """Return the server's TLS context. InvalidInput if the files are no certificate and its key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        msg = f"{field} ({variable}): {certificate} and {key} are no certificate and its key without a password, as PEM: {error}"
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
