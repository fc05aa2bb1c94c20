"""Renders the configuration of an Envoy before one host: mTLS on a port, the host's Unix sockets behind it.

The process that runs programs of snapshots has no private key: only its proxy does. The names in the callers'
certificates decide which socket a request reaches, by the table of `ipnext.components.authorisation`. Pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ipnext.components.authorisation import RULES
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.sockets import socket_path
from ipnext.infra.envoy.listeners import address
from ipnext.infra.envoy.openai_config import type_url as _type
from ipnext.infra.envoy.tls import Json, PeerTls
from ipnext.names import FRAMES, PROOF_HEADER

CALLERS: Final = (Component.AGENT, Component.ROUTER)
"""Components that call a host, each on a socket of its own."""
CONNECT_SECONDS: Final = 1
HANDSHAKE_SECONDS: Final = 20
"""Limit of a TLS handshake, and of the headers of a request."""
_HOST_HEADER: Final = "localhost"
"""The `Host` that hosts accept on their sockets, in place of the proxy's address."""
_CALLER: Final = "x-forwarded-client-cert"
"""The header in which Envoy writes the name of the caller's certificate, in place of what the caller sent."""


@dataclass(frozen=True, kw_only=True)
class HostProxy:
    """The proxy of one host."""

    own: ComponentIdentity
    """Name in its certificate: the host of a region."""
    host: str
    """IP address on which routers and the agent reach it."""
    port: int
    url: str
    """URL of the host's sockets."""
    proofs: Mapping[Component, str]
    """Caller -> its proof at the host."""
    tls: PeerTls

    def identity(self, caller: Component) -> ComponentIdentity:
        """Return the name that a caller's certificate must have."""
        return replace(self.own, component=caller)


def configuration(proxy: HostProxy) -> Json:
    """Return the whole configuration, without an admin endpoint."""
    return {
        "node": {"id": f"host-{proxy.own.region}", "cluster": "ipnext"},
        "static_resources": {
            "listeners": [_listener(proxy)],
            "clusters": [_cluster(proxy, caller) for caller in CALLERS],
        },
    }


def _listener(proxy: HostProxy) -> Json:
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": _connections(proxy)}
    chain = {
        "filters": [manager],
        "transport_socket": proxy.tls.downstream_of(map(proxy.identity, CALLERS)),
        "transport_socket_connect_timeout": f"{HANDSHAKE_SECONDS}s",
    }
    place = address(proxy.host, proxy.port)
    return {"name": "host", "address": place, "enable_reuse_port": False, "filter_chains": [chain]}


def _connections(proxy: HostProxy) -> Json:
    rules = [rule for caller in CALLERS for rule in _rules(proxy, caller)]
    host = {"name": "host", "domains": ["*"], "routes": [*rules, _refusal()]}
    return {
        "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "host",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "normalize_path": True,
        "request_headers_timeout": f"{HANDSHAKE_SECONDS}s",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": FRAMES}],
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True},
        "route_config": {"name": "host", "virtual_hosts": [host]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _type("extensions.filters.http.router.v3.Router")},
            }
        ],
    }


def _rules(proxy: HostProxy, caller: Component) -> Sequence[Json]:
    """Return the routes of one kind of caller, to its own socket."""
    allowed = [rule.steps for rule in RULES if rule.listener is Component.HOST and caller in rule.callers]
    return [_rule(proxy, caller, f"/{'/'.join(steps)}") for steps in allowed]


def _rule(proxy: HostProxy, caller: Component, base: str) -> Json:
    name = proxy.identity(caller).uri.replace(".", "[.]")
    proved = {"name": _CALLER, "string_match": {"safe_regex": {"regex": f"By=[^;,]*;Hash=[0-9a-f]+;URI={name}"}}}
    proof = {"header": {"key": PROOF_HEADER, "value": proxy.proofs[caller]}}
    return {
        "match": {"path_separated_prefix": base, "headers": [proved]},
        "route": {
            "cluster": str(caller),
            "host_rewrite_literal": _HOST_HEADER,
            "timeout": "0s",
            "idle_timeout": "0s",
        },
        "request_headers_to_add": [{**proof, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        "request_headers_to_remove": [_CALLER],
    }


def _refusal() -> Json:
    answer = {"status": 403, "body": {"inline_string": "this route of a host is not for the caller's component"}}
    return {"match": {"prefix": "/"}, "direct_response": answer}


def _cluster(proxy: HostProxy, caller: Component) -> Json:
    endpoint = {"endpoint": {"address": {"pipe": {"path": socket_path(proxy.url, caller)}}}}
    return {
        "name": str(caller),
        "type": "STATIC",
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "load_assignment": {"cluster_name": str(caller), "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
