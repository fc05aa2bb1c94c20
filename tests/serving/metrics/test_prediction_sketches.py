"""Sketches of answers: what is taken, what is left out, and that they add up."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.model.gate.sketch import PREDICTION_BOUNDS, prediction_bucket
from serving.metrics.prediction_sketches import MAX_OUTPUTS, MAX_VALUES, SAMPLE_SECONDS, Predictions, sketches_of
from serving.protocol.tensors import DTYPES, Tensor, float32_to_bf16


def floats(*values):
    return {"y": Tensor("FP32", np.array(values, np.float32))}


def added(*answers):
    predictions = Predictions()
    for answer in answers:
        predictions.add(sketches_of(answer))
    return predictions.sketches


def test_the_buckets_are_fewer_than_two_hundred_and_ascend():
    assert len(PREDICTION_BOUNDS) + 1 < 200
    assert list(PREDICTION_BOUNDS) == sorted(set(PREDICTION_BOUNDS))


@pytest.mark.parametrize("datatype", sorted(DTYPES.keys() - {"BYTES"}))
@pytest.mark.parametrize("count", [1, 3])
def test_numbers_of_every_datatype_are_taken(datatype, count):
    data = np.ones(count, DTYPES[datatype])
    if datatype == "BF16":
        data = float32_to_bf16(np.ones(count, np.float32))
    sketch = added({"y": Tensor(datatype, data)})["y"]
    assert (sketch.answers, sketch.values, sketch.total, sketch.squares) == (1, count, count, count)
    assert sketch.bins == {prediction_bucket(1.0): count}


def test_bytes_are_left_out_and_outputs_beyond_the_first_few():
    words = Tensor("BYTES", np.array([b"a"], np.object_))
    many = {"words": words, **{f"y{n}": Tensor("FP32", np.zeros(2, np.float32)) for n in range(9)}}
    assert list(sketches_of(many)) == [f"y{n}" for n in range(MAX_OUTPUTS)]
    predictions = Predictions()
    for name, tensor in many.items():
        predictions.add(sketches_of({name: tensor}))
    assert list(predictions.sketches) == [f"y{n}" for n in range(MAX_OUTPUTS)]


@pytest.mark.parametrize("values", [(math.nan,), (math.inf, math.nan, -math.inf)])
def test_what_is_not_finite_is_left_out(values):
    sketch = added(floats(*values), floats(*values, 2.0))["y"]
    assert (sketch.answers, sketch.values, sketch.total) == (2, 1, 2.0)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (MAX_VALUES + 1,), (100, 1000)])
def test_any_shape_gives_at_most_so_many_values(shape):
    sketch = added({"y": Tensor("FP32", np.ones(shape, np.float32))})["y"]
    size = math.prod(shape)
    assert min(size, MAX_VALUES // 2) <= sketch.values <= min(size, MAX_VALUES)
    assert sum(sketch.bins.values()) == sketch.values


def test_numbers_of_any_size_keep_the_sums_finite():
    wide = Tensor("FP64", np.array([1e308, -1e308, 5e-324]))
    sketch = added(*[{"y": wide}] * 3)["y"]
    assert math.isfinite(sketch.squares)
    assert sketch.bins == {0: 3, prediction_bucket(0.0): 3, len(PREDICTION_BOUNDS): 3}


def test_what_another_build_says_of_an_output_beyond_these_figures_is_ignored():
    plain, longer = Predictions(), Predictions()
    plain.add(sketches_of(floats(1.0, 2.0)))
    longer.add({name: [*sketch, "more"] for name, sketch in sketches_of(floats(1.0, 2.0)).items()})
    assert longer.sketches == plain.sketches


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5), min_size=1, max_size=6))
def test_the_order_of_answers_does_not_matter_nor_the_way_through_json(answers):
    one = added(*(floats(*values) for values in answers))["y"]
    predictions = Predictions()
    for values in reversed(answers):
        predictions.add(json.loads(json.dumps(sketches_of(floats(*values)))))
    other = predictions.sketches["y"]
    assert (one.values, one.bins) == (other.values, other.bins)
    added_up = sum(abs(value) for values in answers for value in values if math.isfinite(value))
    assert one.total == pytest.approx(other.total, abs=1e-6 * added_up + 1e-3), "but for rounding"


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_one_value_is_sketched_as_several_are(value):
    assert added(floats(value))["y"].bins == {b: 1 for b, _ in added(floats(value, value))["y"].bins.items()}


def test_at_most_one_answer_in_so_long_is_sampled_whatever_comes_between():
    predictions = Predictions()
    times = [5.0, 5.0, 5.0 + SAMPLE_SECONDS / 2, 5.0 + SAMPLE_SECONDS * 1.01, 5.0 + SAMPLE_SECONDS * 1.5, 9.0]
    assert [predictions.wants(at) for at in times] == [True, False, False, True, False, True]
