"""Fetching of a snapshot into a host's cache, and the check before each load. Independent of engines.

Every loader reads the directory that `verify_snapshot` returns. Loaders are: a torch host's chain, the start of an
engine and its restarts, a hot swap, and an adapter that goes into an engine.
"""

from pathlib import Path
from typing import NamedTuple

from ipnext.artifacts.signing import check_signature, signature_in
from ipnext.errors import ArtifactDigestMismatch, LoadFailed, SnapshotDenied
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from serving.snapshots.directory import verify_cached
from serving.snapshots.fetch_process import Fetcher


class LocalSnapshot(NamedTuple):
    """A snapshot in the host's cache. Its manifest is that of its digest."""

    directory: Path
    manifest: SnapshotManifest
    is_guarded: bool = False
    """Whether every load hashes its files, because its model names signers."""


def fetch(store: Fetcher, uri: str, cache: Path, *, digest: str, is_guarded: bool) -> LocalSnapshot:
    """Fetch a snapshot from the store into the cache.

    ArtifactDigestMismatch if its manifest is not the one of `digest`.
    """
    directory = store.fetch(uri, cache)
    manifest = SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes())
    if manifest.digest != digest:
        msg = f"{uri} holds digest {manifest.digest}, wanted {digest}"
        raise ArtifactDigestMismatch(msg)
    return LocalSnapshot(directory, manifest, is_guarded)


def fetch_assigned(store: Fetcher, hold: HostedSnapshot, cache: Path) -> LocalSnapshot:
    """Fetch the snapshot of a hold.

    ArtifactError, SignatureInvalid, SnapshotDenied, or LoadFailed if it is for another engine.
    """
    subject = f"snapshot {hold.snapshot} of {hold.model}.{hold.part}"
    if hold.denied:
        msg = f"{subject}: {hold.denied}"
        raise SnapshotDenied(msg)
    fetched = fetch(store, hold.uri, cache, digest=hold.digest, is_guarded=hold.is_guarded)
    if fetched.manifest.engine != hold.engine:
        msg = f"the snapshot is for engine {fetched.manifest.engine!r}, its deployment says {hold.engine!r}"
        raise LoadFailed(msg)
    if hold.signers is not None:
        check_signature(hold.signers, hold.digest, signature_in(fetched.directory), subject)
    return fetched


def verify_snapshot(snapshot: LocalSnapshot) -> Path:
    """Return the directory of a snapshot for a load. If it is guarded, first hash every file.

    Call it directly before the files are read. Errors of `verify_cached`.
    """
    if snapshot.is_guarded:
        verify_cached(snapshot.directory, snapshot.manifest)
    return snapshot.directory
