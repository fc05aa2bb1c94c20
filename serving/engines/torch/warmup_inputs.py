"""Small inputs that nearly every part accepts, and a test with them whether the rows of a batch are independent.

Floats are drawn from a normal distribution, whole numbers from 0 and 1, which every table of two rows has. Used by
engines when they warm a snapshot up.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from ipnext.errors import IPnextError
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.protocol.tensors import DTYPES, FLOATS, Array, Tensor, bf16_to_float32, float32_to_bf16

Infer = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_ROWS: Final = (3, 2)
_DRAWS: Final = 3
_TOLERANCE: Final = 1e-3
"""Tolerance, relative to the largest figure: kernels for other batch sizes may differ in last bits, of which low
precision has few."""


def draw_inputs(signature: Signature, rows: int, random: np.random.Generator) -> dict[str, Array]:
    """Return one array per input; free dimensions other than the first have size 2."""
    return {spec.name: _array(spec, rows, random) for spec in signature.inputs}


def zeros(signature: Signature, rows: int) -> dict[str, Array]:
    """Return zeros for each input: as ids they exist in every table."""
    return {spec.name: np.zeros(_shape(spec, rows), DTYPES[spec.datatype]) for spec in signature.inputs}


def rows_are_independent(signature: Signature, infer: Infer) -> bool:
    """Whether requests may share a pass: each row's answer does not depend on the other rows of the batch.

    Tested with drawn requests, alone and joined. A program has no branch on values, so any influence of one row on
    another shows. False if a tensor has no free dimension 0, or the part refuses the drawn requests.
    """
    specs = (*signature.inputs, *signature.outputs)
    if not all(spec.shape and spec.shape[0] == -1 for spec in specs) or not signature.inputs:
        return False
    random = np.random.default_rng(0)
    try:
        return all(_agrees(signature, infer, random) for _ in range(_DRAWS))
    except IPnextError:
        return False


def _agrees(signature: Signature, infer: Infer, random: np.random.Generator) -> bool:
    alone = [draw_inputs(signature, rows, random) for rows in _ROWS]
    joined = {name: np.concatenate([request[name] for request in alone]) for name in alone[0]}
    together, apart = infer(joined), [infer(request) for request in alone]
    for spec in signature.outputs:
        expected = [answer[spec.name] for answer in apart]
        if [array.shape for array in expected] != [(rows, *together[spec.name].shape[1:]) for rows in _ROWS]:
            return False
        if not close(spec, np.concatenate(expected), together[spec.name]):
            return False
    return True


def close(spec: TensorSpec, left: Array, right: Array) -> bool:
    """Whether two answers agree up to the differences of kernels for other batch sizes; whole numbers must be equal."""
    if left.shape != right.shape:
        return False
    if spec.datatype not in FLOATS:
        return bool(np.array_equal(left, right))
    if spec.datatype == "BF16":
        left, right = bf16_to_float32(left), bf16_to_float32(right)
    wide, other = left.astype(np.float64), right.astype(np.float64)
    largest = float(np.abs(np.nan_to_num(wide, posinf=0.0, neginf=0.0)).max(initial=0.0))
    return bool(np.allclose(wide, other, rtol=0, atol=_TOLERANCE * largest, equal_nan=True))


def _array(spec: TensorSpec, rows: int, random: np.random.Generator) -> Array:
    shape = _shape(spec, rows)
    if spec.datatype == "BF16":
        return Tensor("BF16", float32_to_bf16(random.standard_normal(shape))).data
    if spec.datatype in FLOATS:
        return random.standard_normal(shape).astype(DTYPES[spec.datatype])
    return random.integers(0, 2, shape).astype(DTYPES[spec.datatype])


def _shape(spec: TensorSpec, rows: int) -> list[int]:
    free = [rows, *([2] * (len(spec.shape) - 1))]
    return [free[place] if size == -1 else size for place, size in enumerate(spec.shape)]
