"""Requests may be joined only where no row has a say in another's answer."""

import numpy as np
import pytest

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.engines.torch.warmup_inputs import draw_inputs, rows_are_independent, zeros
from serving.protocol.tensors import DTYPES


def signature(shape=(-1, 3), out=(-1, 3), datatype="FP32"):
    return Signature(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=out),),
    )


@pytest.mark.parametrize(
    ("forward", "independent"),
    [
        (lambda x: x * 2, True),
        (lambda x: x / x.sum(1, keepdims=True), True),
        (lambda x: x - x.mean(0), False),
        (lambda x: np.sort(x, 0), False),
        (lambda x: x[::-1], False),
        (lambda x: x[:1].repeat(len(x), 0), False),
        (lambda x: np.cumsum(x, 0), False),
        (lambda x: x + len(x), False),
        (lambda x: x[:1], False),
        (lambda x: x * np.float32(1 + 1e-6 * len(x)), True),
        (lambda x: x * np.nan, True),
    ],
)
def test_rows_that_answer_for_themselves_are_told_from_those_that_do_not(forward, independent):
    assert rows_are_independent(signature(), lambda inputs: {"y": forward(inputs["x"])}) is independent


def test_whole_numbers_must_agree_to_the_last():
    assert rows_are_independent(signature(datatype="INT64"), lambda inputs: {"y": inputs["x"] + 1})
    assert not rows_are_independent(signature(datatype="INT64"), lambda inputs: {"y": inputs["x"] + len(inputs["x"])})


@pytest.mark.parametrize(("shape", "out"), [((1, 3), (-1, 3)), ((-1, 3), (3,)), ((), (-1,))])
def test_a_tensor_without_a_free_first_dimension_stands_alone(shape, out):
    assert not rows_are_independent(signature(shape, out), lambda inputs: {"y": inputs["x"]})


def test_a_part_that_refuses_the_trial_stands_alone():
    def refuse(_):
        msg = "x: not these"
        raise InvalidInput(msg)

    assert not rows_are_independent(signature(), refuse)


def test_trial_arrays_have_the_signatures_forms():
    for datatype, dtype in DTYPES.items():
        if datatype == "BYTES":
            continue
        for array in (
            draw_inputs(signature((-1, 3, -1), datatype=datatype), 4, np.random.default_rng(0))["x"],
            zeros(signature((-1, 3, -1), datatype=datatype), 4)["x"],
        ):
            assert (array.shape, array.dtype) == ((4, 3, 2), dtype)
