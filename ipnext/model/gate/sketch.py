"""Sketches of distributions: fixed logarithmic buckets, so that counts of several routers and times add up."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final

from pydantic import Field

from ipnext.model.value import Value

LATENCY_SECONDS: Final = tuple(0.0001 * 2 ** (step / 4) for step in range(81))
"""Upper bounds of the buckets of a latency: 0.1 ms to 105 s, each 19 % above the one before."""

_FINE: Final = tuple(2.0 ** (step / 4) for step in range(-56, 24))
_COARSE: Final = tuple(2.0**step for step in range(6, 21))

PREDICTION_BOUNDS: Final = (
    *(-bound for bound in reversed(_FINE + _COARSE)),
    *_FINE,
    *_COARSE,
)
"""Upper bounds of the buckets of a prediction of any sign: 19 % wide from 0.00006 to 64, then an octave up to a
million. Numbers nearer to 0 share one bucket; the first and the last have all numbers beyond: 191 in all."""


class PredictionSketch(Value):
    """The finite numbers of one output over sampled answers."""

    answers: int = 0
    """Sampled answers."""
    values: int = 0
    """Numbers in these answers."""
    total: float = 0.0
    squares: float = 0.0
    """Sum of the squares."""
    bins: Mapping[int, int] = Field(default_factory=dict)
    """Bucket -> how many; bucket i ends with PREDICTION_BOUNDS[i], and the one after the last has no end."""


def latency_bucket(seconds: float) -> int:
    """Return the bucket of a latency: it ends with LATENCY_SECONDS[bucket]; the one after the last has no end."""
    return bisect_left(LATENCY_SECONDS, seconds)


def prediction_bucket(value: float) -> int:
    """Return the bucket of a finite number."""
    return bisect_left(PREDICTION_BOUNDS, value)
