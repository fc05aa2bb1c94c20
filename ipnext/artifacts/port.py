"""The port to an artifact store: content-addressed blobs, and snapshots whose manifest is written last.

Layout below the store's root (or key prefix): `blobs/<sha256>` and `snapshots/<digest>/snapshot.json`, with an object
below `signatures/` for each signature of it, named by the SHA-256 of its content. Equal files are stored once. A
snapshot exists once its manifest does, and its manifest only once all of its blobs do.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.registry.signing import SignatureEnvelope


class StoredItem(NamedTuple):
    """A stored blob, or the manifest of a snapshot (`is_manifest`)."""

    digest: str
    size_bytes: int
    changed_at: datetime
    """Time of the last write."""
    is_manifest: bool = False


class ArtifactStore(Protocol):
    """Holds immutable snapshots. Raises ArtifactMissing, ArtifactDigestMismatch or Unavailable."""

    @property
    def uri(self) -> str:
        """`file:///...` or `s3://bucket/prefix`; `artifacts.stores.locations.open_store(uri)` gives an equal store."""

    def missing(self, digests: Iterable[str]) -> frozenset[str]:
        """Return those of the given blob SHA-256 digests that the store does not have yet."""

    def check_room(self, size_bytes: int) -> None:
        """Raise InsufficientStorage if a blob of this size would leave less free space than the reserve of the disk."""

    def put_blob(self, sha256: str, chunks: Iterator[bytes]) -> None:
        """Store a blob. Content of another digest raises ArtifactDigestMismatch and leaves nothing behind."""

    def open_blob(self, sha256: str) -> BinaryIO:
        """Open a stream of the blob; the caller closes it. ArtifactMissing if there is none."""

    def check_whole(self, manifest: SnapshotManifest) -> None:
        """Raise the error with which `commit` would refuse a snapshot, and write nothing.

        A blob is missing, or of another size.
        """

    def commit(self, manifest: SnapshotManifest) -> str:
        """Write the manifest of a snapshot whose blobs are all in the store; return the snapshot's uri.

        ArtifactMissing names the first missing blob. Committing the same manifest twice is one snapshot.
        """

    def manifest(self, uri: str) -> SnapshotManifest:
        """Return the manifest of a snapshot uri of this store. Raises ArtifactMissing or ArtifactDigestMismatch."""

    def put_signature(
        self, digest: str, envelope: SignatureEnvelope, *, keep: Callable[[], Collection[str]] | None = None
    ) -> None:
        """Store signatures next to the manifest of a committed snapshot; existing ones stay.

        Any number of processes may add some at once: none removes another's. `keep` returns the ids of keys whose
        signatures stay if there would be more than MOST_KEPT; None: all. ArtifactMissing if the snapshot is missing;
        SignatureInvalid if the envelope is of another one.
        """

    def signature(self, uri: str) -> bytes | None:
        """Return all signatures of a snapshot uri of this store, as a signature file; None if it is not signed."""

    def fetch(self, uri: str, directory: Path) -> Path:
        """Write a snapshot as a directory of plain files, with its signature.

        Each file is checked against its SHA-256 while it is read.

        Returns `directory/<digest>`; a complete one is checked by size and kept. An incomplete one never has the final
        name.
        """

    def items(self) -> Iterator[StoredItem]:
        """Yield all blobs and manifests, in any order.

        Items that are added or removed at the same time may be missing or gone.
        """

    def remove(self, item: StoredItem) -> None:
        """Remove a blob, or a manifest with its signatures. A missing one is no error."""

    def remove_leftovers(self, *, older_than_seconds: float = 86_400.0) -> int:
        """Remove the files of killed writers; return their number. In a bucket, a rule of the bucket does so."""
