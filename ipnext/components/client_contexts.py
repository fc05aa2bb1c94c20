"""TLS contexts of a component that calls others: remade when the files of its certificate change."""

import ssl
import time
from collections.abc import Callable
from typing import Final

import structlog

from ipnext.components.certificates import CertificateFiles, Stamp, client_context
from ipnext.components.identity import ComponentIdentity
from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput

LOOK_SECONDS: Final = 1.0
"""Interval between two checks of the certificate's files."""


class ClientContexts:
    """The context for calls to one kind of component. Use it in one thread."""

    def __init__(
        self, files: CertificateFiles, expected: ComponentIdentity, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raise InvalidInput if the files are invalid. A server that is not `expected` fails the handshake."""
        self._files = files
        self._expected = expected
        self._clock = clock
        self._stamp: Stamp = files.stamp()
        """Stamp of the files that were read last, with or without success."""
        self._context = self._make()
        self._looked_at = clock()

    def current(self) -> ssl.SSLContext:
        """Return the context for a new connection. An equal certificate keeps its context."""
        if self._clock() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = self._clock()
            self._look()
        return self._context

    def _look(self) -> None:
        try:
            former, self._stamp = self._stamp, self._files.stamp()
            if self._stamp != former:
                self._context = self._make()
        except InvalidInput as error:  # the former certificate stays in use until it expires
            structlog.get_logger().warning("certificate not read, the former one stays", reason=error.message)

    def _make(self) -> ssl.SSLContext:
        return client_context(self._files, lambda peer: peer == self._expected)


def contexts_for(expected: ComponentIdentity, settings: ComponentSettings) -> ClientContexts | None:
    """Return the contexts for calls to `expected`; None without a certificate. InvalidInput if it is invalid."""
    files = settings.certificate_files
    return None if files is None else ClientContexts(files, expected)
