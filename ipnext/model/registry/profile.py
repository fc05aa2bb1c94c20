"""The measured performance of one replica of a generative part, and its throughput at a latency target.

A profile is a curve: figures at rising concurrency. The throughput at a target is read off it, so a changed target
needs no new measurement.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.throughput import TOKENS, Unit
from ipnext.model.value import Name, Sha256, Value, WrittenTime, WrittenValue, digest_of

MOST_STEPS = 64

Text = Annotated[str, StringConstraints(max_length=1000)]

Figure = Annotated[float, Field(ge=0, le=1e12)]


class LatencyTarget(WrittenValue):
    """What 99 of 100 readers have to see at least, in ms. What is left out is not asked for."""

    ttft_ms: float | None = Field(default=None, gt=0)
    """From the request to its first token; of an embedding model to its answer."""
    itl_ms: float | None = Field(default=None, gt=0)
    """From one piece of text to the next."""

    def __str__(self) -> str:
        named = (("TTFT", self.ttft_ms), ("ITL", self.itl_ms))
        return ", ".join(f"{name} <= {ms:g} ms" for name, ms in named if ms is not None) or "none"


class LoadStep(Value):
    """What was seen at one concurrency, warm-up left out. Latencies are ms; ITL is None if nothing is streamed."""

    concurrency: int = Field(ge=1, lt=2**31)
    requests: int = Field(ge=1, lt=2**53)
    """First tokens seen: as many latencies were taken."""
    seconds: float = Field(gt=0, le=1e6)
    tokens_per_second: Figure
    """Generated; of an embedding model those of the prompts."""
    requests_per_second: Figure
    ttft_p50_ms: Figure
    ttft_p99_ms: Figure
    itl_p50_ms: Figure | None = None
    itl_p99_ms: Figure | None = None
    others_running: Figure = 0.0
    """Requests of others that the engine had at the same time, at most: above 0 the figures are spoilt."""
    client_busy: float = Field(default=0.0, ge=0)
    """CPU seconds of the measuring process a second: near 1 the figures are its own."""


class Conditions(Value):
    """Under which a profile was measured."""

    engine_version: Text = ""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Engine settings of the part."""
    prompt_tokens: float = Field(gt=0, le=1e9)
    """On average, as the engine counted them."""
    output_tokens: int = Field(ge=0, lt=2**31)
    """Of each request; 0 of an embedding model."""
    replica: Text = ""
    region: Text = ""
    machine: Text = ""
    """What the measuring process knows of its own machine, or what a person said of the engine's."""
    url: Text = ""


class Profile(Value):
    """One measurement of one replica. Steps stand by rising concurrency."""

    hardware: Name
    steps: tuple[LoadStep, ...] = Field(min_length=1, max_length=MOST_STEPS)
    conditions: Conditions
    measured_at: WrittenTime

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        found = [step.concurrency for step in self.steps]
        if found != sorted(set(found)):
            msg = f"steps: concurrency must rise from step to step, got {found}"
            raise ValueError(msg)
        if self.measured_at.tzinfo is None:
            msg = f"measured_at: needs a time zone, got {self.measured_at.isoformat()}"
            raise ValueError(msg)
        return self

    @property
    def spoilt(self) -> bool:
        """Whether the engine served others at the same time."""
        return any(step.others_running > 0 for step in self.steps)


class StoredProfile(Profile):
    """A profile with the snapshot that was measured."""

    model: Name
    part: Name
    snapshot: int = Field(ge=1)

    @property
    def id(self) -> str:
        """The profile's digest: the same measurement of the same snapshot has the same id."""
        return digest_of(self)


class AtTarget(Value):
    """Throughput of a replica at a latency target."""

    met: bool
    """False if not even the lowest concurrency met it: the figures are those of the lowest concurrency then."""
    tokens_per_second: float
    requests_per_second: float
    concurrency: float
    """Where on the curve, between two measured ones where it is no whole number."""
    bounded: bool
    """False if the highest concurrency still met the target: the maximum was not measured."""

    def rate(self, unit: Unit) -> float:
        """Return the throughput in a model's unit."""
        return self.tokens_per_second if unit == TOKENS else self.requests_per_second


class ProfileView(Value):
    """A profile, and what it says at its part's latency target today."""

    profile: StoredProfile
    target: LatencyTarget = LatencyTarget()
    found: AtTarget
    unit: Unit
    """Of the model."""
    counts: bool
    """Whether plans take it: the part's hardware has profile: true, and no newer one holds for what serves."""
    replan_id: str | None = None
    """The replan that it asked for, if it changed the throughput by more than a twentieth."""


class PartThroughput(Value):
    """What plans take a replica of a part to do on one hardware kind; None: neither declared nor measured."""

    part: Name
    hardware: Name
    units: float
    rate: float | None
    unit: Unit
    snapshot: int | None = None
    """The snapshot that was measured; None: the number is declared."""
    met: bool = True
    """False if the measured replica misses its latency target at any load."""


def at_target(steps: Sequence[LoadStep], target: LatencyTarget) -> AtTarget:
    """Return the highest throughput within the target.

    It lies on straight lines between measured points, and not beyond them.

    Latencies count as if they never fell while concurrency rises, so a laxer target never gives less.
    """
    reach = min(_reach(steps, target.ttft_ms, _ttft), _reach(steps, target.itl_ms, _itl))
    if reach < 0:
        return _interpolate(steps[0], steps[0], 0.0, met=False, bounded=True)
    whole, rest = int(reach), reach - int(reach)
    candidates = [_interpolate(step, step, 0.0) for step in steps[: whole + 1]]
    if rest:
        candidates.append(_interpolate(steps[whole], steps[whole + 1], rest))
    best = max(candidates, key=lambda found: found.tokens_per_second)
    return best.model_copy(update={"bounded": reach < len(steps) - 1})


def _ttft(step: LoadStep) -> float | None:
    return step.ttft_p99_ms


def _itl(step: LoadStep) -> float | None:
    return step.itl_p99_ms


def _reach(steps: Sequence[LoadStep], limit: float | None, of: Callable[[LoadStep], float | None]) -> float:
    """Return the position on the steps up to which a latency stays within its limit.

    It is an index with a fraction; -1 if there is none.
    """
    if limit is None:
        return len(steps) - 1.0
    seen = rising([of(step) or 0.0 for step in steps], [step.requests for step in steps])
    within = sum(ms <= limit for ms in seen)
    if within in {0, len(steps)}:
        return within - 1.0
    low, high = seen[within - 1], seen[within]
    return (within - 1) + (limit - low) / (high - low)


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the rising values nearest to the given ones: steps that fall share their weighted mean.

    Isotonic regression by pooling adjacent violators (Ayer et al., 1955).
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, values
    for value, weight in zip(values, weights, strict=True):
        mean, heavy, size = value, float(weight), 1
        while pools and pools[-1][0] > mean:
            other, more, count = pools.pop()
            mean = (mean * heavy + other * more) / (heavy + more)
            heavy, size = heavy + more, size + count
        pools.append((mean, heavy, size))
    return [mean for mean, _, size in pools for _ in range(size)]


def _interpolate(low: LoadStep, high: LoadStep, share: float, *, met: bool = True, bounded: bool = True) -> AtTarget:
    def between(one: float, other: float) -> float:
        return one + share * (other - one)

    return AtTarget(
        met=met,
        tokens_per_second=between(low.tokens_per_second, high.tokens_per_second),
        requests_per_second=between(low.requests_per_second, high.requests_per_second),
        concurrency=between(low.concurrency, high.concurrency),
        bounded=bounded,
    )


def architecture_of(manifest: SnapshotManifest) -> Sha256:
    """Return the digest that snapshots must share to share a profile.

    It is that of engine, signature, config and bytes of weights.
    """
    config = [file.sha256 for file in manifest.files if file.path == "config.json"]
    weights = sorted((file.path, file.size_bytes) for file in manifest.files if file.path.endswith(".safetensors"))
    return digest_of([manifest.engine, manifest.signature.model_dump(mode="json"), config, weights])
