"""HTTP clients of agents.

They authenticate with a certificate, verify the region of the agent, and reload changed certificates.

All calls of API and workers to agents are made here: no answer of an agent is longer, or takes longer, than its caller
allows.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx
import structlog

from ipnext.components.bounded_http import AnswerRefused, BoundedAnswer, BoundedClient
from ipnext.components.certificates import CertificateFiles, Stamp, client_context
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput, RegionUnreachable
from ipnext.network.loopback import is_loopback

LOOK_SECONDS: Final = 1.0
"""Interval between two checks of the certificate's files."""
CONNECT_SECONDS: Final = 2.0
"""Longest wait for a connection to an agent."""


class AgentClients:
    """One client for all agents at http://, one client for each agent at https://. Safe to use from several threads."""

    def __init__(self, agents: Mapping[str, str], settings: ComponentSettings | None = None) -> None:
        """Raise InvalidInput if an agent needs a certificate and has none, or is on another machine in clear text."""
        self._plain = BoundedClient()
        self._secure = {
            region: _secure_client(region, settings) for region, url in agents.items() if url.startswith("https://")
        }
        for region, url in agents.items():
            if region not in self._secure and settings is not None:
                _check_clear_text(region, url, settings)

    def call(
        self, region: str, method: str, url: str, content: str | None = None, *, most_bytes: int, seconds: float
    ) -> BoundedAnswer:
        """Call a region's agent, once. RegionUnreachable names the region, and the limit that its answer exceeds."""
        try:
            with self._client(region) as client:
                return client.call(
                    method,
                    url,
                    content=content,
                    most_bytes=most_bytes,
                    seconds=seconds,
                    connect_seconds=CONNECT_SECONDS,
                )
        except AnswerRefused as error:
            msg = f"the agent of region {region!r} answered {method} {url}, but {error}"
            raise RegionUnreachable(msg) from error
        except httpx.TransportError as error:
            msg = (
                f"the agent of region {region!r} did not answer {method} {url} whole within {seconds:g} s: "
                f"{error!r}; is it running?"
            )
            raise RegionUnreachable(msg) from error

    @contextmanager
    def _client(self, region: str) -> Iterator[BoundedClient]:
        """Yield the client of a region's agent; it stays open while it is in use."""
        secure = self._secure.get(region)
        if secure is None:
            yield self._plain
            return
        with secure.client() as client:
            yield client

    def close(self) -> None:
        """Close all connections."""
        self._plain.close()
        for client in self._secure.values():
            client.close()


def _secure_client(region: str, settings: ComponentSettings | None) -> "SecureClient":
    files = settings.certificate_files if settings is not None else None
    if files is None or settings is None:
        msg = (
            f"agents (IPNEXT_AGENTS): the agent of {region} is at https://, "
            "which needs a certificate of this component: "
            "IPNEXT_COMPONENT_CERTIFICATE_FILE, IPNEXT_COMPONENT_KEY_FILE, IPNEXT_COMPONENT_CA_FILE"
        )
        raise InvalidInput(msg, field="component_certificate_file")
    expected = ComponentIdentity(settings.trust_domain, Component.AGENT, region)

    def make() -> BoundedClient:
        return BoundedClient(context=client_context(files, lambda peer: peer == expected))

    return SecureClient(files, make)


def _check_clear_text(region: str, url: str, settings: ComponentSettings) -> None:
    if settings.component_authentication == "required" and not is_loopback(urlsplit(url).hostname or ""):
        msg = (
            f"agents (IPNEXT_AGENTS): the agent of {region} is on another machine, and {url} is clear text; "
            "allowed: https://, "
            "or http:// with IPNEXT_COMPONENT_AUTHENTICATION=none"
        )
        raise InvalidInput(msg, field="agents", value=url)


@dataclass(eq=False)
class _Client:
    http: BoundedClient
    stamp: Stamp
    users: int = 0


class SecureClient:
    """A client that is remade when the certificate's files change; the former client closes after its last call."""

    def __init__(self, files: CertificateFiles, make: Callable[[], BoundedClient]) -> None:
        self._files = files
        self._make = make
        self._lock = threading.Lock()
        self._now = _Client(make(), files.stamp())
        self._looked_at = time.monotonic()

    @contextmanager
    def client(self) -> Iterator[BoundedClient]:
        """Yield the current client for one call."""
        with self._lock:
            self._look()
            taken = self._now
            taken.users += 1
        try:
            yield taken.http
        finally:
            with self._lock:
                taken.users -= 1
                self._end(taken)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._now.http.close()

    def _look(self) -> None:
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            stamp = self._files.stamp()
            if stamp == self._now.stamp:
                return
            former, self._now = self._now, _Client(self._make(), stamp)
        except InvalidInput as error:  # the former certificate stays in use until it expires
            structlog.get_logger().warning("certificate not read, the former one stays", reason=error.message)
            return
        self._end(former)

    def _end(self, client: _Client) -> None:
        if client is not self._now and not client.users:
            client.http.close()
