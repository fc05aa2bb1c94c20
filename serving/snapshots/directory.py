"""Writing and checking of a snapshot directory: hashed files, manifest last, never half-written.

Used by export, split and deltas.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import Final

from ipnext.artifacts.hashing import hash_stream
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput
from ipnext.model.registry.registry import OWN_FILES, SNAPSHOT_FILE, ArtifactFile, SnapshotManifest

_REMEDY: Final = "remove the snapshot from the cache, then it is fetched again"


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
    with path.open("rb") as stream:
        sha256, size_bytes = hash_stream(stream)
        os.fsync(stream.fileno())
    return ArtifactFile(path=path.name, sha256=sha256, size_bytes=size_bytes)


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


def verify_cached(directory: Path, manifest: SnapshotManifest) -> None:
    """Hash every file of a snapshot in a cache, and look for others. Names of one file are hashed once.

    Records of earlier checks have no effect, because a writer of the cache could forge them. A file may change
    afterwards.

    Raises:
        ArtifactMissing: a file of the manifest is not there.
        ArtifactDigestMismatch: a file is not that of the manifest, or the directory holds a file, or a link, that the
            manifest does not name: an engine might read it.
    """
    named = {file.path for file in manifest.files} | OWN_FILES
    foreign = next((path for path in _find_files(directory) if path not in named), None)
    if foreign is not None:
        msg = f"{foreign}: snapshot {directory.name:.12} in the cache holds it, and its manifest does not; {_REMEDY}"
        raise ArtifactDigestMismatch(msg)
    hashed: dict[int, str] = {}
    for file in manifest.files:
        _check_content(directory, file, hashed)


def _find_files(root: Path) -> Iterator[str]:
    """Yield the paths of all files and links below a directory."""
    for directory, folders, files in os.walk(root):
        links = (name for name in folders if (Path(directory) / name).is_symlink())
        for name in (*files, *links):
            yield (Path(directory) / name).relative_to(root).as_posix()


def _check_content(directory: Path, file: ArtifactFile, hashed: dict[int, str]) -> None:
    """Compare a file with the manifest. `hashed`: inode -> SHA-256."""
    subject = f"{file.path} of snapshot {directory.name:.12} in the cache"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(directory / file.path, flags), "rb") as stream:
            state = os.fstat(stream.fileno())
            is_whole = S_ISREG(state.st_mode) and state.st_size == file.size_bytes
            if is_whole and state.st_ino not in hashed:
                hashed[state.st_ino], _ = hash_stream(stream)
            is_whole = is_whole and hashed[state.st_ino] == file.sha256
    except FileNotFoundError as error:
        msg = f"{subject} is missing; {_REMEDY}"
        raise ArtifactMissing(msg) from error
    except OSError as error:
        msg = f"{subject} cannot be read: {error.strerror}; {_REMEDY}"
        raise ArtifactDigestMismatch(msg) from error
    if not is_whole:
        whole = f"of {file.size_bytes} bytes with SHA-256 {file.sha256}"
        msg = f"{subject} is not the file of its manifest, {whole}; {_REMEDY}"
        raise ArtifactDigestMismatch(msg)


def write_last(path: Path, text: str) -> None:
    """Write the file that makes a directory a snapshot."""
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
