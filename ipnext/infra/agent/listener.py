"""The agent's listener.

It has certificates that are reloaded when their files change, or none on a loopback address.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from ipnext.components.certificates import CertificateFiles, Stamp, is_past, server_context
from ipnext.components.identity import ComponentIdentity
from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput
from ipnext.infra.settings import AgentSettings
from ipnext.network.connections import ConnectionLimits, Phase, ServerConnections, room_for_connections
from ipnext.network.listener import BoundedListener, bound_sockets
from ipnext.network.loopback import check_bind

LOOK_SECONDS: Final = 1.0
"""Interval between two checks of the certificate's files: far below its remaining life when it is replaced."""


def listener_files(settings: ComponentSettings, host: str, *, insecure_bind: bool) -> CertificateFiles | None:
    """Return the certificate of the agent's listener; None if callers need none.

    InvalidInput if the address is then not loopback.
    """
    if settings.component_authentication == "required":
        files = settings.certificate_files
        if files is None:
            msg = (
                "component_certificate_file (IPNEXT_COMPONENT_CERTIFICATE_FILE): "
                "an agent needs a certificate, its key and the "
                "CA of other components; give the three files, or IPNEXT_COMPONENT_AUTHENTICATION=none on one machine"
            )
            raise InvalidInput(msg, field="component_certificate_file")
        return files
    lacks = ["authentication: IPNEXT_COMPONENT_AUTHENTICATION=none asks nobody who calls"]
    check_bind(host, field="host", name="--host", lacks=lacks, insecure_bind=insecure_bind)
    return None


def agent_limits(settings: AgentSettings) -> ConnectionLimits:
    """Return the limits of the agent's connections. InvalidInput if the process may not open so many files."""
    most = room_for_connections(settings.connections, field="connections", variable="IPNEXT_AGENT_CONNECTIONS")
    return ConnectionLimits(
        connections=most,
        per_source=settings.connections_per_source or max(1, most // 2),
        header_seconds=settings.header_seconds,
        keep_alive_seconds=settings.keep_alive_seconds,
    )


class AgentListener:
    """One port for the life of the agent.

    A new certificate applies to new connections; open ones stay until the caller's expires.
    """

    def __init__(
        self,
        protocol: Callable[[], asyncio.BaseProtocol],
        files: CertificateFiles | None,
        *,
        trust_domain: str,
        limits: ConnectionLimits,
    ) -> None:
        """`protocol` makes the protocol of a connection, from an aiohttp server."""
        self._protocol = protocol
        self._files = files
        self._trust_domain = trust_domain
        self._connections = ServerConnections(limits)
        self._stamp: Stamp | None = None
        self._context: ssl.SSLContext | None = None
        self._listeners: list[BoundedListener] = []
        self._following: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. InvalidInput if the certificate is not valid; Conflict if the port is taken."""
        if self._files is not None:
            self._read(self._files)
        for one in bound_sockets(host, port):
            listener = BoundedListener(
                one,
                self._connections,
                self._protocol,
                _phase_of,
                context=lambda: self._context,
                is_over=lambda link: is_past(link, time.time()),
            )
            listener.start()
            self._listeners.append(listener)
        if self._files is not None:
            self._following = asyncio.create_task(self._follow(self._files), name="follow the certificate")

    async def stop(self) -> None:
        """Accept no new connections."""
        if self._following is not None:
            self._following.cancel()
        for listener in self._listeners:
            listener.close()
            await listener.wait_closed()

    async def _follow(self, files: CertificateFiles) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if files.stamp() != self._stamp:
                    self._read(files)
                    structlog.get_logger().info("certificate replaced", file=str(files.certificate))
            except (InvalidInput, OSError) as error:  # the former certificate stays in use until it expires
                structlog.get_logger().warning("certificate not read, the former one stays", reason=str(error))

    def _read(self, files: CertificateFiles) -> None:
        """Use the current certificate for new connections."""
        stamp = files.stamp()
        self._context = server_context(files, self._is_ours)
        self._stamp = stamp

    def _is_ours(self, peer: ComponentIdentity) -> bool:
        return peer.trust_domain == self._trust_domain


def _phase_of(protocol: Any) -> Phase:
    """Return the phase of a connection of aiohttp's, which has no public name for it.

    Between the moment in which a request leaves its queue and the first step of the handler's task only the absence of
    the future by which an idle connection waits tells that a request is at work; a new connection does not wait yet.
    """
    at_work = protocol._request_in_progress or protocol._messages  # noqa: SLF001 - see above
    waits = protocol._waiter is not None or not protocol._request_count  # noqa: SLF001 - see above
    return Phase.HEAD if waits and not at_work else Phase.ANSWER
