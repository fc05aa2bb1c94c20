"""What the rendered configuration says; how Envoy follows it is shown in test_agent_gateway.py."""

import json
from dataclasses import replace

import pytest

from ipnext.infra.envoy import bootstrap
from ipnext.infra.envoy import config as envoy
from ipnext.infra.envoy.listeners import PEER_SECONDS, EgressListener, Listeners, certificate
from ipnext.infra.envoy.public_listener import PublicListener
from ipnext.infra.envoy.source_groups import GROUPS, SourceLimit
from ipnext.names import CLIENT_HEADERS, INNER_HEADERS


@pytest.fixture
def gateway(builder):
    def gateway(*tables, peers=None):
        return envoy.Gateway(
            region="eu",
            router_url="http://127.0.0.1:1",
            peers=peers or {},
            tables={table.model: table for table in tables},
            request_seconds=60.0,
        )

    return gateway


def weighted(routes):
    """(cluster, generation, weight) of the one route that chooses by weight."""
    for route in routes[0]["virtual_hosts"][0]["routes"]:
        for entry in route.get("route", {}).get("weighted_clusters", {}).get("clusters", ()):
            headers = {h["header"]["key"]: h["header"]["value"] for h in entry["request_headers_to_add"]}
            yield entry["name"], headers["x-ipnext-generation"], entry["weight"]


def test_what_is_asked_of_all_models_goes_to_the_router(gateway, builder):
    """Behind the rules of any model, "no such model" would be the answer."""
    [config] = envoy.routes(gateway(builder("m").table(1, {1: 1.0})))
    rules = config["virtual_hosts"][0]["routes"]
    paths = [rule["match"].get("path") for rule in rules]
    models = min(
        n for n, rule in enumerate(rules) if rule["match"].get("path_separated_prefix", "").startswith("/v2/models")
    )
    for path in ("/v2/repository/index", "/v2/models/stats"):
        assert rules[paths.index(path)]["route"]["cluster"] == envoy.ROUTER_CLUSTER
        assert paths.index(path) < models


def test_unmet_demand_is_spread_over_what_is_there(gateway, builder):
    routes = envoy.routes(gateway(builder("m").table(1, {1: 0.3, 2: 0.1})))
    assert list(weighted(routes)) == [("router", "1", 7_500), ("router", "2", 2_500)]


def test_a_share_without_traffic_is_left_out(gateway, builder):
    routes = envoy.routes(gateway(builder("m").table(1, {1: 1.0, 2: 0.0})))
    assert list(weighted(routes)) == [("router", "1", 10_000)]


def test_shares_of_the_same_generation_are_one(gateway, builder):
    table = builder("m").table(1, {1: 0.5})
    routes = envoy.routes(gateway(table.model_copy(update={"shares": table.shares * 2})))
    assert list(weighted(routes)) == [("router", "1", 10_000)]


def test_a_region_whose_gateway_is_unknown_gets_no_traffic(gateway, builder):
    table = builder("m").table(1, {1: 0.5, ("us", 1): 0.25, ("ap", 1): 0.25})
    routes = envoy.routes(gateway(table, peers={"us": "http://127.0.0.1:2"}))
    assert list(weighted(routes)) == [("router", "1", 6_667), ("region-us", "1", 3_333)]


def test_a_peer_by_name_is_resolved_and_one_by_address_is_not(gateway):
    peers = {"us": "http://us.gateway.example:80", "ap": "http://127.0.0.1:7"}
    kinds = {cluster["name"]: cluster["type"] for cluster in envoy.clusters(gateway(peers=peers))}
    assert kinds == {"router": "STATIC", "region-ap": "STATIC", "region-us": "STRICT_DNS"}


def test_direct_answers_stay_below_what_envoy_takes(gateway, builder):
    tables = [builder("m" * 60 + f"{n:03}").table(1, {1: 1.0}) for n in range(100)]
    tables.append(builder("many").table(1, dict.fromkeys(range(1, 300), 1 / 300)))
    for route in envoy.routes(gateway(*tables))[0]["virtual_hosts"][0]["routes"]:
        text = route.get("direct_response", {}).get("body", {}).get("inline_string", "")
        assert len(json.dumps(text)) < 4096


def test_what_a_gateway_chose_for_a_client_is_told_and_a_pin_is_not(gateway, builder):
    model = builder("m")
    table = model.table(1, {1: 0.5, ("us", 2): 0.5})
    served = tuple(one.model_copy(update={"engines": {"dense": "vllm"}}) for one in table.served)
    config = envoy.routes(gateway(table.model_copy(update={"served": served}), peers={"us": "http://127.0.0.1:2"}))
    told = {"weighted": [], "pinned": []}
    for route in config[0]["virtual_hosts"][0]["routes"]:
        entries = route.get("route", {}).get("weighted_clusters", {}).get("clusters", ())
        told["weighted"] += [("x-ipnext-chosen-by", "weight") in _added(entry) for entry in entries]
        told["pinned"] += [] if entries else [("x-ipnext-chosen-by", "weight") in _added(route)]
    assert told["weighted"] == [True, True]
    assert not any(told["pinned"])


def test_what_clients_say_of_who_chose_is_taken_from_them(gateway, builder):
    table = builder("m").table(1, {1: 0.5, ("us", 2): 0.5})
    config = envoy.routes(gateway(table, peers={"us": "http://127.0.0.1:2"}))
    sent_on = [rule for rule in config[0]["virtual_hosts"][0]["routes"] if "route" in rule]
    weighted = [rule for rule in sent_on if "weighted_clusters" in rule["route"]]
    assert weighted
    for rule in sent_on:
        removed = rule.get("request_headers_to_remove", [])
        assert ("x-ipnext-chosen-by" in removed) == (rule not in weighted)
    forwarded = [value for rule in sent_on for value in _values(rule, "x-ipnext-forwarded-by")]
    assert sorted({*forwarded}) == ["eu", "eu;chosen-by=weight"], "a pin, and the weight's choice"


def _values(rule, header):
    clusters = rule["route"].get("weighted_clusters", {}).get("clusters", ())
    return [value for entry in (rule, *clusters) for key, value in _added(entry) if key == header]


def _added(entry):
    return {(h["header"]["key"], h["header"]["value"]) for h in entry.get("request_headers_to_add", ())}


def test_only_the_router_gets_the_proof_of_the_gateway(gateway, builder):
    table = builder("m").table(1, {1: 0.5, ("us", 2): 0.5})
    proved = replace(gateway(table, peers={"us": "http://127.0.0.1:2"}), router_proof="proof")
    rules = envoy.routes(proved)[0]["virtual_hosts"][0]["routes"]
    own, foreign = [], []
    for rule in (rule for rule in rules if "route" in rule):
        if "cluster" in rule["route"]:
            (own if rule["route"]["cluster"] == envoy.ROUTER_CLUSTER else foreign).append(rule)
            continue
        assert "x-ipnext-caller-proof" not in dict(_added(rule)), "it would go to other regions"
        for entry in rule["route"]["weighted_clusters"]["clusters"]:
            (own if entry["name"] == envoy.ROUTER_CLUSTER else foreign).append(entry)
    assert own
    assert {dict(_added(entry)).get("x-ipnext-caller-proof") for entry in own} == {"proof"}
    assert foreign
    assert {dict(_added(entry)).get("x-ipnext-caller-proof") for entry in foreign} == {None}
    assert "proof" not in json.dumps(envoy.routes(replace(proved, router_proof=None)))


def test_of_models_that_need_a_credential_the_gateway_itself_says_nothing(builder):
    tables = [
        builder(name).table(1, shares) for name, shares in (("free", {1: 1.0}), ("secret", {1: 1.0}), ("empty", {}))
    ]
    given = envoy.Gateway(
        region="eu",
        router_url="http://127.0.0.1:1",
        peers={},
        tables={table.model: table for table in tables},
        request_seconds=60.0,
        closed=frozenset({"secret", "empty"}),
    )
    rules = envoy.routes(given)[0]["virtual_hosts"][0]["routes"]
    said = [rule["direct_response"]["body"]["inline_string"] for rule in rules if "direct_response" in rule]
    assert any("model free has no such generation" in text for text in said)
    assert not [text for text in said if "secret" in text or "empty" in text or "no such model" in text]
    [empty] = [
        r
        for r in rules
        if r["match"].get("path_separated_prefix") == "/v2/models/empty" and "headers" not in r["match"]
    ]
    assert _added(empty) == {("x-ipnext-no-capacity", "1")}
    assert empty["route"]["cluster"] == envoy.ROUTER_CLUSTER


def test_the_public_listener_takes_inner_headers_from_clients_and_that_for_peers_does_not():
    listeners = Listeners(peer_port=2)
    given = {"region": "eu", "routes_file": "r", "clusters_file": "c", "listeners": listeners}
    public, peers = bootstrap.bootstrap(1, "admin.sock", **given)["static_resources"]["listeners"]
    removed = {
        change["remove"]
        for change in _connections(public)["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
    }
    assert removed == set(INNER_HEADERS)
    assert not removed & set(CLIENT_HEADERS)
    assert "early_header_mutation_extensions" not in _connections(peers)
    assert peers["address"]["socket_address"]["address"] == "127.0.0.1"
    assert "transport_socket" not in public["filter_chains"][0]


def test_connections_between_gateways_end_and_the_caller_ends_them_first():
    """Their certificates are checked again with the next ones."""
    given = {"region": "eu", "routes_file": "r", "clusters_file": "c", "listeners": Listeners(peer_port=2)}
    public, peers = bootstrap.bootstrap(1, "admin.sock", **given)["static_resources"]["listeners"]
    assert _connections(peers)["common_http_protocol_options"]["max_connection_duration"] == "300s"
    assert "max_connection_duration" not in _connections(public)["common_http_protocol_options"]
    assert envoy.PEER_CLIENT_SECONDS < PEER_SECONDS


def test_a_certificate_is_followed_and_not_written_into_the_configuration(tmp_path):
    public = PublicListener(host="192.0.2.1", certificate=tmp_path / "c.pem", key=tmp_path / "k.pem")
    listeners = Listeners(peer_port=2, public=public, certificate_file="certificate.json")
    given = {"region": "eu", "routes_file": "r", "clusters_file": "c", "listeners": listeners}
    listener, peers = bootstrap.bootstrap(1, "admin.sock", **given)["static_resources"]["listeners"]
    assert listener["address"]["socket_address"]["address"] == "192.0.2.1"
    tls = listener["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    assert (
        tls["tls_certificate_sds_secret_configs"][0]["sds_config"]["path_config_source"]["path"] == "certificate.json"
    )
    assert "transport_socket" not in peers["filter_chains"][0], "peers prove themselves otherwise"
    [secret] = certificate(public)
    assert secret["tls_certificate"]["watched_directory"]["path"] == str(tmp_path)


def test_connections_without_a_request_end_at_both_listeners_for_clients_and_peers():
    """Those of the egress are the router's own, which closes them itself."""
    limits = bootstrap.GatewayLimits(keep_alive_seconds=7.0)
    listeners = Listeners(peer_port=2, egress=EgressListener(path="egress.sock", proof="p"))
    given = {"region": "eu", "routes_file": "r", "clusters_file": "c", "listeners": listeners, "limits": limits}
    public, peers, egress = bootstrap.bootstrap(1, "admin.sock", **given)["static_resources"]["listeners"]
    for one in (public, peers):
        assert _connections(one)["common_http_protocol_options"]["idle_timeout"] == "7.0s"
    assert "common_http_protocol_options" not in _connections(egress)


def test_each_group_of_sources_has_all_of_the_listener_and_a_limit_of_its_own(tmp_path):
    public = PublicListener(host="192.0.2.1", certificate=tmp_path / "c.pem", key=tmp_path / "k.pem")
    limits = bootstrap.GatewayLimits(sources=SourceLimit(connections=9, seed=4))
    listeners = Listeners(public=public, peer_port=2)
    given = {"region": "eu", "routes_file": "r", "clusters_file": "c", "listeners": listeners, "limits": limits}
    found, peers = bootstrap.bootstrap(1, "admin.sock", **given)["static_resources"]["listeners"]
    assert len({chain["name"] for chain in found["filter_chains"]}) == GROUPS
    for chain in found["filter_chains"]:
        limit, manager = chain["filters"]
        assert limit["typed_config"]["max_connections"] == 9
        assert manager["typed_config"]["early_header_mutation_extensions"]
        assert chain["transport_socket"]
        assert chain["transport_socket_connect_timeout"] == "20.0s"
    hashes = [
        matcher["predicate"]["single_predicate"]["custom_match"]["typed_config"]
        for matcher in found["filter_chain_matcher"]["matcher_list"]["matchers"]
    ]
    assert [one["threshold"] for one in hashes] == list(range(GROUPS - 1, 0, -1)), "the first match counts"
    assert {(one["modulo"], one["seed"]) for one in hashes} == {(GROUPS, 4)}
    assert len(peers["filter_chains"]) == 1, "peers prove who they are"


def _connections(listener):
    return listener["filter_chains"][0]["filters"][-1]["typed_config"]
