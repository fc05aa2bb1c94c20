"""Requests of one generation as a region's router counts them."""

from collections.abc import Mapping

from pydantic import Field

from ipnext.model.gate.sketch import PredictionSketch
from ipnext.model.value import Name, Value


class ChosenTraffic(Value):
    """Requests whose generation the gateway of one region chose by weight: the evidence of gates."""

    requests: int = 0
    """Those that ended, without `withdrawn` ones."""
    errors: int = 0
    """Answers with a 5xx status, and answers that an engine did not complete."""
    non_finite: int = 0
    failed: int = 0
    """Answers that are 5xx or not finite; one that is both counts once."""
    broken: int = 0
    """Answers that an engine began and did not complete. `failed` has none of them."""
    withdrawn: int = 0
    """Requests that the client ended before an answer: it left, or its deadline was too short."""
    left: int = 0
    """Answers that the client did not read to their end."""
    under_way: int = 0
    """Requests that have not ended yet."""
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Buckets as in GenerationTraffic, here and below."""
    first_token: Mapping[int, int] = Field(default_factory=dict)
    token: Mapping[int, int] = Field(default_factory=dict)


class GenerationTraffic(Value):
    """Requests of one generation as the region's router counted them since its start."""

    model: Name
    generation: int
    requests: int = 0
    errors: int = 0
    """Answers with a 5xx status."""
    non_finite: int = 0
    """Answers with NaN or infinity whose requests had none."""
    in_flight: int = 0
    latency_seconds_sum: float = 0.0
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Bucket of `ipnext.model.gate.sketch.LATENCY_SECONDS` -> answers with status 200 and that latency."""
    first_token: Mapping[int, int] = Field(default_factory=dict)
    """The same for the time to the first piece of streamed answers."""
    token: Mapping[int, int] = Field(default_factory=dict)
    """The same for the mean time between two pieces of an answer."""
    predictions: Mapping[str, PredictionSketch] = Field(default_factory=dict)
    """Output -> sketch of its numbers, from sampled answers with status 200 to requests that a gateway chose."""
    chosen: Mapping[Name, ChosenTraffic] = Field(default_factory=dict)
    """Region of the gateway that chose this generation by weight -> the subset of these counts that gates judge."""
