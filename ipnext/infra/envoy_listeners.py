"""Envoy's listeners: the public one for clients, and one for the gateways of other regions. Pure functions.

Used by ipnext.infra.envoy. The public listener removes the steering headers that only components may send, before
anything else reads them. It has the operator's certificate, if there is one; the peer listener requires the peers'
certificates.
"""

from dataclasses import dataclass, field
from typing import Any

from ipnext.infra.envoy_openai import type_url as _type
from ipnext.infra.envoy_tls import PeerTls
from ipnext.infra.ports import LOOPBACK
from ipnext.infra.public_listener import PublicListener
from ipnext.names import INNER_HEADERS

Json = dict[str, Any]

CERTIFICATE_NAME = "gateway"


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """Listeners of a gateway besides its port."""

    public: PublicListener = field(default_factory=PublicListener)
    certificate_file: str = ""
    """File that names the public listener's certificate files for Envoy, if it has a certificate."""
    peer_port: int | None = None
    """Loopback port for the gateways of other regions, which send the version they chose; None if there are none."""
    peer_tls: PeerTls | None = None
    """Certificates for peers; None if they need none."""


def listeners_of(port: int, given: Listeners, connections: Json, *, handshake_seconds: float) -> list[Json]:
    """Return the public listener on `port`, and that for peers. `connections` is how both read and route requests."""
    public = connections | {"early_header_mutation_extensions": [_without(INNER_HEADERS)]}
    found = [_listener("gateway", given.public.host, port, public, _secured(_tls(given), handshake_seconds))]
    if given.peer_port is not None:
        tls = None if given.peer_tls is None else given.peer_tls.downstream()
        secured = _secured(tls, handshake_seconds)
        found.append(_listener("gateway-for-peers", LOOPBACK, given.peer_port, connections, secured))
    return found


def certificate(listener: PublicListener) -> list[Json]:
    """Return the resource of the certificate's file: Envoy reads both files again when one is renamed into their directory."""
    if listener.certificate is None:
        return []
    pair = {
        "certificate_chain": {"filename": str(listener.certificate)},
        "private_key": {"filename": str(listener.key)},
        "watched_directory": {"path": str(listener.certificate.parent)},
    }
    secret = _type("extensions.transport_sockets.tls.v3.Secret")
    return [{"@type": secret, "name": CERTIFICATE_NAME, "tls_certificate": pair}]


def watched(path: str) -> Json:
    """Return the source of a file that Envoy watches."""
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def address(host: str, port: int) -> Json:
    """Return a TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}


def _listener(name: str, host: str, port: int, connections: Json, secured: Json) -> Json:
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}
    chain = {"filters": [manager], **secured}
    # Without port reuse a second Envoy on this port fails, instead of taking half of the connections in silence.
    return {"name": name, "address": address(host, port), "enable_reuse_port": False, "filter_chains": [chain]}


def _secured(tls: Json | None, handshake_seconds: float) -> Json:
    """Return the TLS fields of a filter chain: Envoy's default limit of a handshake is an hour."""
    limit = f"{handshake_seconds}s"
    return {} if tls is None else {"transport_socket": tls, "transport_socket_connect_timeout": limit}


def _without(headers: tuple[str, ...]) -> Json:
    """Return the extension that removes headers before routing."""
    kind = "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    config = {"@type": _type(kind), "mutations": [{"remove": name} for name in headers]}
    return {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": config}


def _tls(given: Listeners) -> Json | None:
    if given.public.certificate is None:
        return None
    config = {
        "@type": _type("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["http/1.1"],
            "tls_certificate_sds_secret_configs": [
                {"name": CERTIFICATE_NAME, "sds_config": watched(given.certificate_file)}
            ],
        },
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}
