"""Limits of a new generation against the serving one, as a manifest has them."""

import pytest
from pydantic import ValidationError

from ipnext.model.manifest.manifest import ValidationSpec
from ipnext.model.value import canonical_json


def spec(**limits):
    return ValidationSpec.model_validate({"replay": limits})


def test_limits_are_read_and_written_alike():
    found = spec(maxAucDrop=0.002, part="ranker", topK=5)
    assert (found.replay.max_auc_drop, found.replay.part, found.replay.top_k) == (0.002, "ranker", 5)
    assert ValidationSpec.model_validate_json(canonical_json(found)) == found


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({}, "at least one limit has to be given; allowed: maxAucDrop, maxLogLossRise, maxEntropyRise, minTopKOverlap"),
        ({"topK": 5}, "at least one limit"),
        ({"maxAucDrop": -1}, "greater than or equal to 0"),
        ({"minTopKOverlap": 2}, "less than or equal to 1"),
        ({"maxError": 1}, "maxError"),
    ],
)
def test_what_is_no_limit_is_refused(limits, told):
    with pytest.raises(ValidationError, match=told):
        spec(**limits)
