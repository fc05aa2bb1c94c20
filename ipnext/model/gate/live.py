"""Timing of live replicas: what a region is asked to send, what it measured, and the limits on it.

A new generation's replica and one of the serving generation, on the same hardware kind, get the same requests in turns
before users are sent to the new one. Requests go from the region's agent to the two host processes: no gateway and no
router has them.
"""

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from ipnext.model.value import LARGEST_FIGURE, Name, Value, WrittenValue

ROUNDS: Final = 5
"""Rounds of a comparison. Each is judged by itself, so that one moment's load decides nothing."""
FEWEST_ANSWERS: Final = 3
"""Requests of their own, and groups, that each replica has to answer in a round that counts."""
LARGEST_SHARE: Final = 0.25
"""Most of its time that a timed host process spends on the timing."""
MOST_BODIES: Final = 32
LARGEST_BODIES: Final = 4 << 20
"""Bytes of all different requests of a round."""
MOST_ROUND_SECONDS: Final = 20.0
"""Longest time of a round: the region answers once it is over."""

Ratio = Annotated[float, Field(gt=0, le=LARGEST_FIGURE)]


class LiveLatencySpec(WrittenValue):
    """`spec.validation.liveLatency`: limits of a live replica against one of the serving generation.

    A limit that is left out is not judged; at least one is given.
    """

    max_p50_ratio: Ratio | None = None
    """Median latency over that of the serving generation's replica, of requests sent one at a time."""
    max_p99_ratio: Ratio | None = None
    min_throughput_ratio: Ratio | None = None
    """Requests a second over those of the serving generation's replica, with `concurrency` requests at once."""
    requests: int = Field(default=200, ge=60, le=2000)
    """Requests to each of the two generations, over all rounds: half one at a time, half `concurrency` at once."""
    concurrency: int = Field(default=4, ge=2, le=16)
    rows: int = Field(default=16, ge=1, le=1024)
    """Rows of a request."""
    seconds: float = Field(default=60.0, ge=ROUNDS, le=ROUNDS * MOST_ROUND_SECONDS)
    """Longest time of all rounds."""
    part: Name | None = None
    """The part that is timed; left out: every part of engine torch whose snapshot has a replay set."""

    @model_validator(mode="after")
    def _has_enough_groups(self) -> Self:
        least = 2 * FEWEST_ANSWERS * ROUNDS * self.concurrency
        if self.requests < least:
            msg = f"requests: {self.concurrency} at once need at least {least}, got {self.requests}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.max_p50_ratio is None and self.max_p99_ratio is None and self.min_throughput_ratio is None:
            msg = "at least one limit has to be given; allowed: maxP50Ratio, maxP99Ratio, minThroughputRatio"
            raise ValueError(msg)
        return self


class TimedReplica(Value):
    """A replica, and the generation that it is asked for."""

    id: str
    generation: int = Field(ge=1)


class TimingRound(Value):
    """Requests that a region sends to two replicas in turns."""

    model: Name
    part: Name
    new: TimedReplica
    serving: TimedReplica
    bodies: tuple[str, ...] = Field(min_length=1, max_length=MOST_BODIES)
    """Predictions as the V2 protocol has them in JSON; sent one after another, again from the first."""
    requests: int = Field(ge=2, le=2000)
    """To each replica."""
    concurrency: int = Field(ge=2, le=16)
    seconds: float = Field(gt=0, le=MOST_ROUND_SECONDS)
    share: float = Field(default=LARGEST_SHARE, gt=0, le=1)
    """Most of its time that a replica spends on the round."""


class ReplicaTimes(Value):
    """Times of one replica in a round, in seconds."""

    single: tuple[float, ...] = ()
    """Of answers to requests that were sent one at a time."""
    together: tuple[float, ...] = ()
    """From the first of `concurrency` requests to the last answer, if all were answered."""
    failed: int = Field(default=0, ge=0)
    """Requests without a good answer."""
    error: str = Field(default="", max_length=1000)
    """The first such answer."""


class RoundTimes(Value):
    """A region's answer to a TimingRound."""

    new: ReplicaTimes
    serving: ReplicaTimes


class RoundFigures(Value):
    """Figures of one replica in a round."""

    p50: float = 0.0
    """Seconds."""
    p99: float = 0.0
    throughput: float = 0.0
    """Requests a second."""
    answered: int = 0
    failed: int = 0
    error: str = ""


class JudgedRound(Value):
    """The figures of both generations in a round, of one part."""

    part: Name
    region: Name
    hardware: str
    new: RoundFigures
    serving: RoundFigures
    seconds: float = 0.0
    """Duration of the round."""
