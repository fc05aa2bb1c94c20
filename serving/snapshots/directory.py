"""Writing and checking of a snapshot directory: hashed files, manifest last, never half-written.

Used by export, split and deltas.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput
from ipnext.model.registry.registry import SNAPSHOT_FILE, ArtifactFile, SnapshotManifest

_CHUNK: Final = 2**20


def check_directory(directory: Path) -> Path:
    """Return the directory if it does not exist or is empty; else InvalidInput."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        msg = f"directory: {str(directory)!r} must not exist or be an empty directory; a snapshot is never overwritten"
        raise InvalidInput(msg, field="directory", value=str(directory))
    return directory


@contextmanager
def half_written(target: Path) -> Iterator[Path]:
    """Yield a temporary directory next to `target` that is renamed to it at the end, or removed on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def artifact_file(path: Path) -> ArtifactFile:
    """Return the manifest entry of a written file; its bytes are on the disk when this returns."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        os.fsync(stream.fileno())
    return ArtifactFile(path=path.name, sha256=digest.hexdigest(), size_bytes=path.stat().st_size)


def verify_manifest(directory: Path) -> SnapshotManifest:
    """Return the manifest of a complete, undamaged snapshot after reading every file.

    InvalidInput or an ArtifactError.
    """
    path = directory / SNAPSHOT_FILE
    if not path.is_file():
        msg = f"directory: {str(directory)!r} is no snapshot: it has no {SNAPSHOT_FILE}; export_model writes one"
        raise InvalidInput(msg, field="directory", value=str(directory))
    try:
        manifest = SnapshotManifest.model_validate_json(path.read_bytes())
    except ValueError as error:
        msg = f"directory: {SNAPSHOT_FILE} cannot be read: {error}"
        raise InvalidInput(msg, field="directory", value=str(directory)) from error
    for file in manifest.files:
        if not (directory / file.path).is_file():
            msg = f"{file.path}: the snapshot's manifest names it, and it is missing"
            raise ArtifactMissing(msg)
        if artifact_file(directory / file.path).sha256 != file.sha256:
            msg = f"{file.path}: its SHA-256 is not the one that {SNAPSHOT_FILE} names"
            raise ArtifactDigestMismatch(msg)
    return manifest


def write_last(path: Path, text: str) -> None:
    """Write the file that makes a directory a snapshot."""
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
