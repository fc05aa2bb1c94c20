"""Versions of a model in upstream systems, and what became of them."""

from collections.abc import Mapping
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Final

from pydantic import Field

from ipnext.model.value import Value, canonical_json

LONGEST_KEY: Final = 512
LONGEST_PLACE: Final = 4096
LONGEST_CURSOR: Final = 4096
MOST_LABELS: Final = 256
"""Tags, metrics or facts of the lineage of one version."""
Label = Annotated[str, Field(max_length=5000)]
"""A tag, or a fact of the lineage."""


class FoundVersion(Value):
    """A version that a source has found. Two with one key are the same version."""

    key: str = Field(min_length=1, max_length=LONGEST_KEY)
    """Idempotency key within the stream."""
    place: str = Field(max_length=LONGEST_PLACE)
    """Its place, in the form of its kind of source."""
    trained_at: datetime | None = None
    """When training ended; None if the upstream system does not say."""
    tags: Mapping[Label, Label] = Field(default_factory=dict, max_length=MOST_LABELS)
    metrics: Mapping[Label, float] = Field(default_factory=dict, max_length=MOST_LABELS)
    lineage: Mapping[Label, Label] = Field(default_factory=dict, max_length=MOST_LABELS)
    """Facts of the training run, such as `run`, `experiment` or `commit`."""


class SnapshotOrigin(Value):
    """The version of a source that a snapshot was published from, with its training run. Kept with the snapshot."""

    source: str
    key: str
    place: str
    trained_at: datetime | None = None
    tags: Mapping[Label, Label] = Field(default_factory=dict)
    metrics: Mapping[Label, float] = Field(default_factory=dict)
    lineage: Mapping[Label, Label] = Field(default_factory=dict)

    @classmethod
    def of(cls, source: str, version: FoundVersion) -> "SnapshotOrigin":
        """Return the origin of a snapshot that is published from a version of a source."""
        return cls(source=source, **dict(version))


class Listing(Value):
    """The answer of one poll of one stream."""

    cursor: str = Field(max_length=LONGEST_CURSOR)
    """Where the next poll goes on."""
    versions: tuple[FoundVersion, ...] = ()
    """Versions since the former cursor, oldest first; known ones may be among them."""
    whole: bool = False
    """`versions` are all that the stream has: one that lacks is gone."""
    more: bool = False
    """There are newer ones: list again from the new cursor before any is published."""


class Reach(IntEnum):
    """What a source may read, by who applied its manifest."""

    OWNER = 0
    """Roots, buckets and URLs with the owner's name."""
    SHARED = 1
    """Those of all owners, too: the principal publishes for all."""
    ANY = 2
    """Any: an administrator applied it, and the setting `administrators_read` allows it."""


class VersionState(StrEnum):
    """What became of a version."""

    HELD = "held"
    """The promotion rule does not let it pass yet."""
    FOUND = "found"
    """It will be published, unless a newer one comes first."""
    PUBLISHED = "published"
    SUPERSEDED = "superseded"
    """A newer version was published in its place."""
    REFUSED = "refused"
    """Its content can't be published."""

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it."""
        return self in {VersionState.PUBLISHED, VersionState.SUPERSEDED, VersionState.REFUSED}


LARGEST_VERSION_BYTES: Final = 64 * 2**10
"""Of a stored version."""
SHORT: Final = 200
"""Characters of a label of a version that is too large."""


def shrink(version: FoundVersion) -> FoundVersion:
    """Return a version that is not too large to be stored: without long labels, then without any of the lineage."""
    if len(canonical_json(version).encode()) <= LARGEST_VERSION_BYTES:
        return version
    tags, lineage = (
        {k: v for k, v in each.items() if len(k) + len(v) <= SHORT} for each in (version.tags, version.lineage)
    )
    metrics = {name: value for name, value in version.metrics.items() if len(name) <= SHORT}
    return version.model_copy(update={"tags": tags, "lineage": lineage, "metrics": metrics})
