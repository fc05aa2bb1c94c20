"""Files that appear whole or not at all: temporary name, fsync, rename."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from ipnext.errors import Unavailable


def write_whole(target: Path, chunks: Iterable[bytes], *, scratch: Path, mode: int = 0o666) -> None:
    """Write a file in `scratch` (same file system) and rename it to `target`; an exception leaves no file.

    `mode` is its permissions, less those that the process's umask removes.
    """
    with refusing_full_disk(target):
        scratch.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch / uuid.uuid4().hex
    try:
        write_synced(temporary, chunks, mode=mode)
        with refusing_full_disk(target):
            temporary.replace(target)
            sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_synced(path: Path, chunks: Iterable[bytes], *, mode: int = 0o666) -> None:
    """Write a new file and sync it to the disk. Unavailable if the disk refuses.

    Exceptions of `chunks` pass unchanged: they are not the disk's faults.
    """
    with refusing_full_disk(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.fdopen(os.open(path, flags, mode), "wb", buffering=0)
    with file:
        for chunk in chunks:
            with refusing_full_disk(path):
                _write_all(file, chunk)
        with refusing_full_disk(path):
            os.fsync(file.fileno())


def _write_all(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def sync_directory(path: Path) -> None:
    """Sync a directory's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def refusing_full_disk(path: Path) -> Iterator[None]:
    """Raise Unavailable instead of OSError: the disk is full, read-only, broken or forbidden."""
    try:
        yield
    except OSError as error:
        msg = f"cannot use {path}: {error.strerror or error}; free the disk or mend its rights, then try again"
        raise Unavailable(msg) from error
