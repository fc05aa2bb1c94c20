"""Fetching of a snapshot into a host's cache, and the check before each load. Independent of engines.

Every loader reads the directory that `verify_snapshot` returns. Loaders are: a torch host's chain, the start of an engine
and its restarts, a hot swap, and an adapter that goes into an engine.
"""

import os
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from ipnext.artifacts.signing import check_signature, signature_in
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, LoadFailed
from ipnext.model.deployment.deployment import HostedSnapshot
from ipnext.model.registry.registry import OWN_FILES, SNAPSHOT_FILE, ArtifactFile, SnapshotManifest
from serving.snapshots.fetch_process import Fetcher


class LocalSnapshot(NamedTuple):
    """A snapshot in the host's cache. Its manifest is that of its digest."""

    directory: Path
    manifest: SnapshotManifest
    is_guarded: bool = False
    """Whether every load hashes its files, because its model names signers."""


def fetch(store: Fetcher, uri: str, cache: Path, *, digest: str, is_guarded: bool) -> LocalSnapshot:
    """Fetch a snapshot from the store into the cache. ArtifactDigestMismatch if its manifest is not the one of `digest`."""
    directory = store.fetch(uri, cache)
    manifest = SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes())
    if manifest.digest != digest:
        msg = f"{uri} holds digest {manifest.digest}, wanted {digest}"
        raise ArtifactDigestMismatch(msg)
    return LocalSnapshot(directory, manifest, is_guarded)


def fetch_assigned(store: Fetcher, hold: HostedSnapshot, cache: Path) -> LocalSnapshot:
    """Fetch the snapshot of a hold. ArtifactError, SignatureInvalid, or LoadFailed if it is for another engine."""
    fetched = fetch(store, hold.uri, cache, digest=hold.digest, is_guarded=hold.is_guarded)
    if fetched.manifest.engine != hold.engine:
        msg = f"the snapshot is for engine {fetched.manifest.engine!r}, its deployment says {hold.engine!r}"
        raise LoadFailed(msg)
    if hold.signers is not None:
        subject = f"snapshot {hold.snapshot} of {hold.model}.{hold.part}"
        check_signature(hold.signers, hold.digest, signature_in(fetched.directory), subject)
    return fetched


def verify_snapshot(snapshot: LocalSnapshot) -> Path:
    """Return the directory of a snapshot for a load. If it is guarded, first hash every file.

    Records of earlier checks have no effect, because a writer of the cache could forge them. Call it directly before
    the files are read: they may change afterwards.

    Raises:
        ArtifactMissing: a file of the manifest is not there.
        ArtifactDigestMismatch: a file is not that of the manifest, or the directory holds a file, or a link, that the
            manifest does not name: an engine might read it.
    """
    if snapshot.is_guarded:
        _check_names(snapshot)
        hashed: dict[int, str] = {}
        for file in snapshot.manifest.files:
            _check_content(snapshot, file, hashed)
    return snapshot.directory


def _check_names(snapshot: LocalSnapshot) -> None:
    named = {file.path for file in snapshot.manifest.files} | OWN_FILES
    for path in _find_files(snapshot.directory):
        if path not in named:
            msg = f"{path}: snapshot {snapshot.directory.name:.12} in the cache holds it, and its manifest does not; {_REMEDY}"
            raise ArtifactDigestMismatch(msg)


def _find_files(root: Path) -> Iterator[str]:
    """Yield the paths of all files and links below a directory."""
    for directory, folders, files in os.walk(root):
        links = (name for name in folders if (Path(directory) / name).is_symlink())
        for name in (*files, *links):
            yield (Path(directory) / name).relative_to(root).as_posix()


def _check_content(snapshot: LocalSnapshot, file: ArtifactFile, hashed: dict[int, str]) -> None:
    """Compare a file with the manifest. `hashed`: inode -> SHA-256, because names of one file are hashed once."""
    path, subject = (
        snapshot.directory / file.path,
        f"{file.path} of snapshot {snapshot.directory.name:.12} in the cache",
    )
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            state = os.fstat(stream.fileno())
            is_whole = S_ISREG(state.st_mode) and state.st_size == file.size_bytes
            if is_whole and state.st_ino not in hashed:
                hashed[state.st_ino] = file_digest(stream, "sha256").hexdigest()
            is_whole = is_whole and hashed[state.st_ino] == file.sha256
    except FileNotFoundError as error:
        msg = f"{subject} is missing; {_REMEDY}"
        raise ArtifactMissing(msg) from error
    except OSError as error:
        msg = f"{subject} cannot be read: {error.strerror}; {_REMEDY}"
        raise ArtifactDigestMismatch(msg) from error
    if not is_whole:
        msg = f"{subject} is not the file of its manifest, of {file.size_bytes} bytes with SHA-256 {file.sha256}; {_REMEDY}"
        raise ArtifactDigestMismatch(msg)


_REMEDY = "remove the snapshot from the cache, then it is fetched again"
