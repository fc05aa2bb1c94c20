"""Files for this user alone, and sets of files that change together."""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ipnext.errors import Conflict

_CURRENT: Final = "..data"
"""Kubernetes' name: a link to the directory with the current files."""


def make_private_directory(path: Path) -> None:
    """Make a directory that only this user may enter."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)


def make_own_directory(path: Path, *, otherwise: str) -> None:
    """Make a directory for this user alone in a place that others may write, such as the temporary directory.

    Conflict if another user has made it, or may write it, or it is no directory; `otherwise` names a remedy besides
    removing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not _is_made_own(path):
        msg = f"{path} belongs to another user, others may write it, or it is no directory; remove it, or {otherwise}"
        raise Conflict(msg)


def _is_made_own(path: Path) -> bool:
    """Keep all others out of a directory. False if it is not this user's, or others could write it until now.

    One descriptor is judged and changed, so that the path may not come to name another directory in between.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not _is_own(os.fstat(descriptor)):
            return False
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    return True


def is_own_directory(path: Path) -> bool:
    """Return whether a directory is this user's, and neither its group nor others may write into it."""
    return _is_own(path.stat())


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def let_group_enter(path: Path, group: int) -> None:
    """Let a group open files by name in a directory, without listing it. Do nothing if all users may enter."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & stat.S_IXOTH:
        os.chown(path, -1, group)
        path.chmod(mode & ~stat.S_IRWXG | stat.S_IXGRP)


def keep_new_files_private() -> None:
    """Make new files of this process and its children readable by this user alone. For the start of a program."""
    os.umask(0o077)


def write_private_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole. It never exists with another mode than 0600."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def replace_file_set(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put files in force together: their names are links through one link, which is renamed into place.

    A reader of one file after the other may still get two sets, and must check that they fit.
    """
    make_private_directory(directory)
    former = (directory / _CURRENT).resolve()
    current = directory / f"..{secrets.token_hex(8)}"
    make_private_directory(current)
    for name, content in files.items():
        write_private_file(current / name, content)
    _link(directory / _CURRENT, current.name)
    for name in files:
        if not (directory / name).is_symlink():
            _link(directory / name, f"{_CURRENT}/{name}")
    if former.name != _CURRENT:
        shutil.rmtree(former, ignore_errors=True)


def _link(path: Path, target: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.symlink_to(target)
    temporary.replace(path)
