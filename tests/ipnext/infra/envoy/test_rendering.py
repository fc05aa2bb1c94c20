"""The text of Envoy's routes is that of the whole configuration.

It is made of what each model's table changed.
"""

import json
from dataclasses import replace

import pytest

from ipnext.infra.envoy import config as envoy
from ipnext.infra.envoy import rendering as envoy_rendering
from ipnext.infra.envoy.rendering import RouteRenderer
from ipnext.network.allowed_hosts import AllowedHosts
from tests.ipnext.infra.envoy.test_config import gateway  # noqa: F401 - a fixture

PEERS = {"us": "http://127.0.0.1:2"}


@pytest.fixture
def generating(builder):
    def generating(name, revision, shares):
        table = builder(name).table(revision, shares, served=[1, 2])
        served = tuple(one.model_copy(update={"engines": {"dense": "vllm"}}) for one in table.served)
        return table.model_copy(update={"served": served})

    return generating


@pytest.fixture
def steps(gateway, builder, generating):  # noqa: F811 - the fixture
    """Gateways as they follow one another in a region's life."""
    a, b = builder("a"), builder("b")
    one = gateway(a.table(1, {1: 1.0}), peers=PEERS)
    two = gateway(a.table(1, {1: 1.0}), b.table(1, {("us", 1): 1.0}), generating("c", 1, {1: 1.0}), peers=PEERS)
    three = replace(two, tables={**two.tables, "a": a.table(2, {1: 0.5, 2: 0.5})})
    return {
        "nothing": gateway(),
        "one model": one,
        "three models": two,
        "another table": three,
        "one is closed": replace(three, closed=frozenset({"a", "c"})),
        "a peer is gone": replace(three, peers={}),
        "another time limit": replace(three, request_seconds=5.0),
        "another limit of streams": replace(three, stream_idle_seconds=7.0),
        "another name is allowed": replace(three, allowed=AllowedHosts(names=("example.com",))),
        "models are gone": replace(three, tables={"c": generating("c", 2, {2: 1.0})}),
        "nothing again": gateway(),
    }


def test_the_text_is_that_of_the_whole_configuration_after_each_change(steps):
    rendering = RouteRenderer()
    for version, (name, given) in enumerate(steps.items()):
        told = json.loads(rendering.text(version, given))
        assert told == envoy.discovery(version, envoy.routes(given)), name


def test_only_the_models_whose_table_changed_are_rendered_again(steps, monkeypatch):
    rendered = []
    real = envoy.model_routes
    monkeypatch.setattr(
        envoy_rendering.config, "model_routes", lambda g, table: rendered.append(table.model) or real(g, table)
    )
    rendering = RouteRenderer()
    told = {}
    for version, (name, given) in enumerate(steps.items()):
        rendered.clear()
        rendering.text(version, given)
        told[name] = sorted(rendered)
    assert told["three models"] == ["b", "c"]
    assert told["another table"] == ["a"]
    assert told["one is closed"] == ["a", "c"]
    assert told["a peer is gone"] == ["a", "b", "c"]
    assert told["models are gone"] == ["c"]


def test_a_text_that_envoy_would_refuse_is_cut(gateway, builder):  # noqa: F811 - the fixture
    """It would refuse the configuration of all models with it."""
    table = builder("m").table(1, {}).model_copy(update={"unmet_rules": ("é" * 5_000,)})
    [config] = envoy.routes(gateway(table))
    answers = [rule.get("direct_response", {}) for rule in config["virtual_hosts"][0]["routes"]]
    texts = [answer["body"]["inline_string"] for answer in answers if answer]
    assert max(len(text.encode()) for text in texts) <= envoy.LONGEST_ANSWER_BYTES
    assert any(text.startswith("model m serves no users of region eu") and text.endswith("...") for text in texts)
