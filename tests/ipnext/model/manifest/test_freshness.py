"""`freshness` of a part: durations, the objective, and manifests without it."""

import pytest
from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.manifest.freshness import FreshnessSpec
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.part import PartSpec
from ipnext.model.value import canonical_json

CPU = {"hardware": [{"kind": "cpu", "units": 1, "qps": 1}]}


def part(**given):
    return PartSpec.model_validate({"name": "dense", **given})


def test_it_is_read_and_written_alike():
    found = part(**CPU, freshness={"target": "15m"})
    assert found.freshness == FreshnessSpec(target="15m", objective=0.99)
    assert found.freshness.target_seconds == 900
    assert PartSpec.model_validate_json(canonical_json(found)) == found


def test_a_part_without_it_has_the_document_that_it_had():
    assert "freshness" not in canonical_json(part(**CPU))


def test_an_adapter_may_have_it():
    found = part(engine="vllm", adapterOf="llm", freshness={"target": "1h"})
    assert PartSpec.model_validate_json(canonical_json(found)) == found
    assert "freshness" not in canonical_json(part(engine="vllm", adapterOf="llm"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "target"),
        ({"target": "15"}, "'15' is not a duration; allowed: a whole number and s, m, h or d"),
        ({"target": 15}, "target"),
        ({"target": "367d"}, "'367d' is out of range; allowed: 1s to 366d"),
        ({"target": "1m", "objective": 0}, "greater than 0"),
        ({"target": "1m", "objective": 1.1}, "less than or equal to 1"),
        ({"target": "1m", "objective": "99%"}, "objective"),
        ({"target": "1m", "window": "7d"}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_named(given, told):
    with pytest.raises(ValidationError) as refused:
        part(**CPU, freshness=given)
    assert told in str(refused.value)


def test_a_refusal_of_a_manifest_names_the_place():
    spec = {"parts": [{"name": "a", **CPU, "freshness": {"target": "soon"}}], "demand": [{"region": "eu", "qps": 1}]}
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "ctr"}, "spec": spec}
    with pytest.raises(InvalidInput, match=r"parts\.0\.freshness\.target") as refused:
        parse_manifest(document)
    assert "'soon' is not a duration" in str(refused.value)
