"""Where an agent listens: with certificates that are read again when their files change, or without on a loopback address."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

import structlog

from ipnext.components.certificates import CertificateFiles, Stamp, server_context
from ipnext.components.identity import Identity
from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput
from ipnext.loopback import check_bind

LOOK_SECONDS: Final = 1.0
"""Between two looks at the certificate's files: far below what is left of its life when it is replaced."""
_BACKLOG: Final = 128


def listener_files(settings: ComponentSettings, host: str, *, insecure_bind: bool) -> CertificateFiles | None:
    """Return the certificate that the agent listens with; None if it asks nobody for one. InvalidInput for an open address."""
    if settings.component_authentication == "required":
        files = settings.certificate_files
        if files is None:
            msg = (
                "component_certificate_file (IPNEXT_COMPONENT_CERTIFICATE_FILE): an agent needs a certificate, its key and the "
                "CA of other components; give the three files, or IPNEXT_COMPONENT_AUTHENTICATION=none on one machine"
            )
            raise InvalidInput(msg, field="component_certificate_file")
        return files
    lacks = ["authentication: IPNEXT_COMPONENT_AUTHENTICATION=none asks nobody who calls"]
    check_bind(host, field="host", name="--host", lacks=lacks, insecure_bind=insecure_bind)
    return None


class AgentListener:
    """One port for as long as the agent runs. New certificates count for new connections; open ones go on."""

    def __init__(
        self, protocol: Callable[[], asyncio.BaseProtocol], files: CertificateFiles | None, *, trust_domain: str
    ) -> None:
        """`protocol` makes the protocol of a connection, such as an aiohttp server."""
        self._protocol = protocol
        self._files = files
        self._trust_domain = trust_domain
        self._stamp: Stamp | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. InvalidInput if the certificate is not good; OSError if the port is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        await self._listen()
        if self._files is not None:
            self._following = asyncio.create_task(self._follow(self._files), name="follow the certificate")

    async def stop(self) -> None:
        """Take no new connections."""
        if self._following is not None:
            self._following.cancel()
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()

    async def _follow(self, files: CertificateFiles) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if files.stamp() != self._stamp:
                    await self._listen()
                    structlog.get_logger().info("certificate replaced", file=str(files.certificate))
            except (InvalidInput, OSError) as error:  # the former one serves until it ends
                structlog.get_logger().warning("certificate not read, the former one stays", reason=str(error))

    async def _listen(self) -> None:
        """Accept with the certificate of now on the same port; connections that wait there stay."""
        if self._socket is None:
            return
        stamp = self._files.stamp() if self._files is not None else None
        context = self._context()
        former = self._server
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=self._socket.dup(), backlog=_BACKLOG, ssl=context
        )
        self._stamp = stamp
        if former is not None:
            former.close()

    def _context(self) -> ssl.SSLContext | None:
        return None if self._files is None else server_context(self._files, self._is_ours)

    def _is_ours(self, peer: Identity) -> bool:
        return peer.trust_domain == self._trust_domain
