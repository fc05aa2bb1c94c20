"""Publish into a store: every file is checked, missing blobs are stored, the manifest comes last."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from ipnext.artifacts.hashing import chunks_of, hash_stream
from ipnext.artifacts.layout import LARGEST_MANIFEST_BYTES, mismatch, read_manifest
from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.sources import ArtifactSource, DirectorySource, signature_of
from ipnext.artifacts.stores.locations import open_source
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput
from ipnext.model.registry.registry import SNAPSHOT_FILE, ArtifactFile, SnapshotManifest, SnapshotSource
from ipnext.model.registry.signing import SignatureEnvelope

Announce = Callable[[SnapshotManifest], None]
"""Called with the manifest before the store's blobs are checked, so that a collection keeps them."""

Sign = Callable[[str, SignatureEnvelope], None]
"""Stores the signatures of a committed snapshot, by its digest; its refusal ends the upload."""

Trained = Callable[[ArtifactSource], datetime | None]
"""Returns when the training of a directory's snapshot ended; None if that is not known."""


def ingest_directory(store: ArtifactStore, directory: Path, *, announce: Announce = lambda _: None) -> SnapshotSource:
    """Bring a snapshot directory into the store. Links may lead only to files inside the directory.

    Each file's size and each blob's SHA-256 are checked, also for blobs that the store already has. Raises InvalidInput
    (no snapshot.json, a bad one, an unsafe path), ArtifactMissing, ArtifactDigestMismatch, Unavailable.
    """
    return ingest(store, DirectorySource(directory, roots=(directory,)), announce=announce)


def ingest_uri(  # noqa: PLR0913 - what may be read, and what is done meanwhile
    store: ArtifactStore,
    uri: str,
    *,
    roots: Sequence[Path] = (),
    buckets: Sequence[str] = (),
    endpoint_url: str | None = None,
    announce: Announce = lambda _: None,
    sign: Sign | None = None,
    trained: Trained = lambda _: None,
) -> SnapshotSource:
    """Bring the source of a uri into the store: a directory below a root, or a prefix in one of the buckets.

    A snapshot of the store itself is used unchanged. `trained` reads when its training ended. PathNotAllowed names the
    allowed roots or buckets.
    """
    if uri.startswith(f"{store.uri}/snapshots/"):
        return SnapshotSource(manifest=store.manifest(uri), uri=uri)
    source = open_source(uri, roots=roots, buckets=buckets, endpoint_url=endpoint_url)
    found = ingest(store, source, announce=announce, sign=sign)
    return found.model_copy(update={"trained_at": trained(source)})


def ingest(
    store: ArtifactStore, source: ArtifactSource, *, announce: Announce = lambda _: None, sign: Sign | None = None
) -> SnapshotSource:
    """Bring a source into the store: check and store each blob, by the first of its names, then commit."""
    manifest = _manifest_of(source)
    announce(manifest)
    for file in manifest.files:
        _check_size(source, file)
    missing = store.missing({file.sha256 for file in manifest.files})
    checked = set[str]()
    for file in manifest.files:
        if file.sha256 in missing:
            _put(store, source, file)
            missing -= {file.sha256}
        elif file.sha256 not in checked:
            _check(source, file)
        checked.add(file.sha256)
    envelope = signature_of(source, manifest)
    uri = store.commit(manifest)
    if envelope is not None:
        (sign or store.put_signature)(manifest.digest, envelope)
    return SnapshotSource(manifest=manifest, uri=uri)


def _manifest_of(source: ArtifactSource) -> SnapshotManifest:
    try:
        size = source.size_bytes(SNAPSHOT_FILE)
    except ArtifactMissing as error:
        msg = f"{source.uri} holds no {SNAPSHOT_FILE}; a snapshot is a directory with one, written last"
        raise InvalidInput(msg, field="uri", value=source.uri) from error
    if size > LARGEST_MANIFEST_BYTES:
        msg = f"{SNAPSHOT_FILE} in {source.uri} has {size} bytes; allowed: {LARGEST_MANIFEST_BYTES}"
        raise InvalidInput(msg, field="uri", value=source.uri)
    with source.open(SNAPSHOT_FILE) as stream:
        return read_manifest(stream.read(LARGEST_MANIFEST_BYTES), f"{SNAPSHOT_FILE} in {source.uri}")


def _check_size(source: ArtifactSource, file: ArtifactFile) -> None:
    found = source.size_bytes(file.path)
    if found != file.size_bytes:
        subject = f"file {file.path!r} in {source.uri}"
        error = ArtifactDigestMismatch(f"{subject} has {found} bytes, {SNAPSHOT_FILE} says {file.size_bytes}")
        error.public_message = f"{subject} has not the {file.size_bytes} bytes that {SNAPSHOT_FILE} says"
        raise error


def _put(store: ArtifactStore, source: ArtifactSource, file: ArtifactFile) -> None:
    with source.open(file.path) as stream:
        try:
            store.put_blob(file.sha256, chunks_of(stream))
        except ArtifactDigestMismatch as error:
            subject = f"file {file.path!r} in {source.uri}"
            named = ArtifactDigestMismatch(f"{subject}: {error.message}")
            named.public_message = f"{subject}: {error.public.message}"
            raise named from error


def _check(source: ArtifactSource, file: ArtifactFile) -> None:
    with source.open(file.path) as stream:
        found, _ = hash_stream(stream)
    if found != file.sha256:
        subject = f"file {file.path!r} in {source.uri}"
        raise mismatch(subject, expected=file.sha256, found=found)
