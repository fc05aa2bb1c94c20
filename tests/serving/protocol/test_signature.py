"""A request must fit the part's signature; the refusal names the tensor."""

import numpy as np
import pytest

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.protocol.signature import check_inputs
from serving.protocol.tensors import Tensor

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="ids", datatype="INT64", shape=(-1, 3)),
        TensorSpec(name="w", datatype="FP32", shape=(-1,)),
    ),
    outputs=(),
)


def tensors(**changes):
    good = {"ids": Tensor("INT64", np.zeros((2, 3), np.int64)), "w": Tensor("FP32", np.zeros(2, np.float32))}
    return {name: tensor for name, tensor in (good | changes).items() if tensor is not None}


def test_a_fitting_request_passes():
    check_inputs(tensors(), SIGNATURE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": None}, "input 'ids' is missing; the inputs are ids, w"),
        ({"extra": Tensor("FP32", np.zeros(2))}, "input 'extra' does not exist"),
        ({"w": Tensor("FP64", np.zeros(2))}, "input 'w': datatype must be FP32, got FP64"),
        ({"ids": Tensor("INT64", np.zeros((2, 4)))}, r"input 'ids': shape must be \[-1, 3\]"),
        ({"ids": Tensor("INT64", np.zeros(2))}, r"input 'ids': shape must be .* got \[2\]"),
        ({"w": Tensor("FP32", np.zeros(3))}, "one batch size >= 1"),
        ({"w": Tensor("FP32", np.zeros(0)), "ids": Tensor("INT64", np.zeros((0, 3)))}, "one batch size >= 1"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_by_name(changes, words):
    with pytest.raises(InvalidInput, match=words):
        check_inputs(tensors(**changes), SIGNATURE)


ONCE = SIGNATURE.model_copy(update={"request_inputs": ("w",)})


@pytest.mark.parametrize("rows", [1, 2])
def test_a_request_input_may_have_one_row_or_those_of_the_others(rows):
    check_inputs(tensors(w=Tensor("FP32", np.zeros(rows, np.float32))), ONCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"w": Tensor("FP32", np.zeros(3, np.float32))},
        {"w": Tensor("FP32", np.zeros(0, np.float32))},
        {"ids": Tensor("INT64", np.zeros((1, 3), np.int64)), "w": Tensor("FP32", np.zeros(2, np.float32))},
    ],
)
def test_other_rows_of_a_request_input_are_refused(changes):
    with pytest.raises(InvalidInput, match="one batch size >= 1 in dimension 0; w may have 1, got"):
        check_inputs(tensors(**changes), ONCE)


def test_only_an_input_with_a_batch_can_be_a_request_input():
    with pytest.raises(ValueError, match=r"request_inputs: \['x'\] are no inputs with a free dimension 0"):
        Signature(inputs=SIGNATURE.inputs, outputs=(), request_inputs=("x",))
