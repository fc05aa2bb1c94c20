"""Limits on a generation's answers while traffic moves to it, and the evidence for them.

They are `rollout.gate` of a manifest.
"""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field

from ipnext.model.gate.sketch import PredictionSketch
from ipnext.model.value import LONGEST_SECONDS, Name, Value, WrittenValue

ENOUGH_REQUESTS: Final = 100
"""Answers that a verdict on latency and drift needs by default: a p99 of fewer is their slowest."""


class LatencyLimits(WrittenValue):
    """Milliseconds, over answers with status 200."""

    p50: float | None = Field(default=None, gt=0)
    p99: float | None = Field(default=None, gt=0)

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.p50 is not None or self.p99 is not None


class GateSpec(WrittenValue):
    """Limits on a new generation's answers since a wave's traffic moved. What is left out is not judged.

    "The former one" is the generation that answered before; the two are compared over the same time and regions, while
    both answer.
    """

    max_error_rate: float | None = Field(default=None, ge=0, le=1)
    """Fraction of answers that are 5xx or hold NaN or infinity; left out: `rollout.maxErrorRate`."""
    max_non_finite_rate: float | None = Field(default=None, ge=0, le=1)
    """Fraction of answers that hold NaN or infinity."""
    max_latency_ms: LatencyLimits = LatencyLimits()
    """From a request's arrival at the router to its answer; of one that streams, to its end."""
    max_first_token_ms: LatencyLimits = LatencyLimits()
    """From a request's arrival at the router to the first piece of an answer that streams."""
    max_token_ms: LatencyLimits = LatencyLimits()
    """Between two pieces of an answer that streams, the mean of each answer."""
    max_latency_ratio: float | None = Field(default=None, gt=0)
    """p99 of the new generation over that of the former one."""
    max_drift: float | None = Field(default=None, gt=0)
    """Population stability index of each output's numbers against the former generation's; 0.1 is little, 0.25 much."""
    max_mean_shift: float | None = Field(default=None, gt=0)
    """How far each output's mean may lie from the former generation's, in standard deviations."""
    outputs: tuple[str, ...] = ()
    """Outputs whose drift and mean are judged; none named: all numeric ones."""
    min_requests: int | None = Field(default=None, ge=0)
    """Answers that each compared generation needs to be judged; left out: 100 if latency, drift or mean is, else
    0."""
    wait_seconds: float = Field(default=60.0, ge=0, le=LONGEST_SECONDS)
    """How long beyond the hold a gate waits for `min_requests`."""
    on_too_few: Literal["pass", "fail"] = "pass"
    """What becomes of a wave whose answers were too few even then."""

    @property
    def compares(self) -> bool:
        """Whether the former generation's answers count."""
        return any(limit is not None for limit in (self.max_latency_ratio, self.max_drift, self.max_mean_shift))

    @property
    def judges_drift(self) -> bool:
        """Whether predictions count."""
        return self.max_drift is not None or self.max_mean_shift is not None

    @property
    def needed_answers(self) -> int:
        """Answers that a verdict needs."""
        if self.min_requests is not None:
            return self.min_requests
        limits = (self.max_latency_ms, self.max_first_token_ms, self.max_token_ms)
        return ENOUGH_REQUESTS if any(limit.any for limit in limits) or self.compares else 0


class RegionTraffic(Value):
    """Counts of one generation at a region's router, of the requests that one gateway sent to it by weight."""

    region: Name
    gateway: Name | None = None
    """Region of that gateway; None: `predictions`, which are those of all gateways."""
    requests: int = 0
    """As in `ipnext.model.deployment.traffic.ChosenTraffic`, here and below."""
    errors: int = 0
    non_finite: int = 0
    failed: int = 0
    broken: int = 0
    withdrawn: int = 0
    left: int = 0
    under_way: int = 0
    latency: Mapping[int, int] = Field(default_factory=dict)
    """Bucket of LATENCY_SECONDS -> answers with status 200."""
    first_token: Mapping[int, int] = Field(default_factory=dict)
    """The same for the time to the first piece, of streamed answers."""
    token: Mapping[int, int] = Field(default_factory=dict)
    """The same for the mean time between two pieces."""
    predictions: Mapping[str, PredictionSketch] = Field(default_factory=dict)
    """Output -> its sketch."""


class GateWindow(Value):
    """The reference of a gate's verdict on a generation; made as the wave's traffic moves."""

    former: int | None = None
    """The generation that answered before the transition; None: there was none, or it is the same."""
    baseline: tuple[RegionTraffic, ...] = ()
    """The former generation's counts just before the traffic moved."""
    unsketched: tuple[Name, ...] = ()
    """Regions without comparison of predictions, to keep this value small."""
