"""Requests a second or tokens a second: one unit for all of a model."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.throughput import REQUESTS, TOKENS, amount, unit_in


def document(hardware, demand, **spec):
    part = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "h100", "units": 2, **hardware}]}
    header = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "o"}}
    return header | {"spec": {"parts": [part], "demand": [{"region": "us", **demand}], **spec}}


@pytest.mark.parametrize(
    ("hardware", "demand", "unit"),
    [
        ({"qps": 2}, {"qps": 3}, REQUESTS),
        ({"tokensPerSecond": 900}, {"tokensPerSecond": 4000}, TOKENS),
        ({"profile": True}, {"tokensPerSecond": 4000}, TOKENS),
        ({"profile": True, "qps": 2}, {"qps": 3}, REQUESTS),
    ],
)
def test_a_model_has_the_unit_of_its_demand(hardware, demand, unit):
    spec = parse_manifest(document(hardware, demand)).spec
    assert (spec.unit, spec.demand[0].amount) == (unit, next(iter(demand.values())))


@pytest.mark.parametrize(
    ("hardware", "demand", "said"),
    [
        ({"qps": 2}, {"tokensPerSecond": 3}, r"parts\.0\.hardware\.0\.qps: 2 .* allowed: tokensPerSecond"),
        ({"tokensPerSecond": 2}, {"qps": 3}, r"hardware\.0\.tokensPerSecond: 2 .* allowed: qps"),
        ({"qps": 2, "tokensPerSecond": 2}, {"qps": 3}, r"hardware\.0: .*got qps 2 and tokensPerSecond 2"),
        ({}, {"qps": 3}, r"hardware\.0: h100: one of qps, tokensPerSecond and profile: true .* got none"),
        ({"profile": False}, {"qps": 3}, "got none"),
        ({"qps": 2}, {}, r"demand\.0: us: exactly one of qps and tokensPerSecond .* got none"),
        ({"qps": 2}, {"qps": 3, "tokensPerSecond": 1}, r"demand\.0: .*got qps 3 and tokensPerSecond 1"),
        (
            {"tokensPerSecond": 0},
            {"tokensPerSecond": 3},
            r"hardware\.0\.tokensPerSecond: .* greater than or equal to 0.000001",
        ),
        ({"qps": 2}, {"tokensPerSecond": -1}, r"demand\.0\.tokensPerSecond: .* greater than or equal to 0"),
    ],
)
def test_what_is_in_no_unit_or_in_two_is_refused_by_its_field(hardware, demand, said):
    with pytest.raises(InvalidInput, match=said):
        parse_manifest(document(hardware, demand))


def test_demand_in_two_units_is_refused():
    given = document({"qps": 2}, {"qps": 3})
    given["spec"]["demand"].append({"region": "eu", "tokensPerSecond": 40})
    with pytest.raises(InvalidInput, match=r"demand\.1\.tokensPerSecond: 40 .* allowed: qps"):
        parse_manifest(given)


def test_only_parts_of_vllm_are_measured():
    for field in ({"hardware": [{"kind": "cpu", "units": 1, "qps": 1, "profile": True}]}, {"latencyTarget": {}}):
        given = document({"qps": 2}, {"qps": 3})
        given["spec"]["parts"][0] |= field | {"engine": "torch"}
        if field == {"latencyTarget": {}}:
            given["spec"]["parts"][0]["latencyTarget"] = {"ttftMs": 5}
        with pytest.raises(InvalidInput, match="for parts of engine vllm; 'llm' has engine 'torch'"):
            parse_manifest(given)


def test_a_manifest_in_requests_is_written_as_it_was_before_there_were_tokens():
    plain = parse_manifest(document({"qps": 2}, {"qps": 3})).model_dump(mode="json", by_alias=True)
    assert plain["spec"]["demand"] == [{"region": "us", "qps": 3.0}]
    assert plain["spec"]["parts"][0]["hardware"] == [{"kind": "h100", "units": 2.0, "qps": 2.0}]
    assert "latencyTarget" not in plain["spec"]["parts"][0]
    assert parse_manifest(plain).model_dump(mode="json", by_alias=True) == plain


def test_amounts_are_told_in_their_unit():
    assert amount(4000, unit_in("chat", {"chat"})) == "4000 tokens/s"
    assert amount(2.5, unit_in("ranker", {"chat"})) == "2.5 requests/s"
