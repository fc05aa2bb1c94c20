"""Envoy's listeners: for clients, for the gateways of other regions, and for the region's router. Pure functions.

Used by ipnext.infra.envoy. The public listener removes the steering headers that only components may send, before
anything else reads them. It has the operator's certificate, if there is one; the peer listener requires the peers'
certificates. The egress is a Unix socket, by which the router reaches the gateways of other regions.
"""

from dataclasses import dataclass, field
from typing import Any

from ipnext.infra.envoy.openai_config import type_url as _type
from ipnext.infra.envoy.public_listener import PublicListener
from ipnext.infra.envoy.source_groups import SourceLimit, grouped
from ipnext.infra.envoy.tls import PeerTls
from ipnext.infra.process.ports import LOOPBACK
from ipnext.names import INNER_HEADERS, PROOF_HEADER, REFUSED_HEADER, UPSTREAM_HEADER, UPSTREAM_PREFIX

Json = dict[str, Any]

CERTIFICATE_NAME = "gateway"
EGRESS_MODE = 0o600
PEER_SECONDS = 300
"""Longest life of a connection from another region's gateway, whose certificate is checked again with the next one."""
CONNECT_RETRIES = 8
"""Retries of a refused connection: usually some three seconds in all, in which a killed router is back."""
RETRIES: Json = {
    "retry_on": "connect-failure,refused-stream,retriable-headers",
    "retriable_headers": [{"name": REFUSED_HEADER, "present_match": True}],
    "num_retries": CONNECT_RETRIES,
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
    "rate_limited_retry_back_off": {
        "reset_headers": [{"name": REFUSED_HEADER, "format": "SECONDS"}],
        "max_interval": "3s",
    },
}
"""Retries of every route: only of requests that no server has read, so that nothing is computed twice. A router that
accepts no new requests answers so, with the time after which another router is up."""


@dataclass(frozen=True, kw_only=True)
class EgressListener:
    """The listener through which the region's router sends requests to the gateways of other regions."""

    path: str
    """Its Unix socket."""
    proof: str
    """Proves the router to it."""


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
    egress: EgressListener | None = None
    """None if the router sends nothing to other regions."""


def listeners_of(  # noqa: PLR0913 - each a limit of its own
    port: int,
    given: Listeners,
    connections: Json,
    *,
    handshake_seconds: float,
    keep_alive_seconds: float,
    idle_seconds: float,
    sources: SourceLimit | None = None,
) -> list[Json]:
    """Return the public listener on `port`, that for peers, and the egress.

    `connections` is how the first two read and route requests; they close a connection that has had no request for
    `keep_alive_seconds`. `idle_seconds` is the longest time without traffic of a request through the egress. `sources`
    limits the connections of one source to the public listener; None: it has no such limit.
    """
    idle = {"idle_timeout": f"{keep_alive_seconds}s"}
    public = connections | {
        "common_http_protocol_options": idle,
        "early_header_mutation_extensions": [_without(INNER_HEADERS)],
    }
    chain = _chain(public, _tls_fields(_tls(given), handshake_seconds))
    chains = {"filter_chains": [chain]} if sources is None else grouped(chain, sources)
    found = [_listener("gateway", given.public.host, port, chains)]
    if given.peer_port is not None:
        tls = None if given.peer_tls is None else given.peer_tls.downstream()
        aging = {"common_http_protocol_options": {**idle, "max_connection_duration": f"{PEER_SECONDS}s"}}
        chain = _chain(connections | aging, _tls_fields(tls, handshake_seconds))
        found.append(_listener("gateway-for-peers", LOOPBACK, given.peer_port, {"filter_chains": [chain]}))
    if given.egress is not None:
        found.append(_egress_listener(given.egress, connections, idle_seconds))
    return found


def certificate(listener: PublicListener) -> list[Json]:
    """Return the resource of the certificate's file.

    Envoy reads both files again when one is renamed into their directory.
    """
    if listener.certificate is None:
        return []
    pair = {
        "certificate_chain": {"filename": str(listener.certificate)},
        "private_key": {"filename": str(listener.key)},
        "watched_directory": {"path": str(listener.certificate.parent)},
    }
    secret = _type("extensions.transport_sockets.tls.v3.Secret")
    return [{"@type": secret, "name": CERTIFICATE_NAME, "tls_certificate": pair}]


def watch_file(path: str) -> Json:
    """Return the source of a file that Envoy watches."""
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def address(host: str, port: int) -> Json:
    """Return a TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}


def _chain(connections: Json, secured: Json) -> Json:
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}
    return {"filters": [manager], **secured}


def _listener(name: str, host: str, port: int, chains: Json) -> Json:
    # Without port reuse a second Envoy on this port fails, instead of taking half of the connections in silence.
    return {"name": name, "address": address(host, port), "enable_reuse_port": False, **chains}


def _egress_listener(egress: EgressListener, connections: Json, idle_seconds: float) -> Json:
    """Return the egress.

    It sends to no cluster but those of peers, and keeps a body no longer than it takes to pass it on.
    """
    headers = [
        {"name": PROOF_HEADER, "string_match": {"exact": egress.proof}},
        {"name": UPSTREAM_HEADER, "string_match": {"prefix": UPSTREAM_PREFIX}},
    ]
    to_peer = {
        "match": {"prefix": "/", "headers": headers},
        "route": {"cluster_header": UPSTREAM_HEADER, "timeout": "0s", "idle_timeout": f"{idle_seconds}s"},
        "request_headers_to_remove": [PROOF_HEADER, UPSTREAM_HEADER],
    }
    refused = {"match": {"prefix": "/"}, "direct_response": {"status": 403, "body": {"inline_string": _NOT_PROVED}}}
    host = {"name": "egress", "domains": ["*"], "retry_policy": RETRIES, "routes": [to_peer, refused]}
    routes = {"name": "egress", "virtual_hosts": [host], "response_headers_to_remove": [REFUSED_HEADER]}
    read = {name: value for name, value in connections.items() if name != "rds"}
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {**read, "stat_prefix": "egress", "route_config": routes},
    }
    return {
        "name": "egress",
        "address": {"pipe": {"path": egress.path, "mode": EGRESS_MODE}},
        "ignore_global_conn_limit": True,  # which is for clients
        "filter_chains": [{"filters": [manager]}],
    }


_NOT_PROVED = "this socket is for the region's router"


def _tls_fields(tls: Json | None, handshake_seconds: float) -> Json:
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
                {"name": CERTIFICATE_NAME, "sds_config": watch_file(given.certificate_file)}
            ],
        },
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}
