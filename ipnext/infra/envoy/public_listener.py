"""A gateway's listener for clients: its address, its certificate, and the check that it is not too open."""

import ssl
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from ipnext.errors import InvalidInput
from ipnext.infra.process.ports import LOOPBACK
from ipnext.infra.settings import AgentSettings
from ipnext.network.loopback import check_bind


@dataclass(frozen=True, kw_only=True)
class PublicListener:
    """An address, with TLS if there is a certificate. Files are read again when they are replaced."""

    host: str = LOOPBACK
    certificate: Path | None = None
    """Certificate chain (PEM)."""
    key: Path | None = None
    """Its private key (PEM)."""
    url: str | None = None
    """The URL for clients; None: from the address itself."""

    def url_at(self, port: int) -> str:
        """Return the URL to which clients send requests."""
        if self.url is not None:
            return self.url
        scheme = "http" if self.certificate is None else "https"
        host = f"[{self.local_host}]" if isinstance(ip_address(self.host), IPv6Address) else self.local_host
        return f"{scheme}://{host}:{port}"

    @property
    def local_host(self) -> str:
        """The address at which this machine reaches it: a loopback address if it listens on all addresses."""
        address = ip_address(self.host)
        if not address.is_unspecified:
            return self.host
        return "::1" if isinstance(address, IPv6Address) else LOOPBACK

    @property
    def mark(self) -> str:
        """Identifies the listener: Envoy binds and reads it once, at its start."""
        return f"{self.host} {self.certificate} {self.key}"


def public_listener(settings: AgentSettings) -> PublicListener:
    """Return the listener of the settings.

    InvalidInput if it is open to other machines in clear text, or if a file is missing.
    """
    certificate, key = settings.gateway_tls_certificate_file, settings.gateway_tls_key_file
    try:
        ip_address(settings.gateway_host)
    except ValueError as error:
        msg = (
            f"gateway_host (IPNEXT_AGENT_GATEWAY_HOST): {settings.gateway_host!r} is no IP address; allowed: "
            "an address such as 127.0.0.1 or 0.0.0.0"
        )
        raise InvalidInput(msg, field="gateway_host", value=settings.gateway_host) from error
    if (certificate is None) != (key is None):
        missing = "gateway_tls_key_file" if key is None else "gateway_tls_certificate_file"
        msg = f"{missing} (IPNEXT_AGENT_{missing.upper()}): TLS needs a certificate and its key; give both, or none"
        raise InvalidInput(msg, field=missing)
    if certificate is not None and key is not None:
        _check_pair(certificate, key)
    lacks = "TLS (IPNEXT_AGENT_GATEWAY_TLS_CERTIFICATE_FILE, IPNEXT_AGENT_GATEWAY_TLS_KEY_FILE)"
    check_bind(
        settings.gateway_host,
        field="gateway_host",
        name="gateway_host (IPNEXT_AGENT_GATEWAY_HOST)",
        lacks=[lacks] if certificate is None else [],
        insecure_bind=settings.insecure_bind,
    )
    url = None if settings.gateway_url is None else str(settings.gateway_url).rstrip("/")
    return PublicListener(host=settings.gateway_host, certificate=certificate, key=key, url=url)


def _check_pair(certificate: Path, key: Path) -> None:
    if certificate.parent.resolve() != key.parent.resolve():
        msg = (
            "gateway_tls_key_file (IPNEXT_AGENT_GATEWAY_TLS_KEY_FILE): "
            f"{key} has to lie in the directory of the certificate, "
            f"{certificate.parent}: that is watched for new ones"
        )
        raise InvalidInput(msg, field="gateway_tls_key_file", value=str(key))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        msg = (
            "gateway_tls_certificate_file (IPNEXT_AGENT_GATEWAY_TLS_CERTIFICATE_FILE): "
            f"{certificate} and {key} are no certificate "
            f"and its key without a password, as PEM: {error}"
        )
        raise InvalidInput(msg, field="gateway_tls_certificate_file", value=str(certificate)) from error


def _no_password() -> str:
    msg = "the key needs a password"
    raise ValueError(msg)
