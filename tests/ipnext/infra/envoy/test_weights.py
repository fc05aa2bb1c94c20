"""Integer weights keep every share and sum exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.infra.envoy.weights import WEIGHT_TOTAL, weights

FRACTIONS = st.lists(st.floats(min_value=1e-9, max_value=1.0), min_size=1, max_size=50)


@given(FRACTIONS)
def test_weights_sum_to_the_total_and_drop_nobody(fractions):
    counts = weights(fractions, WEIGHT_TOTAL)
    assert sum(counts) == WEIGHT_TOTAL
    assert min(counts) >= 1


@given(FRACTIONS)
def test_a_weight_is_at_most_one_unit_off_for_each_share_too_small_for_a_unit(fractions):
    counts = weights(fractions, WEIGHT_TOTAL)
    whole = sum(fractions)
    for fraction, count in zip(fractions, counts, strict=True):
        assert abs(count - fraction / whole * WEIGHT_TOTAL) <= len(fractions)


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ([1.0], (10_000,)),
        ([0.75, 0.25], (7_500, 2_500)),
        ([1 / 3, 1 / 3, 1 / 3], (3_334, 3_333, 3_333)),
        ([0.9, 0.1 - 1e-9, 1e-9], (9_000, 999, 1)),
        ([0.3, 0.1], (7_500, 2_500)),
    ],
)
def test_known_weights(fractions, expected):
    assert weights(fractions, WEIGHT_TOTAL) == expected
