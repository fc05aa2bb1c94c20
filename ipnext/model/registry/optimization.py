"""Accuracy reports of derived snapshots against the snapshots that they were derived from."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field

from ipnext.model.value import Name, Sha256, Value

REPORT_FILE: Final = "optimization.json"
"""Of a derived snapshot: the report of the step that made it."""
REPLAY_FILE: Final = "replay.safetensors"
"""Of a published snapshot: requests to replay, a tensor for each input, and labels as `labels:OUTPUT`."""
FORM_OF_QUANTIZED: Final = 2
"""Version of what `quantize` writes for the same snapshot and settings."""
REPLAY_LABELS: Final = "labels:"
"""Prefix of labels in a replay set; the name of an output follows. 1 for a positive row, 0 for a negative one."""
REPLAY_GROUPS: Final = "groups:"
"""Prefix of the groups within which the rows of an output are ranked, such as users: whole numbers."""
REPLAY_FACTS: Final = (REPLAY_LABELS, REPLAY_GROUPS)
REPORT_FORMAT: Final = "ipnext/optimization/v1"


class Measured(Value):
    """One figure of both snapshots on the same requests."""

    before: float
    after: float

    @property
    def rise(self) -> float:
        """How much larger the derived snapshot's is."""
        return self.after - self.before


class LatencyPair(Measured):
    """Median times of a pass of so many rows, in microseconds. Both snapshots were run in turns, in one process."""

    batch: int


class ReplayReport(Value):
    """What was replayed."""

    rows: int
    source: Literal["replay", "drawn"]
    """`drawn`: by the signature and the sizes of tables, for there was no replay set."""
    labels: Literal["replay", "parent"] | None = None
    """`parent`: a row is positive if the former snapshot's score is above its median. None: nothing is ranked."""
    output: str | None = None
    """The output that was ranked."""
    top_k: int = 0


class AccuracyReport(Value):
    """A derived snapshot against the one that it was derived from."""

    format: Literal["ipnext/optimization/v1"] = REPORT_FORMAT
    kind: str
    settings: Mapping[str, Any]
    parent: Sha256
    tools: Mapping[str, str]
    """Tools that made it, with their versions."""
    details: Any = None
    """The step's own answer; of `quantize` the tables."""
    weights_bytes: Measured
    """Of all weights."""
    replaced_bytes: Measured
    """Of the weights that the step replaced, and of those in their place; for other kinds those of all weights."""
    replay: ReplayReport
    max_error: float
    """Largest absolute difference of any output."""
    max_relative_error: float
    """The same against the largest figure of its output."""
    auc: Measured | None = None
    log_loss: Measured | None = None
    normalized_entropy: Measured | None = None
    top_k_overlap: float | None = None
    """Share of the former snapshot's top rows that are among the derived one's."""
    latency_us: tuple[LatencyPair, ...] = ()
    broken: tuple[str, ...] = ()
    """Limits that it does not keep."""

    @property
    def bytes_ratio(self) -> float:
        """Bytes of the replaced weights after over before."""
        return self.replaced_bytes.after / self.replaced_bytes.before if self.replaced_bytes.before else 1.0

    @property
    def latency_ratio(self) -> float:
        """Largest ratio of median times, after over before."""
        return max((pair.after / pair.before for pair in self.latency_us if pair.before), default=1.0)

    @property
    def summary(self) -> str:
        """The figures in one line."""
        told = [f"weights {self.replaced_bytes.after:,.0f} of {self.replaced_bytes.before:,.0f} bytes"]
        told[0] += f" ({self.bytes_ratio:.3f}x)"
        if self.auc is not None:
            told.append(f"AUC {self.auc.after:.5f} from {self.auc.before:.5f}")
        told.append(f"largest error {self.max_error:.2g}")
        if self.latency_us:
            told.append(f"p50 {self.latency_ratio:.2f}x")
        return f"{self.kind}: {', '.join(told)}"


class Derivatives(Value):
    """How a generation's snapshots were derived from the published ones."""

    steps: Sha256
    """Digest of the pipeline."""
    parts: Mapping[Name, int] = Field(default_factory=dict)
    """Part -> number of the derived snapshot. A part is left out if every step kept what it was given."""
    by_hardware: Mapping[Name, Mapping[Name, int]] = Field(default_factory=dict, exclude_if=lambda kinds: not kinds)
    """Hardware kind -> part -> number of the snapshot on this kind, if it is another than on kinds left out."""

    @property
    def named(self) -> frozenset[tuple[str, int]]:
        """(part, number) of the snapshots of all hardware kinds."""
        return frozenset(pair for numbers in (self.parts, *self.by_hardware.values()) for pair in numbers.items())
