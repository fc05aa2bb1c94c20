"""From a store to a directory of plain files, each checked while it is read."""

import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ipnext.artifacts.atomic_files import refusing_full_disk, sync_directory, write_synced
from ipnext.artifacts.disk_reserve import DiskReserve
from ipnext.artifacts.hashing import chunks_of, verify_chunks
from ipnext.artifacts.layout import manifest_bytes
from ipnext.artifacts.seen_files import are_whole, note_files, write_own
from ipnext.errors import ArtifactMissing
from ipnext.model.registry.registry import SIGNATURE_FILE, SNAPSHOT_FILE, ArtifactFile, SnapshotManifest


def lay_out(
    manifest: SnapshotManifest,
    directory: Path,
    *,
    digest: str,
    open_blob: Callable[[str], BinaryIO],
    reserve: DiskReserve,
) -> Path:
    """Create `directory/<digest>` with all files of the snapshot; keep a complete one.

    Each blob is read from the store once; further names of it are hard links, if the file system has them, else copies.
    Any number of processes may do so at once: each writes a separate directory and the first to rename it wins. An
    interrupted download leaves a hidden directory, never one with the final name. InsufficientStorage if the snapshot
    would leave less free space than `reserve`.
    """
    final = directory / digest
    if _complete(final, manifest):
        return final
    reserve.check(sum(file.size_bytes for file in manifest.files))
    scratch = directory / f".{digest}.{uuid.uuid4().hex}"
    try:
        with refusing_full_disk(directory):
            scratch.mkdir(parents=True)
        first: dict[str, Path] = {}
        for file in manifest.files:
            target = scratch / file.path
            if file.sha256 in first:
                _link(first[file.sha256], target, file, reserve)
            else:
                _write(target, file, open_blob, reserve)
                first[file.sha256] = target
        write_synced(scratch / SNAPSHOT_FILE, [manifest_bytes(manifest)])
        note_files(scratch, manifest)
        _move_in(scratch, final, manifest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def lay_signature(final: Path, content: bytes | None) -> None:
    """Write the signature next to a snapshot's files.

    An unsigned snapshot keeps an existing file, which is judged before use.
    """
    target = final / SIGNATURE_FILE
    if content is not None and not (target.is_file() and target.read_bytes() == content):
        write_own(target, content)


def _write(target: Path, file: ArtifactFile, open_blob: Callable[[str], BinaryIO], reserve: DiskReserve) -> None:
    with refusing_full_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        blob = open_blob(file.sha256)
    except ArtifactMissing as error:
        msg = f"file {file.path!r}: {error.message}"
        raise ArtifactMissing(msg) from error
    with blob:
        _copy(blob, target, file, reserve)


def _link(first: Path, target: Path, file: ArtifactFile, reserve: DiskReserve) -> None:
    """Give a written file a further name."""
    with refusing_full_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # no hard links here, or too many of this file
        target.hardlink_to(first)
        return
    with first.open("rb") as stream:
        _copy(stream, target, file, reserve)


def _copy(stream: BinaryIO, target: Path, file: ArtifactFile, reserve: DiskReserve) -> None:
    content = reserve.guard(chunks_of(stream))
    write_synced(target, verify_chunks(content, sha256=file.sha256, subject=f"file {file.path!r}"))


def _move_in(scratch: Path, final: Path, manifest: SnapshotManifest) -> None:
    """Rename into place. A loser of the race keeps the winner's directory; a damaged one is moved out first."""
    with refusing_full_disk(final):
        while True:
            try:
                scratch.rename(final)
            except OSError:
                if not final.exists():
                    raise
            else:
                sync_directory(final.parent)
                return
            if _complete(final, manifest):
                return
            _move_out(final)


def _move_out(damaged: Path) -> None:
    aside = damaged.parent / f".{damaged.name}.{uuid.uuid4().hex}"
    with suppress(FileNotFoundError):  # another process moved it out first
        damaged.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _complete(final: Path, manifest: SnapshotManifest) -> bool:
    """Return whether every file is there with exactly its bytes, and the manifest too."""
    try:
        return (final / SNAPSHOT_FILE).read_bytes() == manifest_bytes(manifest) and are_whole(final, manifest)
    except OSError:
        return False
