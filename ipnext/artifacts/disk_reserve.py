"""Free space of a disk that snapshots leave to small files of state: keys, audit, route tables, access lists."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipnext.artifacts.atomic_files import refusing_full_disk
from ipnext.errors import InsufficientStorage

RESERVE_BYTES: Final = 2**30
"""Default of IPNEXT_DISK_RESERVE_BYTES."""
_LOOK_BYTES: Final = 4 * 2**20
"""Bytes written between two looks at the disk. Writers side by side take at most this much of the reserve each."""


class DiskReserve:
    """The reserve of one directory's disk. Writers check it before they begin, and while they write."""

    def __init__(self, directory: Path, reserve_bytes: int) -> None:
        """`directory` may be missing: its disk is that of the nearest directory above it. 0 bytes: no reserve."""
        self._directory, self._reserve_bytes = directory, reserve_bytes

    def check(self, size_bytes: int) -> None:
        """Raise InsufficientStorage unless the disk has room for these bytes and the reserve.

        Unavailable if it fails.
        """
        if not self._reserve_bytes:
            return
        free = free_bytes(self._directory)
        if free - size_bytes < self._reserve_bytes:
            msg = (
                f"the disk of {self._directory} has {free} bytes free, which is too little for {size_bytes} "
                "bytes and the reserve of "
                f"{self._reserve_bytes} bytes (IPNEXT_DISK_RESERVE_BYTES); free the disk, then try again"
            )
            raise InsufficientStorage(msg)

    def guard(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the chunks as long as the disk has room for them. Raises as `check`."""
        unseen = _LOOK_BYTES
        for chunk in chunks:
            unseen += len(chunk)
            if unseen >= _LOOK_BYTES:
                self.check(len(chunk))
                unseen = 0
            yield chunk


def free_bytes(directory: Path) -> int:
    """Return the bytes that this user may still write to the disk of a directory. Raises Unavailable."""
    with refusing_full_disk(directory):
        there = next(path for path in (directory, *directory.parents) if path.is_dir())
        found = os.statvfs(there)
    return found.f_bavail * found.f_frsize
