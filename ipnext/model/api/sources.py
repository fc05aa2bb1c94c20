"""Bodies of the API about sources and the versions that they found."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import Field

from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import LONGEST_KEY, MOST_LABELS, Label, VersionState
from ipnext.model.value import Name, Sha256, WrittenMoment, WrittenValue


class VersionView(WrittenValue):
    """A version that a source found, and what became of it."""

    source: Name
    part: Name
    key: str
    place: str
    state: VersionState
    message: str = ""
    trained_at: datetime | None = None
    found_at: datetime
    ended_at: datetime | None = None
    due_at: datetime | None = None
    """Time of the next attempt, after one that failed."""
    digest: str | None = None
    change_id: str | None = None
    generation: int | None = None
    change_state: ChangeState | None = None
    tags: Mapping[str, str] = Field(default_factory=dict)
    metrics: Mapping[str, float] = Field(default_factory=dict)
    lineage: Mapping[str, str] = Field(default_factory=dict)


class SourceView(WrittenValue):
    """A source, and where its watch stands."""

    model: Name
    name: Name
    part: Name
    kind: str
    upstream: str
    every: str
    spec: SourceSpec
    state: Literal["watching", "waiting", "failing", "paused"]
    """`waiting`: for the first poll."""
    cursor: str
    last_poll: datetime | None = None
    """Polls without news are recorded twice a minute."""
    last_error: str = ""
    failures: int = 0
    """Polls in a row that failed."""
    last_pick_up: datetime | None = None
    last_version: str | None = None
    """Key of the version that was published last."""
    paused_by: str | None = None
    pause_reason: str = ""
    versions: Mapping[str, int] = Field(default_factory=dict)
    """State -> number of versions."""
    run_url: str = ""


class PushedVersion(WrittenValue):
    """A version that a training system announces: the digest of an uploaded snapshot, or a uri."""

    digest: Sha256 | None = None
    uri: str | None = Field(default=None, max_length=4096)
    key: str | None = Field(default=None, min_length=1, max_length=LONGEST_KEY)
    """What makes it the same version; without it the `Idempotency-Key`, or the digest or uri."""
    trained_at: WrittenMoment | None = None
    tags: Mapping[Label, Label] = Field(default_factory=dict, max_length=MOST_LABELS)
    metrics: Mapping[Label, float] = Field(default_factory=dict, max_length=MOST_LABELS)
    lineage: Mapping[Label, Label] = Field(default_factory=dict, max_length=MOST_LABELS)


class WebhookTaken(WrittenValue):
    """Answer to a webhook."""

    upstream: str
    """The server that signed it."""


class SourceRequest(WrittenValue):
    """A request to pause, resume or poll a source."""

    reason: str = Field(default="", max_length=500)
