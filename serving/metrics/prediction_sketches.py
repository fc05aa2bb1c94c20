"""Sketches of a generation's predictions.

Made from sampled answers in the process that has their tensors, summed by the router. A router samples at most one
answer per interval and generation, by its clock alone, so that the cost is the same at any rate; at low rates every
answer is sampled. Buckets: ipnext.model.gate.sketch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ipnext.model.gate.sketch import PREDICTION_BOUNDS, PredictionSketch, prediction_bucket
from serving.protocol.tensors import Array, Tensor, bf16_to_float32

SAMPLE_SECONDS: Final = 0.01
"""Default minimum interval between two sampled answers of a generation."""
MAX_VALUES: Final = 256
"""Numbers taken from one output of an answer, evenly spaced over its elements."""
MAX_OUTPUTS: Final = 4
"""Outputs of a model that are sketched: the first in the answer."""
_BOUNDS: Final = np.array(PREDICTION_BOUNDS)
_LARGEST: Final = 1e100
"""Larger numbers count as this one, so that sums of squares stay finite."""

Sketches = dict[str, tuple[int, float, float, list[int], list[int]]]
"""Output -> number of finite values, their sum, their sum of squares, buckets, and the count in each. Has a JSON
form."""


def sketches_of(outputs: Mapping[str, Tensor]) -> Sketches:
    """Return the sketches of one answer's numeric outputs. Values that are not finite are excluded."""
    found: Sketches = {}
    for name, tensor in outputs.items():
        if tensor.datatype == "BYTES":
            continue
        if len(found) == MAX_OUTPUTS:
            break
        found[name] = _one(tensor) if tensor.data.size == 1 else _many(_sample(tensor))
    return found


def _one(tensor: Tensor) -> tuple[int, float, float, list[int], list[int]]:
    """Return the sketch of a single value.

    It is that of `_many` in a tenth of its time, since answers of batch 1 are the cheapest.
    """
    data = bf16_to_float32(tensor.data) if tensor.datatype == "BF16" else tensor.data
    value = float(data.item())
    if not math.isfinite(value):
        return 0, 0.0, 0.0, [], []
    value = min(max(value, -_LARGEST), _LARGEST)
    return 1, value, value * value, [prediction_bucket(value)], [1]


def _many(values: Array) -> tuple[int, float, float, list[int], list[int]]:
    counts = np.bincount(np.searchsorted(_BOUNDS, values))
    buckets = counts.nonzero()[0]
    return values.size, float(values.sum()), float(values @ values), buckets.tolist(), counts[buckets].tolist()


def _sample(tensor: Tensor) -> Array:
    """Return at most MAX_VALUES finite numbers as float64."""
    flat = tensor.data.reshape(-1)
    flat = flat[:: max(1, -(-flat.size // MAX_VALUES))]
    if tensor.datatype == "BF16":
        flat = bf16_to_float32(flat)
    values = flat.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        values = values[finite]
    return np.clip(values, -_LARGEST, _LARGEST)


class PredictionTally:
    """The sketch of one output since the router started."""

    __slots__ = ("_answers", "_bins", "_squares", "_total", "_values")

    def __init__(self) -> None:
        self._answers = 0
        self._values = 0
        self._total = 0.0
        self._squares = 0.0
        self._bins: dict[int, int] = {}

    def add(self, sketch: Sequence[Any]) -> None:
        """Add the sketch of one answer: an entry of `Sketches`, with further fields if another build made it."""
        values, total, squares, buckets, counts, *_ = sketch
        self._answers += 1
        self._values += values
        self._total += total
        self._squares += squares
        for bucket, count in zip(buckets, counts, strict=True):
            self._bins[bucket] = self._bins.get(bucket, 0) + count

    @property
    def sketch(self) -> PredictionSketch:
        """The sum so far."""
        return PredictionSketch(
            answers=self._answers,
            values=self._values,
            total=self._total,
            squares=self._squares,
            bins=dict(sorted(self._bins.items())),
        )


class Predictions:
    """The sketches of one generation's outputs."""

    __slots__ = ("_outputs", "_sampled_at")

    def __init__(self) -> None:
        self._outputs: dict[str, PredictionTally] = {}
        self._sampled_at = -1e18

    def wants(self, now: float, every: float = SAMPLE_SECONDS) -> bool:
        """Whether to sample the answer to a request at `now` (seconds of a steady clock), one in `every` seconds."""
        if now - self._sampled_at < every:
            return False
        self._sampled_at = now
        return True

    def add(self, sketches: Mapping[str, Any]) -> None:
        """Add the sketches of one answer, from `sketches_of` or its JSON form."""
        for name, sketch in sketches.items():
            found = self._outputs.get(name)
            if found is None:
                if len(self._outputs) == MAX_OUTPUTS:
                    continue
                found = self._outputs[name] = PredictionTally()
            found.add(sketch)

    @property
    def sketches(self) -> dict[str, PredictionSketch]:
        """The sums so far, by output."""
        return {name: tally.sketch for name, tally in self._outputs.items()}
