"""Comparisons of shadows add up, and limits on them are refused where they limit nothing."""

from itertools import pairwise

import pytest
from pydantic import ValidationError

from ipnext.model.gate.shadow import (
    DIFFERENCE_BOUNDS,
    DifferenceLimit,
    OutputDifference,
    ShadowComparison,
    ShadowLimits,
    merge_comparisons,
)


def comparison(**facts):
    return ShadowComparison(**{"model": "m", "generation": 2} | facts)


def test_comparisons_of_one_shadow_add_up():
    one = comparison(
        chosen=5,
        compared=3,
        mismatched=1,
        under_way=1,
        mismatches={"shape": 1},
        failures={"HostLost": 1},
        outputs={"score": OutputDifference(absolute={0: 2}, relative={0: 1, 4: 1}, overlap={10: 2})},
        latency={10: 3},
        shadow_latency={12: 3},
    )
    other = comparison(
        chosen=4,
        compared=2,
        mismatches={"name": 1},
        failures={"HostLost": 1, "DeadlineExceeded": 2},
        dropped={"queue": 7},
        outputs={"score": OutputDifference(absolute={0: 1, 9: 1}), "more": OutputDifference(absolute={3: 2})},
        latency={10: 1, 11: 1},
        shadow_latency={12: 2},
    )
    assert merge_comparisons([one, other]) == (
        comparison(
            chosen=9,
            compared=5,
            mismatched=1,
            under_way=1,
            mismatches={"shape": 1, "name": 1},
            failures={"HostLost": 2, "DeadlineExceeded": 2},
            dropped={"queue": 7},
            outputs={
                "score": OutputDifference(absolute={0: 3, 9: 1}, relative={0: 1, 4: 1}, overlap={10: 2}),
                "more": OutputDifference(absolute={3: 2}),
            },
            latency={10: 4, 11: 1},
            shadow_latency={12: 5},
        ),
    )


def test_comparisons_of_other_models_generations_and_seeds_stay_apart():
    found = [comparison(chosen=1), comparison(seed=1), comparison(generation=3), comparison(model="n"), comparison()]
    merged = merge_comparisons(found)
    assert [one.key for one in merged] == [("m", 2, 0), ("m", 2, 1), ("m", 3, 0), ("n", 2, 0)]
    assert merged[0].chosen == 1


def test_the_buckets_of_a_difference_go_from_a_billionth_to_a_million():
    assert (DIFFERENCE_BOUNDS[0], DIFFERENCE_BOUNDS[-1]) == pytest.approx((1e-9, 1e6))
    assert all(1.25 < b / a < 1.26 for a, b in pairwise(DIFFERENCE_BOUNDS))


def test_limits_are_read_as_a_manifest_writes_them():
    limits = ShadowLimits.model_validate(
        {
            "minRequests": 50,
            "maxDifference": {"quantile": 0.999, "relative": 0.01},
            "maxLatencyRatio": {"p99": 1.5},
            "maxErrors": 0,
            "minOverlap": 0.9,
        }
    )
    assert limits.max_difference == DifferenceLimit(quantile=0.999, relative=0.01)
    assert (limits.min_requests, limits.max_latency_ratio.p99, limits.max_errors) == (50, 1.5, 0)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"maxDifference": {"quantile": 0.9}}, "give `absolute`, `relative` or both"),
        ({"maxDifference": {"absolute": 1e6}}, "less than 1000000"),
        ({"maxDifference": {"relative": 2.1}}, "less than or equal to 2"),
        ({"maxDifference": {"absolute": 1, "quantile": 0}}, "greater than 0"),
        ({"minRequests": 0}, "greater than or equal to 1"),
        ({"minRequests": 10**400}, "less than or equal to 1000000000"),
        ({"maxErrors": 1.1}, "less than or equal to 1"),
        ({"maxLatencyRatio": {"p90": 1}}, "Extra inputs"),
    ],
)
def test_a_limit_that_limits_nothing_is_refused(limits, words):
    with pytest.raises(ValidationError, match=words):
        ShadowLimits.model_validate(limits)
