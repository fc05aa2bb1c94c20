"""Differences of two answers to one request."""

import math

import numpy as np
import pytest

from serving.metrics.answer_differences import TensorDifference, compare_answers, compare_tensors
from serving.protocol.tensors import DTYPES, Tensor, float32_to_bf16


def tensor(*values, datatype="FP32", shape=None):
    array = np.array(values, DTYPES[datatype])
    return Tensor(datatype, array if shape is None else array.reshape(shape))


def compare(first, second, **form):
    return compare_tensors(tensor(*first, **form), tensor(*second, **form))


def test_equal_answers_differ_by_nothing():
    found = compare([1.0, math.nan, math.inf, -0.0], [1.0, math.nan, math.inf, 0.0])
    assert (found.absolute, found.relative) == (0.0, 0.0)


def test_the_largest_difference_of_any_element_counts_by_itself_and_against_the_magnitude():
    found = compare([1.0, 100.0, -0.5], [1.5, 101.0, 0.5])
    assert (found.absolute, found.relative) == pytest.approx((1.0, 2.0))
    found = compare([100.0, 8.0], [101.0, 8.0])
    assert (found.absolute, found.relative) == pytest.approx((1.0, 1 / 101))


@pytest.mark.parametrize("other", [math.nan, math.inf])
def test_a_number_against_none_is_an_infinite_difference(other):
    assert compare([1.0, 2.0], [1.0, other]).absolute == math.inf
    assert compare([math.inf], [-math.inf]).relative == math.inf


def test_whole_numbers_truths_and_short_floats_are_compared_too():
    assert compare([3, 2**60], [5, 2**60], datatype="INT64").absolute == 2.0
    assert compare([True, False], [True, True], datatype="BOOL").absolute == 1.0
    bits = [float32_to_bf16(np.array([value], np.float32)) for value in (1.0, 1.5)]
    assert compare_tensors(*(Tensor("BF16", one) for one in bits)).absolute == 0.5
    assert compare([2.0**1023], [-(2.0**1023)], datatype="FP64").absolute == math.inf


def test_the_best_rows_are_compared_where_an_output_scores_rows():
    scores = [float(row) for row in range(20)]
    swapped = [*scores[:9], 50.0, *scores[10:]]
    assert compare(scores, swapped).overlap == 0.9
    assert compare(scores, swapped, shape=(20, 1)).overlap == 0.9
    assert compare(scores, scores[::-1]).overlap == 0.0
    assert compare([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]).overlap == 1.0
    assert compare([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]).overlap == 1.0


@pytest.mark.parametrize(
    ("values", "form"),
    [([1.0], {}), ([1.0] * 4, {"shape": (2, 2)}), ([1, 2, 3], {"datatype": "INT64"}), ([1.0], {"shape": ()}), ([], {})],
)
def test_other_outputs_are_no_ranking(values, form):
    assert compare(values, values, **form) == TensorDifference(0.0, 0.0, None)


def test_outputs_that_are_not_alike_are_mismatches_and_the_others_are_compared():
    real = {"a": tensor(1.0), "b": tensor(1.0), "c": tensor(1), "d": tensor(b"x", datatype="BYTES"), "e": tensor(1.0)}
    shadow = {
        "a": tensor(1.5),
        "b": tensor(1.0, 2.0),
        "c": tensor(1, datatype="INT64"),
        "d": tensor(b"y", datatype="BYTES"),
        "f": tensor(1.0),
    }
    found = compare_answers(real, shadow)
    assert found.mismatches == {"name", "datatype", "shape", "text"}
    assert (found.outputs.keys(), found.outputs["a"].absolute) == ({"a"}, 0.5)
    assert not compare_answers(real, real).mismatches


@pytest.mark.parametrize(
    ("real", "shadow", "mismatches"),
    [
        ([1.0, 2.0], [1.0, math.nan], {"finite"}),
        ([1.0, 2.0], [-math.inf, 2.0], {"finite"}),
        ([1.0, math.nan], [1.0, math.nan], set()),
        ([math.inf, 1.0], [math.inf, 1.0], set()),
        ([1.0, math.nan], [1.0, 2.0], set()),
        ([2.0**127], [-(2.0**127)], set()),
    ],
)
def test_a_shadow_that_has_no_number_where_the_client_got_one_is_a_mismatch(real, shadow, mismatches):
    found = compare_answers({"y": tensor(*real)}, {"y": tensor(*shadow)})
    assert found.mismatches == mismatches
    assert found.outputs.keys() == {"y"}
