"""Artifacts in a directory: `file:///...`, for one machine or a shared file system."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from ipnext.artifacts import layout
from ipnext.artifacts.atomic_files import refusing_full_disk, write_whole
from ipnext.artifacts.disk_reserve import DiskReserve
from ipnext.artifacts.download import lay_out, lay_signature
from ipnext.artifacts.hashing import verify_chunks
from ipnext.artifacts.port import StoredItem
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.registry.signing import SignatureEnvelope

BLOB_MODE: Final = 0o640
"""Any client may upload a blob: no other user reads it, no user executes it. The group reads it, for hosts of
another user."""


class FileArtifactStore:
    """An ArtifactStore below a directory, which is made at the first write. Any number of processes may share it."""

    def __init__(self, root: Path, *, reserve_bytes: int = 0) -> None:
        """`reserve_bytes`: free space that every write leaves, here and where snapshots are fetched to."""
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - without '..', and a link stays a link
        self._scratch = self._root / "scratch"
        self._reserve_bytes = reserve_bytes
        self._reserve = DiskReserve(self._root, reserve_bytes)

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    @property
    def uri(self) -> str:
        """`file:///...`."""
        return self._root.as_uri()

    def missing(self, digests: Iterable[str]) -> frozenset[str]:
        """Return those of the given digests that are not in the store."""
        return frozenset(digest for digest in digests if not self._blob(digest).is_file())

    def check_room(self, size_bytes: int) -> None:
        """Raise InsufficientStorage if a blob of this size would leave less than the reserve."""
        self._reserve.check(size_bytes)

    def put_blob(self, sha256: str, chunks: Iterator[bytes]) -> None:
        """Store a blob whole or not at all; an existing one is replaced, which repairs a damaged one."""
        content = verify_chunks(self._reserve.guard(chunks), sha256=sha256, subject=f"blob {sha256}")
        write_whole(self._blob(sha256), content, scratch=self._scratch, mode=BLOB_MODE)

    def open_blob(self, sha256: str) -> BinaryIO:
        """Open a stream of the blob; the caller closes it. Raises ArtifactMissing."""
        path = self._blob(sha256)
        with refusing_full_disk(path):
            try:
                return path.open("rb")
            except FileNotFoundError as error:
                msg = f"blob {sha256} is not in {self.uri}"
                raise ArtifactMissing(msg) from error

    def check_whole(self, manifest: SnapshotManifest) -> None:
        """Check paths and size of the manifest, and that all its blobs are in the store."""
        layout.check_manifest(manifest)
        for file in manifest.files:
            self._check_blob(file.path, file.sha256, file.size_bytes)

    def commit(self, manifest: SnapshotManifest) -> str:
        """Write the manifest of a snapshot whose blobs are all in the store, whole; return its uri."""
        self.check_whole(manifest)
        digest, content = manifest.digest, layout.manifest_bytes(manifest)
        self.check_room(len(content))
        write_whole(self._root / layout.snapshot_key(digest), [content], scratch=self._scratch)
        return layout.snapshot_uri(self.uri, digest)

    def manifest(self, uri: str) -> SnapshotManifest:
        """Return the manifest of a snapshot of this store, checked against its digest."""
        digest = layout.digest_in(uri, self.uri)
        path = self._root / layout.snapshot_key(digest)
        with refusing_full_disk(path):
            try:
                content = path.read_bytes()
            except FileNotFoundError as error:
                msg = f"snapshot {uri} is not there, or was never committed"
                raise ArtifactMissing(msg) from error
        return layout.read_stored(content, digest, f"manifest of {uri}")

    def put_signature(
        self, digest: str, envelope: SignatureEnvelope, *, keep: Callable[[], Collection[str]] | None = None
    ) -> None:
        """Store signatures next to the manifest; existing ones stay."""
        self.manifest(layout.snapshot_uri(self.uri, digest))
        changes = layout.signature_changes(self._signatures(digest), envelope, digest, keep)
        for name, content in changes.added.items():
            self.check_room(len(content))
            write_whole(self._root / layout.signature_key(digest, name), [content], scratch=self._scratch)
        with refusing_full_disk(self._root):
            for name in changes.dropped:
                (self._root / layout.signature_key(digest, name)).unlink(missing_ok=True)

    def signature(self, uri: str) -> bytes | None:
        """Return the signature file of a snapshot of this store; None if it is not signed."""
        digest = layout.digest_in(uri, self.uri)
        return layout.joined_signatures(self._signatures(digest), digest)

    def _signatures(self, digest: str) -> Mapping[str, bytes]:
        """Map the names of the stored signatures to their content."""
        folder = self._root / layout.signatures_prefix(digest)
        found: dict[str, bytes] = {}
        with refusing_full_disk(folder):
            for path in folder.glob("*"):
                if layout.is_digest(path.name):
                    with suppress(FileNotFoundError):  # it has just been removed
                        found[path.name] = path.read_bytes()
        return found

    def fetch(self, uri: str, directory: Path) -> Path:
        """Write the snapshot's files into `directory/<digest>`."""
        digest = layout.digest_in(uri, self.uri)
        reserve = DiskReserve(directory, self._reserve_bytes)
        final = lay_out(self.manifest(uri), directory, digest=digest, open_blob=self.open_blob, reserve=reserve)
        lay_signature(final, self.signature(uri))
        return final

    def items(self) -> Iterator[StoredItem]:
        """Yield all blobs and manifests."""
        with refusing_full_disk(self._root):
            for path in (self._root / "blobs").glob("*"):
                yield from _item(path, path.name)
            for path in (self._root / "snapshots").glob(f"*/{SNAPSHOT_FILE}"):
                yield from _item(path, path.parent.name, is_manifest=True)

    def remove(self, item: StoredItem) -> None:
        """Remove a blob, or a manifest with its signatures: the manifest first, since it makes the snapshot exist."""
        with refusing_full_disk(self._root):
            if not item.is_manifest:
                self._blob(item.digest).unlink(missing_ok=True)
                return
            manifest = self._root / layout.snapshot_key(item.digest)
            signatures = self._root / layout.signatures_prefix(item.digest)
            for path in (manifest, *signatures.glob("*")):
                path.unlink(missing_ok=True)
            for folder in (signatures, manifest.parent):
                with suppress(OSError):  # a new signature has just arrived, or there is none
                    folder.rmdir()

    def remove_leftovers(self, *, older_than_seconds: float = 86_400.0) -> int:
        """Remove the files of killed writers in the scratch directory; return their number."""
        removed = 0
        oldest = time.time() - older_than_seconds
        for path in self._scratch.glob("*"):
            with suppress(FileNotFoundError):  # its writer was faster
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
        return removed

    def _blob(self, sha256: str) -> Path:
        return self._root / layout.blob_key(sha256)

    def _check_blob(self, path: str, sha256: str, size_bytes: int) -> None:
        try:
            found = self._blob(sha256).stat().st_size
        except FileNotFoundError as error:
            msg = f"file {path!r}: blob {sha256} is not in {self.uri}; put it before the manifest"
            raise ArtifactMissing(msg) from error
        if found != size_bytes:
            msg = f"file {path!r}: blob {sha256} has {found} bytes, the manifest says {size_bytes}"
            raise ArtifactDigestMismatch(msg)


def _item(path: Path, digest: str, *, is_manifest: bool = False) -> Iterator[StoredItem]:
    """Yield the item, unless it has been removed or is no file of the store."""
    with suppress(FileNotFoundError):
        if layout.is_digest(digest):
            found = path.stat()
            yield StoredItem(digest, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC), is_manifest)
