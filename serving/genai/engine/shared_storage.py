"""A directory shared by several engines, also of other hosts, that is emptied once no engine uses it.

A user holds a shared lock on a file next to it; if a process is killed, the kernel releases its lock.
"""

import fcntl
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO


class SharedStorage:
    """The directory, from the view of one user. Its methods may wait for the disk: call them in a thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: IO[bytes] | None = None

    def take(self) -> None:
        """Start using the directory. The first user empties it: any content is left over from killed engines.

        OSError.
        """
        if self._lock is not None:
            return
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        lock = self.directory.with_suffix(".lock").open("wb")
        try:
            if _alone(lock):
                self._empty()
            fcntl.flock(lock, fcntl.LOCK_SH)
            self.directory.mkdir(exist_ok=True)
        except OSError:
            lock.close()
            raise
        self._lock = lock

    def release(self) -> None:
        """Stop using the directory. The last user empties it."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        with lock:
            if _alone(lock):
                self._empty()

    def _empty(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def _alone(lock: IO[bytes]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
