"""A component's certificate, key and CA certificates as files, and TLS contexts made of them.

Another program writes the files (`ipnext dev`, SPIRE, cert-manager) and replaces them before the certificate expires.
Both ends of a connection verify the other's certificate, and the component that it names, within the handshake.
"""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipnext.components.identity import ComponentIdentity, parse_identity
from ipnext.errors import InvalidInput

Stamp = tuple[tuple[int, int, int], ...]
Accept = Callable[[ComponentIdentity], bool]

_READ_ATTEMPTS: Final = 5
_READ_PAUSE_SECONDS: Final = 0.02
"""Files that are replaced one after the other do not fit for a moment."""


@dataclass(frozen=True)
class CertificateFiles:
    """Files of a component's certificate (with its chain) and key, and of the CAs that it trusts. All PEM."""

    certificate: Path
    key: Path
    authorities: Path

    def stamp(self) -> Stamp:
        """Return a stamp that changes with the files. InvalidInput if one is missing."""
        try:
            stats = [path.stat() for path in (self.certificate, self.key, self.authorities)]
        except OSError as error:
            msg = f"no certificate of this component: {error.strerror}: {error.filename}"
            raise InvalidInput(msg, field="component_certificate_file", value=error.filename) from error
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)


class CheckedSSLObject(ssl.SSLObject):
    """One end of a TLS connection of asyncio; the handshake fails unless the other end is an accepted component."""

    accepts: Accept
    peer: ComponentIdentity
    """The component at the other end, after the handshake."""
    peer_until: float
    """Unix time at which its certificate expires."""

    def do_handshake(self) -> None:
        """Check the certificate, then the name in it. ssl.SSLCertVerificationError."""
        super().do_handshake()
        self.peer, self.peer_until = _check_peer(self.getpeercert(), type(self).accepts)


class CheckedSSLSocket(ssl.SSLSocket):
    """The same for a blocking socket."""

    accepts: Accept
    peer: ComponentIdentity
    peer_until: float

    def do_handshake(self, block: bool = False) -> None:
        """Check the certificate, then the name in it. ssl.SSLCertVerificationError."""
        super().do_handshake(block)
        self.peer, self.peer_until = _check_peer(self.getpeercert(), type(self).accepts)


def server_context(files: CertificateFiles, accept: Accept) -> ssl.SSLContext:
    """Make a context that requires each client's certificate. InvalidInput if the files are invalid."""
    return _context(ssl.PROTOCOL_TLS_SERVER, files, accept)


def client_context(files: CertificateFiles, accept: Accept) -> ssl.SSLContext:
    """Make a context that presents the certificate to the server. InvalidInput if the files are invalid."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, files, accept)


def _context(protocol: int, files: CertificateFiles, accept: Accept) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name in the certificate identifies a component, and `accept` checks it
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    bound = {"accepts": staticmethod(accept)}
    context.sslobject_class = type("_CheckedObject", (CheckedSSLObject,), bound)
    context.sslsocket_class = type("_CheckedSocket", (CheckedSSLSocket,), bound)
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: CertificateFiles) -> None:
    for attempt in range(_READ_ATTEMPTS):
        try:
            context.load_cert_chain(files.certificate, files.key)
            context.load_verify_locations(files.authorities)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            if attempt + 1 == _READ_ATTEMPTS:
                msg = (
                    f"{files.certificate}, {files.key}, {files.authorities}: not a certificate, "
                    f"its key and authorities: {error}"
                )
                raise InvalidInput(msg, field="component_certificate_file", value=str(files.certificate)) from error
            time.sleep(_READ_PAUSE_SECONDS)
        else:
            return


def is_past(link: object, now: float) -> bool:
    """Return whether the certificate of a connection's other end has expired at this Unix time; False without one."""
    return now >= getattr(link, "peer_until", now + 1.0)


def _check_peer(certificate: Any, accept: Accept) -> tuple[ComponentIdentity, float]:
    names = [name for kind, name in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]
    if len(names) != 1:
        msg = f"a component's certificate has exactly one URI, got {len(names)}"
        raise ssl.SSLCertVerificationError(msg)
    try:
        peer = parse_identity(names[0])
    except InvalidInput as error:
        raise ssl.SSLCertVerificationError(error.message) from error
    if not accept(peer):
        msg = f"{peer.uri} is not the component that is expected here"
        raise ssl.SSLCertVerificationError(msg)
    return peer, ssl.cert_time_to_seconds(certificate["notAfter"])
