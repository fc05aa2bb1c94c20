"""Deviation of a compiled snapshot's answers from the eager engine's, over drawn requests of several batch sizes."""

from collections.abc import Mapping

import numpy as np

from ipnext.model.registry.registry import Signature
from serving.engines.base import LoadedPart
from serving.engines.torch.compiled import LibraryDeviation
from serving.protocol.tensors import FLOATS, Array, bf16_to_float32
from serving.splitting.check.comparison import BATCHES, ROUNDS, Drawn


def measure_differences(eager: LoadedPart, compiled: LoadedPart, drawn: Drawn) -> tuple[LibraryDeviation, ...]:
    """Return one difference per batch size, over all outputs: the worst of several requests."""
    return tuple(_at(batch, eager, compiled, drawn) for batch in BATCHES)


def _at(batch: int, eager: LoadedPart, compiled: LoadedPart, drawn: Drawn) -> LibraryDeviation:
    worst = (0.0, 0.0)
    for _ in range(ROUNDS):
        request = {name: tensor.data for name, tensor in drawn.request(batch).items()}
        found = differences(eager.signature, eager.infer(request), compiled.infer(request))
        worst = (max(worst[0], found[0]), max(worst[1], found[1]))
    return LibraryDeviation(batch=batch, absolute=worst[0], relative=worst[1])


def differences(signature: Signature, expected: Mapping[str, Array], got: Mapping[str, Array]) -> tuple[float, float]:
    """Return the largest absolute difference, and the largest one relative to the largest figure of its output.

    If a figure is NaN or infinite, the other must be the same; whole numbers must be equal. Otherwise both are the
    largest float.
    """
    each = [_difference(spec.datatype, expected[spec.name], got[spec.name]) for spec in signature.outputs]
    return max((a for a, _ in each), default=0.0), max((r for _, r in each), default=0.0)


_OTHER = (float(np.finfo(np.float64).max), float(np.finfo(np.float64).max))
_EQUAL = (0.0, 0.0)


def _difference(datatype: str, expected: Array, got: Array) -> tuple[float, float]:
    if (expected.shape, expected.dtype) != (got.shape, got.dtype):
        return _OTHER
    if datatype not in FLOATS:
        return _EQUAL if np.array_equal(expected, got) else _OTHER
    left, right = _wide(datatype, expected), _wide(datatype, got)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(right[finite]).all():
        return _OTHER
    largest = float(np.abs(left[finite]).max(initial=0.0))
    absolute = float(np.abs(left[finite] - right[finite]).max(initial=0.0))
    return absolute, absolute / largest if largest else (0.0 if absolute == 0.0 else _OTHER[1])


def _wide(datatype: str, array: Array) -> Array:
    return (bf16_to_float32(array) if datatype == "BF16" else array).astype(np.float64)
