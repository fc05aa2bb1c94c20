"""Scratch directories of activities, of which a killed worker leaves none for long.

A directory is locked while it is in use, and the kernel ends the lock with the process. So those that nothing holds are
removed before each further one.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PREFIX: Final = "ipnext-scratch-"
LEFT_SECONDS: Final = 60.0
"""A directory that was changed since may not be locked yet."""


@contextmanager
def scratch_directory(purpose: str) -> Iterator[Path]:
    """Yield a directory, which is removed with the context; remove those that killed workers left behind."""
    remove_left()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def remove_left() -> None:
    """Remove the scratch directories that nothing uses any more."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_left(place):
            shutil.rmtree(place, ignore_errors=True)


def _is_left(place: Path) -> bool:
    """Return whether a directory is this user's, and no process holds it."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        about = os.fstat(descriptor)
        if about.st_uid != os.geteuid() or time.time() - about.st_mtime < LEFT_SECONDS:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
