"""The port to an artifact store: content-addressed blobs, and snapshots whose manifest is written last.

Layout below the store's root (or key prefix): `blobs/<sha256>` and `snapshots/<digest>/snapshot.json`, with an object below
`signatures/` for each signature of it, named by the SHA-256 of its content. Equal files are stored once. A snapshot exists once its manifest does, and its manifest only once all of its blobs do.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ipnext.model.registry import SnapshotManifest
from ipnext.model.signing import SignatureEnvelope


class StoredItem(NamedTuple):
    """A blob, or the manifest of a snapshot (`is_manifest`), as it lies in the store."""

    digest: str
    size_bytes: int
    changed_at: datetime
    """When it was written last."""
    is_manifest: bool = False


class ArtifactStore(Protocol):
    """Holds immutable snapshots. Raises ArtifactMissing, ArtifactDigestMismatch or Unavailable."""

    @property
    def uri(self) -> str:
        """`file:///...` or `s3://bucket/prefix`; `artifacts.opening.open_store(uri)` gives an equal store."""

    def missing(self, digests: Iterable[str]) -> frozenset[str]:
        """Those of the given blob SHA-256 digests that the store does not hold yet."""

    def put_blob(self, sha256: str, chunks: Iterator[bytes]) -> None:
        """Store a blob. Content of another digest raises ArtifactDigestMismatch and leaves nothing behind."""

    def open_blob(self, sha256: str) -> BinaryIO:
        """A stream of the blob; the caller closes it. ArtifactMissing where there is none."""

    def check_whole(self, manifest: SnapshotManifest) -> None:
        """Raise what `commit` would refuse a snapshot with, and write nothing: a blob that is not here, or of another size."""

    def commit(self, manifest: SnapshotManifest) -> str:
        """Write the manifest of a snapshot whose blobs are all here; return the snapshot's uri.

        ArtifactMissing names the first blob that is not. Committing the same manifest twice is one snapshot.
        """

    def manifest(self, uri: str) -> SnapshotManifest:
        """The manifest of a snapshot uri of this store. ArtifactMissing, ArtifactDigestMismatch."""

    def put_signature(
        self, digest: str, envelope: SignatureEnvelope, *, keep: Callable[[], Collection[str]] | None = None
    ) -> None:
        """Keep signatures beside the manifest of a snapshot that is committed; those that are there already stay.

        Any number of processes may add some at once: none takes another's away.
        `keep`: asked for the ids of keys whose signatures stay if there would be more than MOST_KEPT; None: all.
        ArtifactMissing where the snapshot is not; SignatureInvalid where the envelope is of another one.
        """

    def signature(self, uri: str) -> bytes | None:
        """All signatures of a snapshot uri of this store, as a signature file; None where it is not signed."""

    def fetch(self, uri: str, directory: Path) -> Path:
        """Lay out a snapshot as a directory of plain files, each checked against its SHA-256 while it is read; its signature beside them.

        Returns `directory/<digest>`; one that is already complete there is checked by size and kept. A half-written
        one never carries the final name.
        """

    def items(self) -> Iterator[StoredItem]:
        """All blobs and manifests, in any order; what comes or goes meanwhile may be missing or gone."""

    def remove(self, item: StoredItem) -> None:
        """Remove a blob, or a manifest with its signatures. One that is gone already is no error."""

    def remove_leftovers(self, *, older_than_seconds: float = 86_400.0) -> int:
        """Remove what writers left that were killed; return how many. A bucket's own rule does so for its uploads."""
