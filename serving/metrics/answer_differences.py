"""How far two answers to one request differ. Pure.

Used by routers, which compare a shadow's answer with the client's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ipnext.model.gate.shadow import Mismatch
from serving.protocol.tensors import FLOATS, Array, Tensor, bf16_to_float32

RANKED: Final = (10, 5, 2, 1)
"""The k of the k best rows that two rankings are compared by: the largest that is at most half of the rows."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """The largest differences of any element: infinity if only one of two elements is a finite number.

    `relative` is the difference divided by the larger of both magnitudes, and `overlap` the share of common rows among
    the k best; None if the tensor is no vector of scores.
    """

    absolute: float
    relative: float
    overlap: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerDifference:
    """The differences of the outputs that both answers have in the same form, and the kinds of further mismatches."""

    outputs: Mapping[str, TensorDifference] = field(default_factory=dict)
    mismatches: frozenset[Mismatch] = frozenset()


def compare_answers(real: Mapping[str, Tensor], shadow: Mapping[str, Tensor]) -> AnswerDifference:
    """Return the differences of a shadow's outputs from the client's."""
    mismatches: set[Mismatch] = set()
    if real.keys() != shadow.keys():
        mismatches.add("name")
    outputs: dict[str, TensorDifference] = {}
    for name, tensor in real.items():
        other = shadow.get(name)
        if other is None:
            continue
        mismatch = _find_mismatch(tensor, other)
        if mismatch is not None:
            mismatches.add(mismatch)
        elif tensor.datatype != "BYTES":
            outputs[name] = compare_tensors(tensor, other)
            if np.isinf(outputs[name].absolute) and _lacks_number(tensor, other):
                mismatches.add("finite")
    return AnswerDifference(outputs, frozenset(mismatches))


def _find_mismatch(real: Tensor, shadow: Tensor) -> Mismatch | None:
    if real.datatype != shadow.datatype:
        return "datatype"
    if real.data.shape != shadow.data.shape:
        return "shape"
    if real.datatype == "BYTES" and not np.array_equal(real.data, shadow.data):
        return "text"
    return None


def _lacks_number(real: Tensor, shadow: Tensor) -> bool:
    """Return whether the shadow has NaN or infinity for a number of the client's answer."""
    return bool((np.isfinite(_numbers(real)) & ~np.isfinite(_numbers(shadow))).any())


def compare_tensors(real: Tensor, shadow: Tensor) -> TensorDifference:
    """Return the differences of two numeric tensors of one datatype and shape. NaN equals NaN."""
    first, second = _numbers(real), _numbers(shadow)
    absolute, relative = _largest(real, shadow, first, second)
    return TensorDifference(absolute, relative, _overlap(real, first, second))


def _largest(real: Tensor, shadow: Tensor, first: Array, second: Array) -> tuple[float, float]:
    """Return the largest absolute and relative difference of an element; 0 if all are equal."""
    if real.datatype in FLOATS:
        differs = (first != second) & ~(np.isnan(first) & np.isnan(second))
    else:  # whole numbers beyond 2^53 are equal as floats
        differs = np.not_equal(real.data, shadow.data)
    if not differs.any():
        return 0.0, 0.0
    if not differs.all():
        first, second = first[differs], second[differs]
    magnitude = np.maximum(np.abs(first), np.abs(second))
    if not np.isfinite(magnitude.max()):  # the largest of numbers with a NaN is NaN
        return np.inf, np.inf
    with np.errstate(over="ignore"):
        absolute = np.abs(first - second)
    relative = absolute / magnitude if np.isfinite(absolute.max()) else np.abs(first / magnitude - second / magnitude)
    return float(absolute.max()), float(relative.max())


def _overlap(tensor: Tensor, real: Array, shadow: Array) -> float | None:
    """Return the share of common rows among the k best, see RANKED.

    None unless the tensor has one floating-point score for each of several rows. Of equal scores the first rows count.
    """
    rows = tensor.data.shape[0] if tensor.data.ndim in (1, 2) else 0
    if tensor.datatype not in FLOATS or rows < 2 or tensor.data.size != rows:
        return None
    k = next(k for k in RANKED if k <= rows // 2)
    common = np.intersect1d(_best(real, k), _best(shadow, k), assume_unique=True)
    return common.size / k


def _best(scores: Array, k: int) -> Array:
    """Return the rows of the k best scores; of equal ones the first. NaN is the worst."""
    flat = scores.reshape(-1)
    flat = np.where(np.isnan(flat), -np.inf, flat)
    least = np.partition(flat, -k)[-k]
    better = np.flatnonzero(flat > least)
    return np.concatenate([better, np.flatnonzero(flat == least)[: k - better.size]])


def _numbers(tensor: Tensor) -> Array:
    data = bf16_to_float32(tensor.data) if tensor.datatype == "BF16" else tensor.data
    return data.astype(np.float64)
