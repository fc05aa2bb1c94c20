"""Fetching of a snapshot into a host's cache, with a check that it is the assigned one. Independent of engines."""

from pathlib import Path
from typing import NamedTuple

from ipnext.artifacts.signing import check_signature, signature_in
from ipnext.errors import ArtifactDigestMismatch, LoadFailed
from ipnext.model.deployment.deployment import HostedSnapshot
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.registry.signing import SignerPolicy
from serving.snapshots.directory import verify_manifest
from serving.snapshots.fetch_process import Fetcher


class LocalSnapshot(NamedTuple):
    """A snapshot in the host's cache, its files checked."""

    directory: Path
    manifest: SnapshotManifest


def fetch(store: Fetcher, uri: str, cache: Path) -> LocalSnapshot:
    """Fetch a snapshot from the store into the cache."""
    directory = store.fetch(uri, cache)
    return LocalSnapshot(directory, SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes()))


def fetch_assigned(store: Fetcher, hold: HostedSnapshot, cache: Path) -> LocalSnapshot:
    """Fetch the snapshot of a hold. ArtifactError, SignatureInvalid, or LoadFailed if it is for another engine."""
    fetched = fetch(store, hold.uri, cache)
    manifest = fetched.manifest
    if manifest.digest != hold.digest:
        msg = f"{hold.uri} holds digest {manifest.digest}, wanted {hold.digest}"
        raise ArtifactDigestMismatch(msg)
    if manifest.engine != hold.engine:
        msg = f"the snapshot is for engine {manifest.engine!r}, its deployment says {hold.engine!r}"
        raise LoadFailed(msg)
    if hold.signers is not None:
        _check_signed(hold, hold.signers, fetched)
    return fetched


def _check_signed(hold: HostedSnapshot, signers: SignerPolicy, fetched: LocalSnapshot) -> None:
    """Check the manifest's signature, and that the cached files are those that it names."""
    subject = f"snapshot {hold.snapshot} of {hold.model}.{hold.part}"
    check_signature(signers, hold.digest, signature_in(fetched.directory), subject)
    verify_manifest(fetched.directory)
