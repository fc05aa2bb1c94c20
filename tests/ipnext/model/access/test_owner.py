"""Owners' manifests, and what a model counts for in the quotas of its owner."""

import pytest

from ipnext.errors import InvalidInput, QuotaExceeded
from ipnext.model.manifest.derived.owner_claims import (
    QuotaClaim,
    check_quotas,
    claims_of,
    claims_of_wishes,
    exceeds,
    quotas_of,
)
from ipnext.model.manifest.parser import parse_manifest

NONE = QuotaClaim({}, is_counted=False)
DEFAULT_REPLICAS = 100
"""Of an owner without a quota of them."""


def owner(**spec):
    return parse_manifest({"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": "search"}, "spec": spec})


def model(*options, demand=(("eu", 250.0),), parts=1, unit="qps", **spec):
    listed = options or ({"kind": "l4", "units": 2, unit: 100},)
    named = [{"name": f"p{i}", "hardware": list(listed), **spec.pop("part", {})} for i in range(parts)]
    nodes = [{"name": p["name"], "part": p["name"], "inputs": {"x": "request.x"}} for p in named]
    graph = {"graph": {"nodes": nodes, "outputs": {"y": "p0.y"}}} if parts > 1 else {}
    found = {"parts": named, "demand": [{"region": r, unit: q} for r, q in demand], **graph, **spec}
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "m", "owner": "search"}, "spec": found}
    return parse_manifest(document)


def check(claims, before, others, **quotas):
    check_quotas("search", quotas_of(owner(quotas=quotas), replicas=DEFAULT_REPLICAS), claims, before, others)


def test_units_are_those_of_the_replicas_that_the_demand_of_each_region_needs():
    assert claims_of(model())["units.l4"] == 6
    assert claims_of(model(demand=(("eu", 250.0), ("us", 50.0), ("asia", 0.0))))["units.l4"] == 8
    assert claims_of(model(demand=(("eu", 300.0),)))["units.l4"] == 6
    assert claims_of(model(parts=2))["units.l4"] == 12
    assert claims_of(model(part={"minReplicas": 5}))["units.l4"] == 10


def test_a_model_that_survives_the_loss_of_a_region_counts_twice():
    assert claims_of(model(survive="region"))["units.l4"] == 12


def test_options_on_two_kinds_count_in_full_for_both():
    found = claims_of(model({"kind": "l4", "units": 1, "qps": 100}, {"kind": "cpu", "units": 0.5, "qps": 10}))
    assert (found["units.l4"], found["units.cpu"]) == (3, 12.5)


def cut(*parts, default="rest", **spec):
    return model(split={"parts": [{"modules": [part["name"]], **part} for part in parts], "default": default}, **spec)


def test_hardware_of_the_parts_that_a_split_makes_counts_for_each_of_them():
    tables = {"name": "tables", "hardware": [{"kind": "h100", "units": 8, "qps": 50}]}
    found = claims_of(cut(tables))
    assert (found["units.h100"], found["units.l4"], found["replicas"]) == (40, 6, 8)
    dealt = claims_of(cut(tables | {"shard": {"by": "count", "count": 3}}))
    assert (dealt["units.h100"], dealt["units.l4"], dealt["replicas"]) == (120, 6, 18)


def test_a_split_without_hardware_of_its_own_counts_the_models_for_each_part():
    found = claims_of(cut({"name": "tables"}, {"name": "rest"}, part={"minReplicas": 4}, survive="region"))
    assert (found["units.l4"], found["replicas"]) == (32, 16)


def test_a_model_counts_whole_while_its_split_makes_less_of_it():
    small = claims_of(cut({"name": "rest", "hardware": [{"kind": "cpu", "units": 1, "qps": 500}]}))
    assert (small["units.l4"], small["units.cpu"], small["replicas"]) == (6, 1, 3)


@pytest.mark.parametrize(
    "given", [model(), model(survive="region", budgetPerHour=7), model(parts=2, part={"minReplicas": 9})]
)
def test_the_wishes_of_a_manifest_count_as_the_manifest_does(given):
    from activities.planning.problem import model_problem  # noqa: PLC0415

    declared = dict(claims_of(given))
    declared.pop("requestsPerSecond")
    assert claims_of_wishes(model_problem(given)) == declared
    assert not exceeds(claims_of_wishes(model_problem(given)), declared)
    assert exceeds(declared | {"replicas": declared["replicas"] + 1}, declared)


def test_replicas_count_however_small_their_share_of_a_unit_is_on_the_kind_that_needs_the_most():
    tiny = model({"kind": "cpu", "units": 0.01, "qps": 1}, demand=(("eu", 250.0),))
    assert (claims_of(tiny)["units.cpu"], claims_of(tiny)["replicas"]) == (2.5, 250)
    both = model({"kind": "l4", "units": 1, "qps": 100}, {"kind": "cpu", "units": 0.5, "qps": 10})
    assert claims_of(both)["replicas"] == 25
    assert claims_of(model(parts=2))["replicas"] == 6
    assert claims_of(model(part={"minReplicas": 5}))["replicas"] == 5
    assert claims_of(model(survive="region"))["replicas"] == 6


def test_a_quota_of_replicas_takes_the_place_of_the_default():
    assert {q: limit for q, (limit, _) in quotas_of(None, replicas=100).items()} == {"replicas": 100}
    given = quotas_of(owner(quotas={"replicas": 3000, "artifactBytes": 1}), replicas=100)
    assert {q: limit for q, (limit, _) in given.items()} == {"replicas": 3000}


def test_demand_counts_in_requests_and_not_in_tokens():
    assert claims_of(model())["requestsPerSecond"] == 250
    assert "requestsPerSecond" not in claims_of(model(unit="tokensPerSecond"))


def test_the_budget_counts_if_it_is_stated():
    assert claims_of(model(budgetPerHour=12))["dollarsPerHour"] == 12
    assert claims_of(model(budgetPerHour=0))["dollarsPerHour"] == 0
    assert "dollarsPerHour" not in claims_of(model())


@pytest.mark.parametrize(
    ("quotas", "claims", "others", "field", "words"),
    [
        ({"models": 3}, {}, {"models": 3}, "metadata.owner", "one more model; owner 'search' uses 3 of 3 models"),
        ({"units": {"l4": 10}}, {"units.l4": 6}, {"units.l4": 5}, "spec.parts",
         "6 units of l4; owner 'search' uses 5 of 10"),
        ({"dollarsPerHour": 50}, {"dollarsPerHour": 11}, {"dollarsPerHour": 40}, "spec.budgetPerHour",
         "uses 40 of 50 $/h"),
        ({"dollarsPerHour": 50}, {}, {"dollarsPerHour": 40}, "spec.budgetPerHour", "absent"),
        ({"requestsPerSecond": 500}, {"requestsPerSecond": 101}, {"requestsPerSecond": 400}, "spec.demand",
         "400 of 500"),
        ({"replicas": 8}, {"replicas": 5}, {"replicas": 4}, "spec.parts",
         "5 replicas; owner 'search' uses 4 of 8 replicas in its other models (quotas.replicas)"),
        ({}, {"replicas": 97}, {"replicas": 4}, "spec.parts",
         "97 replicas; owner 'search' uses 4 of 100 replicas in its other models (IPNEXT_OWNER_REPLICAS)"),
    ],
)  # fmt: skip
def test_a_claim_beyond_a_quota_is_refused_with_the_figure_used_and_the_limit(quotas, claims, others, field, words):
    with pytest.raises(QuotaExceeded) as refused:
        check(claims, NONE, others, **quotas)
    assert refused.value.field == field
    assert words in refused.value.message
    (allowed,) = refused.value.allowed
    assert allowed in refused.value.message
    assert allowed.startswith("at most ")


def test_a_claim_that_fills_a_quota_is_taken():
    quotas = {"models": 3, "units": {"l4": 11}, "dollarsPerHour": 51, "requestsPerSecond": 500}
    claims = {"units.l4": 6.0, "dollarsPerHour": 11.0, "requestsPerSecond": 100.0}
    others = {"models": 2.0, "units.l4": 5.0, "dollarsPerHour": 40.0, "requestsPerSecond": 400.0}
    check(claims, NONE, others, **quotas)


def test_below_a_quota_that_was_lowered_only_growth_is_refused():
    tight = {"models": 0, "units": {"l4": 1}, "dollarsPerHour": 1, "requestsPerSecond": 1}
    now = {"units.l4": 6.0, "requestsPerSecond": 250.0}
    others = {"models": 2.0, "units.l4": 5.0}
    check(now, QuotaClaim(now, is_counted=True), others, **tight)
    check(now | {"units.l4": 2.0}, QuotaClaim(now, is_counted=True), others, **tight)
    with pytest.raises(QuotaExceeded, match=r"units\.l4"):
        check(now | {"units.l4": 7.0}, QuotaClaim(now, is_counted=True), others, **tight)
    with pytest.raises(QuotaExceeded, match="one more model"):
        check(now, QuotaClaim(now, is_counted=False), others, **tight)
    with pytest.raises(QuotaExceeded, match="absent"):
        check({}, QuotaClaim({"dollarsPerHour": 9.0}, is_counted=True), {}, dollarsPerHour=1)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"members": [{"subject": "ann", "role": "viewer"}]}, "subject"),
        ({"members": [{"subject": "user:ann", "role": "owner"}]}, "role"),
        ({"members": [{"subject": "user:ann", "role": "viewer"}] * 2}, "twice"),
        ({"quotas": {"units": {"l4": -1}}}, "l4"),
        (
            {"quotas": {"gpus": 1}},
            "unknown field; allowed here: artifactBytes, callers, dollarsPerHour, models, replicas, requests",
        ),
        ({"priority": 1001}, "priority"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_by_its_field(spec, words):
    with pytest.raises(InvalidInput, match="spec") as refused:
        owner(**spec)
    assert words in refused.value.message


def test_callers_count_with_a_default_and_nothing_without_any():
    shared = model(access={"predictions": "authenticated", "callers": ["ads", "maps"]})
    assert claims_of(shared)["callers"] == 2
    assert "callers" not in claims_of(model())
    assert quotas_of(None, replicas=1, callers=7)["callers"] == (7, "IPNEXT_OWNER_CALLERS")
    assert quotas_of(owner(quotas={"callers": 3}), replicas=1, callers=7)["callers"] == (3, "quotas.callers")
