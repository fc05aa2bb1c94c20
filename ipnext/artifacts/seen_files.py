"""Record of hashed files in a cached snapshot, with their file status: a file changed since is hashed again.

The time of a file's last change of status (ctime) changes with every write, rename or change of its other times, and no
program can set it. So weights of many gigabytes are checked by one `stat` instead of by reading them.

The record finds damage. It is no protection: a writer of the cache can write the record, too. Hosts of models that name
signers hash every file themselves before each load (`serving.snapshots.fetch.verify_snapshot`).
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ipnext.artifacts.atomic_files import write_whole
from ipnext.artifacts.hashing import hash_stream
from ipnext.errors import Unavailable
from ipnext.model.registry.registry import SEEN_FILE, ArtifactFile, SnapshotManifest
from ipnext.names import LIBRARY_FILE


def write_own(target: Path, content: bytes) -> None:
    """Write a file of the platform into a snapshot's directory, which never has a half-written one.

    Errors of `write_whole`.
    """
    scratch = target.parent.parent / f".{uuid.uuid4().hex}"
    try:
        write_whole(target, [content], scratch=scratch)
    finally:
        with suppress(OSError):
            scratch.rmdir()


def note_files(directory: Path, manifest: SnapshotManifest) -> None:
    """Record the snapshot files that were just hashed: path -> size, inode, mtime and ctime.

    If there is no space for the record, they are hashed again next time.
    """
    with suppress(OSError, Unavailable):
        seen = {file.path: _state(directory / file.path) for file in manifest.files}
        write_own(directory / SEEN_FILE, json.dumps(seen).encode())


def are_whole(directory: Path, manifest: SnapshotManifest) -> bool:
    """Return whether every file is there with exactly its bytes. Native code is hashed each time.

    OSError if one is missing.
    """
    changed = tuple(_find_changed(directory, manifest))
    hashed: dict[int, str] = {}
    for file in changed:
        path = directory / file.path
        found = path.stat(follow_symlinks=False)
        if found.st_size != file.size_bytes:
            return False
        if found.st_ino not in hashed:  # names of one file are hashed once
            hashed[found.st_ino] = _sha256(path)
        if hashed[found.st_ino] != file.sha256:
            return False
    if any(file.path != LIBRARY_FILE for file in changed):
        note_files(directory, manifest)
    return True


def _find_changed(directory: Path, manifest: SnapshotManifest) -> Iterator[ArtifactFile]:
    seen = _read_states(directory)
    for file in manifest.files:
        if file.path == LIBRARY_FILE or seen.get(file.path) != _state(directory / file.path):
            yield file


def _read_states(directory: Path) -> dict[str, object]:
    try:
        found = json.loads((directory / SEEN_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(path: Path) -> list[int]:
    found = path.stat(follow_symlinks=False)
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hash_stream(stream)[0]
