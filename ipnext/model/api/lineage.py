"""Bodies of the API about single snapshots: their lineage, and holds."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import Field

from ipnext.model.registry.registry import GenerationState
from ipnext.model.value import Name, Sha256, WrittenValue

Derivation = Literal["delta", "trained on", "optimized", "cut"]
"""How a snapshot follows from another one: as changed rows of it, by more training, by a step of the model's pipeline,
or as a segment of a split."""


class TrainingRun(WrittenValue):
    """Where a snapshot comes from: the version of a source that it was published from."""

    source: Name
    key: str
    place: str
    trained_at: datetime | None = None
    tags: Mapping[str, str] = Field(default_factory=dict)
    metrics: Mapping[str, float] = Field(default_factory=dict)
    lineage: Mapping[str, str] = Field(default_factory=dict)
    """Facts of the training run, such as `run`, `experiment` or `commit`."""


class RelatedSnapshot(WrittenValue):
    """A snapshot from which another one of the same model follows."""

    part: Name
    number: int | None
    """None: the model has no snapshot of that digest."""
    digest: Sha256
    derivation: Derivation
    hardware: tuple[Name, ...] = Field(default=(), exclude_if=lambda kinds: not kinds)
    """Hardware kinds that it was derived, or cut, for; empty: all others of its part, or it is neither."""


class LineageGeneration(WrittenValue):
    """A generation with the snapshot."""

    number: int
    state: GenerationState
    created_at: datetime
    serving_at: datetime | None = None
    """When it last began to serve; None: it has not."""
    users_in: Mapping[Name, float] = Field(default_factory=dict)
    """Region of users -> share of their requests that it answers."""


class LineagePlacement(WrittenValue):
    """Replicas that load the snapshot, as desired."""

    part: Name
    """The part whose hosts load it."""
    region: Name
    hardware: Name
    replicas: int
    generations: tuple[int, ...]


class HoldView(WrittenValue):
    """A hold of a snapshot: its bytes are not collected until the hold is released."""

    model: Name
    part: Name
    number: int
    reason: str
    held_by: str
    created_at: datetime


class SnapshotLineage(WrittenValue):
    """Training run -> snapshot -> derived snapshots -> generations -> placements."""

    model: Name
    part: Name
    number: int
    digest: Sha256
    created_at: datetime
    size_bytes: int
    collected_at: datetime | None = None
    """When its bytes were released; None: they are kept."""
    held: HoldView | None = None
    training_run: TrainingRun | None = None
    """None if it was published by a client."""
    parent: RelatedSnapshot | None = None
    derived: tuple[RelatedSnapshot, ...] = ()
    generations: tuple[LineageGeneration, ...] = ()
    """The newest first, at most 20."""
    placements: tuple[LineagePlacement, ...] = ()


class HoldRequest(WrittenValue):
    """A request to hold a snapshot, or to release its hold."""

    reason: str = Field(min_length=1, max_length=500)
