"""The HTTP server of the API: uvicorn, with bounded connections."""

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ipnext.api.stream import Stream
from ipnext.connections import BACKLOG, Bounded, ConnectionLimits, Connections, room_for_connections
from ipnext.settings import PlatformSettings


class Server(uvicorn.Server):
    """Ends the open streams before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, stream: Stream) -> None:
        super().__init__(config)
        self._stream = stream

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the streams, then as uvicorn does."""
        await self._stream.close()
        await super().shutdown(sockets)


def limits_of(settings: PlatformSettings) -> ConnectionLimits:
    """Return the limits of the API's connections. InvalidInput if the process may not open so many files."""
    most = room_for_connections(settings.api_connections, field="api_connections", variable="IPNEXT_API_CONNECTIONS")
    return ConnectionLimits(
        connections=most,
        per_source=settings.api_connections_per_source or max(1, most // 2),
        header_seconds=settings.api_header_seconds,
        keep_alive_seconds=settings.api_keep_alive_seconds,
    )


def server_config(app: FastAPI, settings: PlatformSettings) -> uvicorn.Config:
    """Return how uvicorn serves the API."""
    connections = Connections(limits_of(settings))

    def protocol(**given: Any) -> Bounded:
        return Bounded(connections, lambda: AutoHTTPProtocol(**given), _is_busy)

    return uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=settings.api_keep_alive_seconds,
        backlog=BACKLOG,
        ws="none",
        ssl_certfile=settings.api_tls_certificate_file,
        ssl_keyfile=settings.api_tls_key_file,
        http=protocol,  # type: ignore[arg-type]  # uvicorn calls it as it does a class
    )


def _is_busy(protocol: Any) -> bool:
    """Whether uvicorn runs a request of the connection."""
    return protocol.cycle is not None and not protocol.cycle.response_complete
