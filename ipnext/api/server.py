"""The HTTP server of the API: uvicorn, with limited connections."""

import socket
import ssl

from fastapi import FastAPI

from ipnext.api.requests.stream import Stream
from ipnext.network.bounded_server import BoundedServer, bounded_config, server_context
from ipnext.network.connections import ConnectionLimits, room_for_connections
from ipnext.settings import PlatformSettings


class Server(BoundedServer):
    """Ends the open streams before it waits for open connections."""

    def __init__(self, app: FastAPI, settings: PlatformSettings, stream: Stream) -> None:
        """Raise InvalidInput if the process may not open so many files, or the certificate is invalid."""
        config = bounded_config(
            app,
            host=settings.api_host,
            port=settings.api_port,
            keep_alive_seconds=settings.api_keep_alive_seconds,
            trusted_proxies=settings.trusted_proxies,
        )
        super().__init__(config, limits_of(settings), _context_of(settings))
        self._stream = stream

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the streams, then shut uvicorn down."""
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


def _context_of(settings: PlatformSettings) -> ssl.SSLContext | None:
    certificate, key = settings.api_tls_certificate_file, settings.api_tls_key_file
    if certificate is None or key is None:
        return None
    names = {"field": "api_tls_certificate_file", "variable": "IPNEXT_API_TLS_CERTIFICATE_FILE"}
    return server_context(certificate, key, **names)
