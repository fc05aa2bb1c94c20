"""Sources in a manifest: exactly one kind, intervals, addresses, parts, promotion rules."""

import pytest
from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.manifest.durations import parse_duration
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.sources import PromotionRule, SourceSpec
from ipnext.model.registry.sources import FoundVersion
from ipnext.model.value import canonical_json

pytestmark = pytest.mark.trust


def source(**given):
    return SourceSpec.model_validate({"name": "nightly", **given})


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"directory": {"path": "/in"}}, "directory"),
        ({"s3": {"uri": "s3://bucket/a/b"}}, "s3"),
        ({"s3": {"uri": "s3://bucket"}}, "s3"),
        ({"mlflow": {"uri": "https://mlflow.example.com", "model": "ctr", "alias": "champion"}}, "mlflow"),
        ({"mlflow": {"uri": "http://127.0.0.1:5000", "model": "ctr"}}, "mlflow"),
        ({"oci": {"repository": "registry.example.com:5000/team/ctr", "tag": "prod"}}, "oci"),
        ({"push": {}}, "push"),
        ({"plugin": {"kind": "kafka", "settings": {"topic": "x"}}}, "kafka"),
    ],
)
def test_each_kind_is_read_and_written_alike(given, kind):
    found = source(**given)
    assert found.kind == kind
    assert SourceSpec.model_validate_json(canonical_json(found)) == found
    assert [key for key in found.model_dump(by_alias=True) if key in given] == list(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "exactly one of directory, s3, mlflow, oci, push, plugin has to stand here; got none"),
        ({"push": {}, "s3": {"uri": "s3://b/p"}}, "got s3 and push"),
        ({"push": {}, "every": "5"}, "'5' is not a duration"),
        ({"push": {}, "every": "0s"}, "is not a duration"),
        ({"push": {}, "every": "31d"}, "out of range; allowed: 1s to 30d"),
        ({"directory": {"path": "in"}}, "not an absolute path"),
        ({"directory": {"path": "/in/../etc"}}, "not an absolute path"),
        ({"s3": {"uri": "s3:///prefix"}}, "s3://BUCKET/PREFIX"),
        ({"s3": {"uri": "s3://bucket/p?x=1"}}, "s3://BUCKET/PREFIX"),
        ({"mlflow": {"uri": "http://mlflow.example.com", "model": "m"}}, "not encrypted"),
        ({"mlflow": {"uri": "https://user:pw@mlflow.example.com", "model": "m"}}, "without credentials"),
        *(
            ({"mlflow": {"uri": f"https://m.example.com/team-a/{path}", "model": "m"}}, "not the URL of a server")
            for path in ("%2e%2e/team-b", ".%2e/team-b", "..\\team-b", "..;/team-b", "../team-b", "/team-b", "./x")
        ),
        ({"mlflow": {"uri": "file:///etc", "model": "m"}}, "not the URL of a server"),
        ({"mlflow": {"uri": "https://a/\nb", "model": "m"}}, "not the URL of a server"),
        ({"oci": {"repository": "ctr"}}, "HOST[:PORT]/NAME"),
        ({"oci": {"repository": "host/../x"}}, "HOST[:PORT]/NAME"),
        ({"oci": {"repository": "host/ctr", "tag": "a/b"}}, "is not a tag"),
        ({"push": {"path": "/x"}}, "Extra inputs are not permitted"),
        ({"push": {}, "promote": {"metrics": [{"name": "auc"}]}}, "at least one of atLeast and atMost"),
    ],
)
def test_what_is_wrong_is_named(given, told):
    with pytest.raises(ValidationError) as refused:
        source(**given)
    assert told in str(refused.value)


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("15m", 900), ("2h", 7200), ("1d", 86400)])
def test_durations(text, seconds):
    assert parse_duration(text).total_seconds() == seconds


def manifest(*sources, parts=("dense",)):
    spec = {
        "parts": [{"name": part, "hardware": [{"kind": "cpu", "units": 1, "qps": 1}]} for part in parts],
        "demand": [{"region": "eu", "qps": 1}],
        "sources": list(sources),
    }
    if len(parts) > 1:
        nodes = [{"name": part, "part": part, "inputs": {"x": "request.x"}} for part in parts]
        spec["graph"] = {"nodes": nodes, "outputs": {"y": f"{parts[0]}.y"}}
    return {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "ctr"}, "spec": spec}


def test_names_differ_and_parts_are_those_of_the_model():
    push = {"name": "a", "push": {}}
    parse_manifest(manifest(push))
    for sources, parts, told in (
        ((push, push), ("dense",), "names must differ"),
        ((push,), ("dense", "sparse"), "sources.0.part: has to be given for a model of several parts"),
        (({**push, "part": "wide"},), ("dense",), "sources.0.part: 'wide' is no part of the model; allowed: dense"),
    ):
        with pytest.raises(InvalidInput, match=told):
            parse_manifest(manifest(*sources, parts=parts))


@pytest.mark.parametrize(
    ("metrics", "failure"),
    [
        ({"auc": 0.7}, ""),
        ({"auc": 0.69}, "metric auc is 0.69; at least 0.7 is asked for"),
        ({"auc": 0.95}, "metric auc is 0.95; at most 0.9 is asked for"),
        ({"auc": float("nan")}, "metric auc is nan; at least 0.7 is asked for"),
        ({}, "it has no metric 'auc'"),
    ],
)
def test_a_metric_has_to_lie_in_its_range(metrics, failure):
    rule = PromotionRule.model_validate({"metrics": [{"name": "auc", "atLeast": 0.7, "atMost": 0.9}]})
    assert rule.describe_failure(FoundVersion.model_construct(key="1", place="x", tags={}, metrics=metrics)) == failure


def test_every_tag_has_to_be_there():
    rule = PromotionRule(tags={"a": "1", "b": "2"})
    told = [
        rule.describe_failure(FoundVersion(key="1", place="x", tags=t))
        for t in ({"a": "1", "b": "2"}, {"a": "1"}, {"a": "3"})
    ]
    assert told == ["", "tag 'b' is not set; '2' is asked for", "tag 'a' is '3'; '1' is asked for"]
