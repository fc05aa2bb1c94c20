"""Processes of another user than root, in tests that run as root.

Such a user has to reach Python and this repository.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipnext.infra.process.host_user import DEFAULT, HostUser, find_user

HERE = Path(__file__).parents[1]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


def nobody() -> HostUser:
    """The user that hosts have if nothing else is said."""
    user = find_user(DEFAULT)
    assert user is not None
    return user


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that all users may enter, which those of pytest are not."""
    path = Path(tempfile.mkdtemp(prefix="ipnext-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def with_open_python(scratch: Path) -> list[str]:
    """Words before a command: it runs where all users may enter the directories of Python and of the repository.

    That is in a mount namespace of its own, in which nothing else is left of a directory that is closed. Skips if there
    can be none.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), HERE}
    steps = [
        step for number, closed in enumerate(_closed(needed)) for step in _opened(scratch / str(number), closed, needed)
    ]
    if not steps:
        return []
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{sys.base_prefix} is closed to other users, and this machine lets nobody mount")
    return ["unshare", "--mount", "sh", "-c", " && ".join([*steps, 'exec "$@"']), "sh"]


def _closed(needed: set[Path]) -> list[Path]:
    """The highest directories above these that others may not enter."""
    above = (next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None) for path in needed)
    return sorted({path for path in above if path is not None})


def _opened(kept: Path, closed: Path, needed: set[Path]) -> Iterator[str]:
    yield shlex.join(["mkdir", "-p", str(kept)])
    yield shlex.join(["mount", "--bind", str(closed), str(kept)])
    yield shlex.join(["mount", "-t", "tmpfs", "-o", "mode=755", "none", str(closed)])
    for path in sorted(needed):
        if path.is_relative_to(closed):
            yield f"(umask 022 && {shlex.join(['mkdir', '-p', str(path)])})"
            yield shlex.join(["mount", "--bind", str(kept / path.relative_to(closed)), str(path)])
