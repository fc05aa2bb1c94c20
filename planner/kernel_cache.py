"""The folder of the compiled kernels: its location, the process that compiles into it now, and its completeness.

Does not import numba, so that a worker may query it before it needs a kernel.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

CACHE = "numba"
LOCK, COMPLETE = "lock", "complete"


@cache
def folder() -> Path | None:
    """Create and return the folder.

    It is in the user's cache, or in the directory for temporary files if that can't be written. None if neither can be:
    then every process compiles for itself. Its name is a digest of the kernels' sources, of their location (numba keys
    entries by it), of numba's version and of the CPU.
    """
    found = (
        _create_directory(root, _digest()) for root in (user_cache_path("ipnext"), _own_temporary()) if root is not None
    )
    return next((path for path in found if path is not None), None)


def is_complete() -> bool:
    """Check whether every kernel is compiled, so that a process loads them within seconds."""
    place = folder()
    return place is not None and (place / COMPLETE).exists()


def mark_complete() -> None:
    """Record that every kernel is compiled. If the folder can't be written, it stays as it is."""
    place = folder()
    if place is not None:
        with suppress(OSError):
            (place / COMPLETE).touch()


def is_compiling() -> bool:
    """Check whether a process of this machine compiles into the folder now."""
    place = folder()
    if place is None:
        return False
    try:
        with (place / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the folder was removed
        return False
    return False


@contextmanager
def compiling_alone() -> Iterator[None]:
    """Wait until no other process compiles into the folder, then block others. A process that dies releases them."""
    place = folder()
    with ExitStack() as lock:
        if place is not None:
            with suppress(OSError):  # a full disk, or a removed folder: each process compiles for itself
                file = lock.enter_context((place / LOCK).open("a"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def empty() -> None:
    """Remove every kernel from the folder."""
    place = folder()
    for path in () if place is None else place.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


def _digest() -> str:
    """Digest all inputs of compiled code: numba's cache checks one file only.

    It would keep a kernel if its callee in another file has changed.
    """
    import llvmlite.binding  # noqa: PLC0415 - a worker imports this module before it serves

    cpu = f"{llvmlite.binding.get_host_cpu_name()} {llvmlite.binding.get_host_cpu_features().flatten()}"
    sources = Path(__file__).parent
    digest = hashlib.sha256(f"{version('numba')} {cpu} {sources.absolute()}".encode())
    for source in sorted(sources.rglob("*.py")):
        text = source.read_bytes()
        if b"from planner.jit import" in text or source.name == "jit.py":
            digest.update(source.relative_to(sources).as_posix().encode() + text)
    return digest.hexdigest()[:16]


def _own_temporary() -> Path | None:
    """Return a directory for temporary files that no other user can write, because its content is code.

    None if there is none.
    """
    path = Path(tempfile.gettempdir()) / f"ipnext-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    own = (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
    return path if own else None


def _create_directory(root: Path, name: str) -> Path | None:
    path = root / CACHE / name
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return None
    return path
