"""Renders the files that Envoy watches in a region: clusters, and routes from route tables. Pure functions.

Envoy chooses the generation of V2 requests: by weight, written into a header, or by that header if a client sent it.
Requests of OpenAI's API name their model in the body, which no gateway reads: the router chooses.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import orjson

from ipnext.components.identity import Component
from ipnext.components.sockets import is_socket_url, socket_path
from ipnext.infra.envoy import openai_config
from ipnext.infra.envoy.listeners import RETRIES
from ipnext.infra.envoy.listeners import address as _address
from ipnext.infra.envoy.openai_config import type_url as _type
from ipnext.infra.envoy.tls import PeerTls
from ipnext.infra.envoy.weights import WEIGHT_TOTAL, weights
from ipnext.infra.generation_shares import no_capacity, some, usable_shares
from ipnext.infra.process.ports import LOOPBACK
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.names import (
    ANSWER_HEADERS,
    CHOSEN_BY_WEIGHT,
    CHOSEN_HEADER,
    FORWARDED_HEADER,
    GENERATION_HEADER,
    INNER_HEADERS,
    NO_CAPACITY_HEADER,
    PROOF_HEADER,
    REFUSED_HEADER,
    upstream_name,
)
from ipnext.network.allowed_hosts import LOOPBACK_AUTHORITY, AllowedHosts

ROUTER_CLUSTER = "router"
ROUTES_NAME = "gateway"
STREAM_IDLE_SECONDS = 660.0
"""An OpenAI request without traffic for this long is ended, unless configured otherwise."""
LONGEST_ANSWER_BYTES = 4096
"""Envoy's limit of a direct answer."""
MANY = 1_000_000
"""Above any number of requests that reach one gateway: the router applies the limits."""
PEER_CLIENT_SECONDS = 240
"""Longest life of a connection to another region's gateway: below the time after which that one ends it."""
UPSTREAM_IDLE_SECONDS = 2
"""Below the keep-alive time of any server behind Envoy, so that it never sends into a connection that just closes."""
OF_ALL_MODELS = ("/v2/repository/index", "/v2/models/stats")
"""V2 paths for all models at once; therefore no model is named `stats` (ipnext.model.manifest)."""
_NO_SUCH_PATH = "no such path; served: /v2/... (Open Inference Protocol V2), /v1/... (OpenAI's API, see GET /v1/models)"
_NO_SUCH_HOST = "this Host is not served here; allowed: loopback addresses, localhost, names of IPNEXT_ALLOWED_HOSTS"
_FOREIGN = "a page of another origin asks; allowed: origins of IPNEXT_ALLOWED_ORIGINS"
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Inputs of a region's Envoy configuration."""

    region: str
    router_url: str
    """http:// of a loopback port, or unix:// of its sockets."""
    router_proof: str | None = None
    """Proves the gateway to the router, on sockets."""
    peers: Mapping[str, str]
    """Other region -> URL of its gateway."""
    tables: Mapping[str, RouteTable]
    """Model -> its route table."""
    request_seconds: float
    stream_idle_seconds: float = STREAM_IDLE_SECONDS
    allowed: AllowedHosts = field(default_factory=AllowedHosts)
    tls: PeerTls | None = None
    """Certificates for peers at https://."""
    closed: frozenset[str] = frozenset()
    """Models that need a credential: only the router discloses facts about them, to authorised callers."""


def discovery(version: int, resources: Sequence[Json]) -> Json:
    """Return a versioned file of clusters or routes, for Envoy to watch."""
    return {"version_info": str(version), "resources": list(resources)}


def clusters(gateway: Gateway) -> list[Json]:
    """Return the clusters of the router and of each other region's gateway."""
    router = _cluster(ROUTER_CLUSTER, gateway.router_url)
    return [router, *(_peer_cluster(gateway, region, url) for region, url in sorted(gateway.peers.items()))]


def routes(gateway: Gateway) -> list[Json]:
    """Return the route configuration; a single resource."""
    shared, tables = shared_rules(gateway), [table for _, table in sorted(gateway.tables.items())]
    own = [rule for table in tables for rule in model_routes(gateway, table)]
    return route_configuration([*shared.first, *own, *shared.last])


def route_configuration(rules: Sequence[Json]) -> list[Json]:
    """Return the resource of these rules, of which the first match counts."""
    host = {"name": ROUTES_NAME, "domains": ["*"], "retry_policy": RETRIES, "routes": list(rules)}
    return [
        {
            "@type": _type("config.route.v3.RouteConfiguration"),
            "name": ROUTES_NAME,
            "virtual_hosts": [host],
            "response_headers_to_remove": [REFUSED_HEADER],
        }
    ]


@dataclass(frozen=True, kw_only=True)
class SharedRules:
    """The rules that belong to no model: before and after those that do."""

    first: list[Json]
    last: list[Json]


def shared_rules(gateway: Gateway) -> SharedRules:
    """Return the rules that belong to no model."""
    told = sorted(gateway.tables.keys() - gateway.closed)
    all_models = [_route({"path": path}, _to_router(gateway)) for path in OF_ALL_MODELS]
    openai = openai_config.streaming(_to_router(gateway), idle_seconds=gateway.stream_idle_seconds)
    return SharedRules(
        first=[*_refuse_sources(gateway.allowed), *all_models],
        last=[
            _route({"path": "/v2"}, _to_router(gateway)),
            _route({"path_separated_prefix": "/v2/health"}, _to_router(gateway)),
            _no_model(gateway, told),
            _route(openai_config.of_any_model(), openai),
            _refusal({"prefix": "/"}, 404, _NO_SUCH_PATH),
        ],
    )


def around_models(gateway: Gateway) -> tuple[Any, ...]:
    """Return the inputs that the rules of all models share.

    While they are equal, a model's rules follow from its table, and from whether it is among `closed`.
    """
    return gateway.region, frozenset(gateway.peers), gateway.router_proof, gateway.request_seconds


def _no_model(gateway: Gateway, known: Sequence[str]) -> Json:
    """Refuse unknown models. If some models need a credential, the router refuses both in the same words."""
    match: Json = {"prefix": "/v2/models/"}
    if gateway.closed:
        return _route(match, _to_router(gateway))
    return _refusal(match, 404, f"no such model in region {gateway.region}; known: {some(known)}")


def _absent(gateway: Gateway, table: RouteTable, match: Json, served: Iterable[int]) -> Json:
    """Refuse unknown generations. For a model that needs a credential, the router does so, after the authorisation."""
    if table.model in gateway.closed:
        return _route(match, _to_router(gateway))
    known = some(map(str, served))
    return _refusal(
        match, 404, f"model {table.model} has no such generation in region {gateway.region}; served: {known}"
    )


def _refuse_sources(allowed: AllowedHosts) -> list[Json]:
    """Refuse foreign hosts, and browser pages: a gateway has no pages. Before all other rules."""
    origin = {"name": "origin", "present_match": True}
    foreign = [origin, *(_unless("origin", {"exact": one}) for one in allowed.origins)]
    other = [_unless(":authority", {"safe_regex": {"regex": LOOPBACK_AUTHORITY}})]
    for name in allowed.names:
        other += [_unless(":authority", {"exact": name}), _unless(":authority", {"prefix": f"{name}:"})]
    cross = {"name": "sec-fetch-site", "string_match": {"exact": "cross-site", "ignore_case": True}}
    return [
        _refusal({"prefix": "/", "headers": other}, 421, _NO_SUCH_HOST),
        _refusal({"prefix": "/", "headers": foreign}, 403, _FOREIGN),
        _refusal({"prefix": "/", "headers": [cross, {**origin, "invert_match": True}]}, 403, _FOREIGN),
    ]


def _unless(header: str, match: Json) -> Json:
    case = {} if "safe_regex" in match else {"ignore_case": True}
    return {"name": header, "invert_match": True, "string_match": {**match, **case}}


def model_routes(gateway: Gateway, table: RouteTable) -> list[Json]:
    """Return, in order: a generation pinned by header, one named by the path, then the choice by weight."""
    base = f"/v2/models/{table.model}"
    versions = f"{base}/versions"
    pins = _pins(gateway, table)
    rules = []
    for generation, pin in pins.items():
        rules.append(_route(_under(base, _exactly(generation), *pin.unless), pin.action))
    pinned = {"name": GENERATION_HEADER, "present_match": True}
    rules.append(_absent(gateway, table, _under(base, pinned), pins))
    for generation, pin in pins.items():
        named = _under(f"{versions}/{generation}", *pin.unless)
        rules.append(_route(named, pin.action, headers={GENERATION_HEADER: str(generation)}))
    rules.append(_absent(gateway, table, _under(versions), pins))
    return [*rules, _build_weighted(gateway, table, _under(base))]


@dataclass(frozen=True, kw_only=True)
class _Pin:
    """Target of a request for one generation, and the header that the request must not have."""

    action: Json
    unless: tuple[Json, ...] = ()


def _pins(gateway: Gateway, table: RouteTable) -> dict[int, _Pin]:
    """Return the generations that a client may name.

    These are those served here, and those that this region's shares send elsewhere.
    """
    pins = {served.generation: _Pin(action=_to_router(gateway)) for served in table.served}
    bounced = {"name": FORWARDED_HEADER, "present_match": True, "invert_match": True}
    for share in sorted(usable_shares(gateway.region, gateway.peers, table), key=lambda share: -share.fraction):
        if share.generation not in pins:
            headers = [_header(FORWARDED_HEADER, gateway.region)]
            action = {**_action(gateway, upstream_name(share.to)), "request_headers_to_add": headers}
            pins[share.generation] = _Pin(action=action, unless=(bounced,))
    return dict(sorted(pins.items()))


def _build_weighted(gateway: Gateway, table: RouteTable, match: Json) -> Json:
    shares = usable_shares(gateway.region, gateway.peers, table)
    if not shares and table.model in gateway.closed:
        return _route(match, _to_router(gateway), headers={NO_CAPACITY_HEADER: "1"})
    if not shares:
        message = no_capacity(gateway.region, table)
        return _refusal(match, 503, message, headers={"retry-after": str(openai_config.RETRY_AFTER_SECONDS)})
    counts = weights([share.fraction for share in shares], WEIGHT_TOTAL)
    entries = [_entry(gateway, share, weight) for share, weight in zip(shares, counts, strict=True)]
    action = _action(gateway, None)
    action["route"]["weighted_clusters"] = {"clusters": entries}
    return _route(match, action)


def _entry(gateway: Gateway, share: RouteShare, weight: int) -> Json:
    headers = [_header(GENERATION_HEADER, str(share.generation)), _header(CHOSEN_HEADER, "weight")]
    if share.to == gateway.region:
        return {"name": ROUTER_CLUSTER, "weight": weight, **_proving(gateway, *headers)}
    headers.append(_header(FORWARDED_HEADER, gateway.region + CHOSEN_BY_WEIGHT))
    return {"name": upstream_name(share.to), "weight": weight, "request_headers_to_add": headers}


def _to_router(gateway: Gateway) -> Json:
    return {**_action(gateway, ROUTER_CLUSTER), **_proving(gateway)}


def _proving(gateway: Gateway, *headers: Json) -> Json:
    """Add headers, and the proof of the gateway: to requests for its router, and for no other cluster."""
    proof = [] if gateway.router_proof is None else [_header(PROOF_HEADER, gateway.router_proof)]
    return {"request_headers_to_add": [*headers, *proof]} if headers or proof else {}


def _action(gateway: Gateway, cluster: str | None) -> Json:
    """Forward to a cluster, with the virtual host's retries."""
    route = {"timeout": f"{gateway.request_seconds}s"}
    if cluster is None:
        return {"route": route}
    return {"route": {"cluster": cluster, **route}, "request_headers_to_remove": [CHOSEN_HEADER]}


def _route(match: Json, action: Json, *, headers: Mapping[str, str] | None = None) -> Json:
    added = [_header(name, value) for name, value in (headers or {}).items()]
    added = [*action.get("request_headers_to_add", []), *added]
    return {"match": match, **action, **({"request_headers_to_add": added} if added else {})}


def _refusal(match: Json, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> Json:
    answer = {"status": status, "body": {"inline_string": _short(message)}}
    added = [_header(name, value) for name, value in (headers or {}).items()]
    return {"match": match, "direct_response": answer, **({"response_headers_to_add": added} if added else {})}


def _short(message: str) -> str:
    """Cut a text at Envoy's limit: it would refuse the whole configuration of all models for one longer text."""
    encoded = message.encode()
    if len(encoded) <= LONGEST_ANSWER_BYTES:
        return message
    return encoded[: LONGEST_ANSWER_BYTES - len("...")].decode(errors="ignore") + "..."


def _under(base: str, *headers: Json) -> Json:
    return {"path_separated_prefix": base, **({"headers": list(headers)} if headers else {})}


def _exactly(generation: int) -> Json:
    return {"name": GENERATION_HEADER, "string_match": {"exact": str(generation)}}


def _header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _peer_cluster(gateway: Gateway, region: str, url: str) -> Json:
    cluster = _cluster(upstream_name(region), url, filters=_PEER_FILTERS)
    if gateway.tls is not None and url.startswith("https://"):
        cluster["transport_socket"] = gateway.tls.upstream(region)
    (protocol,) = cluster["typed_extension_protocol_options"].values()
    protocol["common_http_protocol_options"]["max_connection_duration"] = f"{PEER_CLIENT_SECONDS}s"
    return cluster


def _cluster(name: str, url: str, *, filters: Sequence[Json] = ()) -> Json:
    """Return a cluster. `filters` work on its answers before the gateway reads any of their headers."""
    protocol: Json = {
        "@type": _type("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "common_http_protocol_options": {"idle_timeout": f"{UPSTREAM_IDLE_SECONDS}s"},
        "explicit_http_config": {"http_protocol_options": {}},
        **({"http_filters": list(filters)} if filters else {}),
    }
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), MANY)
    endpoint = {"endpoint": {"address": _upstream(url)}}
    return {
        "@type": _type("config.cluster.v3.Cluster"),
        "name": name,
        "type": "STATIC" if is_socket_url(url) or _is_ip(urlsplit(url).hostname or LOOPBACK) else "STRICT_DNS",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _answer_filters() -> Sequence[Json]:
    """Return the filters of a peer's answers: it steers neither this gateway's retries nor the client's browser."""
    names: list[Json] = [{"remove": name} for name in sorted(set(INNER_HEADERS) - set(ANSWER_HEADERS))]
    names += [{"remove": "set-cookie"}]
    names += [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("access-control-", "x-envoy-")]
    mutation = "extensions.filters.http.header_mutation.v3.HeaderMutation"
    config = {"@type": _type(mutation), "mutations": {"response_mutations": names}}
    codec = {"@type": _type("extensions.filters.http.upstream_codec.v3.UpstreamCodec")}
    return (
        {"name": "envoy.filters.http.header_mutation", "typed_config": config},
        {"name": "envoy.filters.http.upstream_codec", "typed_config": codec},
    )


_PEER_FILTERS = _answer_filters()


def _upstream(url: str) -> Json:
    if is_socket_url(url):
        return {"pipe": {"path": socket_path(url, Component.GATEWAY)}}
    target = urlsplit(url)
    return _address(target.hostname or LOOPBACK, target.port or 80)


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def as_json(config: Json) -> bytes:
    """Return the bytes of a configuration file. Envoy reads files named .json as JSON.

    The standard library indents in Python, 35 times slower: 0.14 s for a bootstrap, in the event loop of its agent.
    """
    return orjson.dumps(config, option=orjson.OPT_INDENT_2)
