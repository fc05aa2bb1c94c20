"""Port of upstream systems: one class for each kind of source, an entry point of the group `ipnext.sources`.

The poll with a cursor is the truth: a webhook only causes one earlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ipnext.artifacts.sources import ArtifactSource
from ipnext.model.registry.sources import FoundVersion, Listing
from ipnext.sources.access import ReadAccess


class Source(Protocol):
    """One stream of snapshots. Calls come from any thread and may take a minute."""

    def list_since(self, cursor: str) -> Listing:
        """Return the versions since a cursor, oldest first, and the next cursor; empty for the first poll.

        A version may be listed again: its key decides whether it is new. A poll that lists all versions of the stream
        says so (`Listing.whole`): only then can old rows of versions be collected. Raises Unavailable if the upstream
        system does not answer; NotFound if the stream is not there; PathNotAllowed if it may not be read.
        """

    def open(self, version: FoundVersion) -> ArtifactSource:
        """Return the files of a version.

        Raises ArtifactMissing, PathNotAllowed or Unavailable, now or as they are read.
        """


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A stream to connect to: its settings in the manifest, and what may be read for it."""

    settings: Any
    access: ReadAccess


class SourceKind(Protocol):
    """A kind of upstream system."""

    name: str
    """Its name in manifests and lists."""

    def upstream(self, settings: Any) -> str:
        """Return the name of the system that has a stream, for a person. Those of one name are polled together.

        Raises InvalidInput, naming the field, if the settings are wrong.
        """

    def check(self, settings: Any, access: ReadAccess) -> None:
        """Check without a connection whether a stream may be read. Raises PathNotAllowed."""

    def connect(self, streams: Sequence[StreamRequest]) -> Sequence[Source]:
        """Return the source of each stream of one upstream system, for one poll or for reading.

        They may share what one request returns.
        """
