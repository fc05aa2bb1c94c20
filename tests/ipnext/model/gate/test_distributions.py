"""Quantiles, rates and differences from bucket counts, against numpy where it knows the answer."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.model.gate.distributions import (
    UNLIKELY,
    Moments,
    above,
    at_least,
    chance,
    mean_shift,
    moments,
    quantile,
    stability_index,
)
from ipnext.model.gate.sketch import LATENCY_SECONDS, PREDICTION_BOUNDS, latency_bucket, prediction_bucket

HISTOGRAMS = st.dictionaries(st.integers(0, len(PREDICTION_BOUNDS)), st.integers(1, 10_000), max_size=40)


def histogram(values, bucket=prediction_bucket):
    found: dict[int, int] = {}
    for value in values:
        found[bucket(value)] = found.get(bucket(value), 0) + 1
    return found


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles_are_those_of_the_values_within_a_bucket(share):
    values = np.random.default_rng(1).lognormal(-4, 1, 5000)
    found = quantile(histogram(values, latency_bucket), LATENCY_SECONDS, share)
    assert found == pytest.approx(np.quantile(values, share), rel=0.1)


def test_a_quantile_of_nothing_is_0_and_beyond_the_last_bound_it_is_the_last_bound():
    assert quantile({}, LATENCY_SECONDS, 0.99) == 0
    assert quantile({latency_bucket(1e6): 5}, LATENCY_SECONDS, 0.5) == LATENCY_SECONDS[-1]


@given(st.dictionaries(st.integers(0, 79), st.integers(1, 1000), min_size=1, max_size=20), st.floats(0.01, 0.99))
def test_as_many_lie_above_a_quantile_as_it_says(counts, share):
    found = above(counts, LATENCY_SECONDS, quantile(counts, LATENCY_SECONDS, share))
    assert found == pytest.approx((1 - share) * sum(counts.values()), abs=1e-6 * sum(counts.values()))


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_rate_is_surely_less_than_was_seen_and_comes_nearer_with_more_answers(bad, more):
    count = bad + more
    sure = at_least(bad, count)
    assert 0 <= sure <= bad / count
    assert at_least(bad * 10, count * 10) >= sure - 1e-12


def test_one_error_in_a_hundred_is_no_evidence_of_one_percent_and_ten_are():
    assert at_least(1, 100) < 0.01 < at_least(10, 100)


@given(HISTOGRAMS, HISTOGRAMS)
def test_the_index_is_never_below_zero_and_the_same_both_ways(new, old):
    there, back = (stability_index(*pair, noise=0.1) for pair in ((new, old), (old, new)))
    assert there.size >= 0
    assert there.size == pytest.approx(back.size)


@given(HISTOGRAMS, st.integers(1, 50))
def test_the_index_of_equal_distributions_is_nearly_zero_at_any_scale(counts, times):
    more = {bucket: count * times for bucket, count in counts.items()}
    assert stability_index(more, counts, noise=0.0).size < 0.01 + len(counts) / max(1, sum(counts.values()))
    assert stability_index(counts, counts, noise=0.0).size == pytest.approx(0)


def test_chance_explains_the_index_of_two_samples_of_one_distribution():
    random = np.random.default_rng(0)
    beyond = 0
    for _ in range(300):
        new, old = (histogram(random.normal(0.5, 0.2, count)) for count in (150, 600))
        beyond += stability_index(new, old, noise=1 / 150 + 1 / 600).sure > 0.05
    assert beyond <= 3


@pytest.mark.parametrize(
    ("changed", "least"),
    [
        (lambda x: x + 0.5, 1.0),
        (lambda x: x * 3, 1.0),
        (lambda x: -x, 1.0),
        (lambda x: x * 0 + 0.5, 1.0),
        (lambda x: np.where(np.arange(x.size) % 5, x, 0.0), 0.25),
    ],
    ids=["shifted", "scaled", "turned round", "constant", "a fifth is zero"],
)
def test_an_output_that_is_changed_drifts_beyond_chance(changed, least):
    random = np.random.default_rng(2)
    new, old = changed(random.normal(1.0, 0.2, 1000)), random.normal(1.0, 0.2, 4000)
    assert stability_index(histogram(new), histogram(old), noise=1 / 1000 + 1 / 4000).sure > least


def test_the_index_is_that_of_the_textbook():
    """Two groups, 900 to 100 against 500 to 500: (0.9 - 0.5) ln(0.9 / 0.5) + (0.1 - 0.5) ln(0.1 / 0.5)."""
    found = stability_index({90: 9000, 120: 1000}, {90: 5000, 120: 5000}, noise=0.0)
    assert found.size == pytest.approx(0.4 * math.log(1.8) + 0.4 * math.log(5), rel=0.01)


def test_means_shift_in_standard_deviations():
    assert mean_shift(Moments(1.5, 0.04), Moments(1.0, 0.06), noise=0.0).size == pytest.approx(0.5 / math.sqrt(0.05))
    assert mean_shift(Moments(2.0, 0.0), Moments(2.0 + 1e-12, 0.0), noise=0.0).size < 0.01
    assert mean_shift(Moments(2.0, 0.0), Moments(1.0, 0.0), noise=0.0).size > 1000
    assert mean_shift(Moments(0.0, 0.0), Moments(0.0, 0.0), noise=0.0).size == 0


def test_moments_of_weighted_samples_are_those_of_their_mixture():
    one, two = np.array([1.0, 2.0]), np.array([5.0, 5.0, 8.0])
    found = moments((weight, x.size, x.sum(), x @ x) for weight, x in ((0.25, one), (0.75, two)))
    mean = 0.25 * 1.5 + 0.75 * 6
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx(0.25 * 2.5 + 0.75 * 38 - mean**2)


def test_a_part_that_leaves_a_heavy_bucket_is_not_joined_with_it():
    found = stability_index({10: 150, 50: 850}, {50: 1000}, noise=0.0)
    assert found.size > 0.5


@pytest.mark.parametrize("weight", [0.02, 0.1, 0.5, 0.9])
def test_a_client_that_stops_when_the_counts_suit_it_is_seldom_ahead_beyond_chance(weight):
    """It looks after each of its 300 bad requests: at most once in a thousand times it is ever as far ahead."""
    random, ahead = np.random.default_rng(3), 0
    for _ in range(400):
        new = (random.random(300) < weight).cumsum()
        ahead += any(chance([(n, sent - n, weight)]) <= UNLIKELY for sent, n in enumerate(new.tolist(), 1))
    assert ahead <= 2


def test_bad_answers_of_the_new_generation_alone_are_no_chance():
    assert chance([(0, 0, 0.1)]) == 1.0
    assert chance([(1, 9, 0.1)]) == 1.0
    assert chance([(3, 0, 0.1)]) > UNLIKELY >= chance([(4, 0, 0.1)])
    assert chance([(500, 4_000, 0.1)]) > UNLIKELY > chance([(600, 4_000, 0.1)])


def test_fewer_bad_answers_than_expected_are_no_evidence_and_gateways_add_up():
    assert chance([(0, 500, 0.1)]) == 1.0
    assert chance([(2, 0, 0.1), (2, 0, 0.1)]) == pytest.approx(chance([(4, 0, 0.1)]))
    assert chance([(6, 0, 0.5), (0, 60, 0.5)]) == 1.0
