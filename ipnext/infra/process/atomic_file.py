"""A file that is replaced as a whole: a reader sees the old content or the new one, never a part."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, durable: bool = False, private: bool = False) -> None:
    """Write `content` under a temporary name next to `path` and rename it into place.

    `durable` also survives a power cut: file and directory are synced. `private`: only this user may read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a part of it takes space on a full disk
        raise
    if durable:
        _sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file durably; a missing one is fine."""
    path.unlink(missing_ok=True)
    if path.parent.exists():
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
