"""Renders the static part of Envoy's configuration for a region: admin endpoint, listeners, limits. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from ipnext.infra.envoy import local_replies
from ipnext.infra.envoy.config import ROUTES_NAME, STREAM_IDLE_SECONDS, Json
from ipnext.infra.envoy.listeners import Listeners, listeners_of, watch_file
from ipnext.infra.envoy.openai_config import LOCAL_BODY, type_url
from ipnext.infra.envoy.source_groups import SourceLimit

STAT_PREFIX = "gateway"
ADMIN_MODE = 0o600


@dataclass(frozen=True, kw_only=True)
class GatewayLimits:
    """Limits of clients at one gateway process."""

    header_seconds: float = 20.0
    """A request whose headers are not complete by then is answered 408. A TLS handshake has the same limit."""
    keep_alive_seconds: float = 75.0
    """A connection without a request is closed after this time, also one that never had any."""
    connections: int = 10_000
    """Simultaneous client connections; one more is closed at once."""
    sources: SourceLimit | None = None
    """Limit of those of one source; None: a source may have all."""
    heap_bytes: int = 4 * 2**30
    """Memory: near it Envoy returns buffers, then answers new requests with 503 until memory is free."""
    stream_idle_seconds: float = STREAM_IDLE_SECONDS
    """As in `Gateway`; named in the answer to a client whose request took longer."""


def bootstrap(  # noqa: PLR0913 - each is a file or a limit of its own
    gateway_port: int,
    admin_socket: str,
    *,
    region: str,
    routes_file: str,
    clusters_file: str,
    limits: GatewayLimits | None = None,
    listeners: Listeners | None = None,
    admin_paths: Sequence[Json] = (),
) -> Json:
    """Return the static part: admin endpoint, listeners, and the paths of the dynamic parts.

    `admin_socket` is the path of a Unix socket that only this user may open: no page in a browser reaches it.
    `admin_paths` match the paths, with their queries, that it answers; if there are none, it answers all.
    """
    limits = limits or GatewayLimits()
    mappers = local_replies.reply_mappers(
        region, header_seconds=limits.header_seconds, idle_seconds=limits.stream_idle_seconds
    )
    connections = _connections(routes_file, mappers, limits.header_seconds)
    served = listeners_of(
        gateway_port,
        listeners or Listeners(),
        connections,
        handshake_seconds=limits.header_seconds,
        keep_alive_seconds=limits.keep_alive_seconds,
        idle_seconds=limits.stream_idle_seconds,
        sources=limits.sources,
    )
    return {
        "node": {"id": f"gateway-{region}", "cluster": "ipnext"},
        "admin": {
            "address": {"pipe": {"path": admin_socket, "mode": ADMIN_MODE}},
            **({"allow_paths": list(admin_paths)} if admin_paths else {}),
        },
        "dynamic_resources": {"cds_config": watch_file(clusters_file)},
        "static_resources": {"listeners": served},
        "overload_manager": _overload(limits),
    }


def _overload(limits: GatewayLimits) -> Json:
    heap = "envoy.resource_monitors.fixed_heap"
    monitors = {
        heap: {
            "@type": type_url("extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"),
            "max_heap_size_bytes": limits.heap_bytes,
        },
        "envoy.resource_monitors.global_downstream_max_connections": {
            "@type": type_url("extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
            "max_active_downstream_connections": limits.connections,
        },
    }
    actions = {"envoy.overload_actions.shrink_heap": 0.9, "envoy.overload_actions.stop_accepting_requests": 0.95}
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [{"name": name, "typed_config": config} for name, config in monitors.items()],
        "actions": [
            {"name": name, "triggers": [{"name": heap, "threshold": {"value": value}}]}
            for name, value in actions.items()
        ],
    }


def _connections(routes_file: str, mappers: list[Json], header_seconds: float) -> Json:
    """Return how requests of either listener are read and routed."""
    return {
        "@type": type_url("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": STAT_PREFIX,
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "normalize_path": True,
        "request_headers_timeout": f"{header_seconds}s",
        "internal_address_config": {"cidr_ranges": []},
        "rds": {"route_config_name": ROUTES_NAME, "config_source": watch_file(routes_file)},
        "local_reply_config": {
            "mappers": mappers,
            "body_format": local_replies.body_format(LOCAL_BODY),
        },
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": _router_filter()}],
    }


def _router_filter() -> Json:
    return {
        "@type": type_url("extensions.filters.http.router.v3.Router"),
        "dynamic_stats": False,
        "suppress_envoy_headers": True,
    }
