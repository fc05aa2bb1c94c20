# ruff: noqa: PTH101, PTH102, PTH109, PTH110, PTH112, PTH115, PTH116, PTH118, PTH120, PTH211
"""Namespaces of a container: its own processes, mounts and host name.

A child enters its mounts before it runs `unshare`, whose child is process 1 of the container and dies with it. Mount
points leave no trace on the machine: a directory that lacks one is covered, in the container only, by a temporary file
system with the same entries.
"""

import ctypes
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NEW_MOUNTS, NEW_HOST_NAME = 0x00020000, 0x04000000
READ_ONLY, REMOUNT, BIND, MOVE, RECURSIVE, PRIVATE = 1, 32, 4096, 8192, 16384, 1 << 18
TOOLS = ("unshare", "nsenter", "setpriv")
NEW_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
SPARE_PLACE = "/mnt"
"""Where a file system is put together if a volume hides the scratch directory, until it is moved away."""
CANNOT_START = 128
"""Exit code of a container that does not come to run its command."""
_LIBC = ctypes.CDLL(None, use_errno=True)


@functools.cache
def is_possible() -> bool:
    """Return whether this user may make namespaces here."""
    if os.geteuid() != 0 or not all(shutil.which(each) for each in TOOLS):
        return False
    return subprocess.run([*NEW_PROCESSES, "true"], check=False, capture_output=True).returncode == 0


@dataclass(frozen=True)
class Mount:
    """A directory or file of the node at a path of a container."""

    source: Path
    target: str
    is_read_only: bool = False


@dataclass(frozen=True)
class Isolation:
    """The namespaces of one container."""

    mounts: tuple[Mount, ...]
    scratch: Path
    """An empty directory."""
    host_name: str
    directory: str | None = None
    """Where the command runs."""

    def enter(self) -> None:
        """Enter new namespaces; for the child of a fork, which ends if it cannot."""
        try:
            place = self.directory or os.getcwd()
            _check(_LIBC.unshare(NEW_MOUNTS | NEW_HOST_NAME), "unshare")
            socket.sethostname(self.host_name)
            _mount(None, "/", RECURSIVE | PRIVATE)
            _Places(str(self.scratch)).mount(self.mounts)
            os.chdir(place)
        except OSError as error:
            os.write(2, f"cannot start the container: {error}\n".encode())
            os._exit(CANNOT_START)


class _Places:
    """Mount points of one container. For the child of a fork."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._private: set[str] = set()
        """Directories that other processes do not see, so that entries may be made there."""
        self._volumes: list[str] = []

    def mount(self, mounts: Sequence[Mount]) -> None:
        """Bind the sources, outer paths before inner ones: one may hide where the source of another one is."""
        opened = [(each, os.open(each.source, os.O_PATH)) for each in mounts]
        for each, descriptor in sorted(opened, key=lambda one: one[0].target.count("/")):
            target = os.path.realpath(each.target)
            source = f"/proc/self/fd/{descriptor}"
            self._make(target, is_directory=os.path.isdir(source))
            _mount(source, target, BIND | RECURSIVE)
            if each.is_read_only:
                _mount(None, target, BIND | REMOUNT | READ_ONLY)
            self._volumes.append(target)
            os.close(descriptor)

    def _make(self, target: str, *, is_directory: bool) -> None:
        """Make a mount point unless there is one."""
        if os.path.exists(target):
            return
        parent = os.path.dirname(target)
        if not os.path.exists(parent):
            self._make(parent, is_directory=True)
        elif not self._is_private(parent):
            self._cover(parent)
        if is_directory:
            os.mkdir(target)
            self._private.add(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))

    def _is_private(self, directory: str) -> bool:
        below = (directory == each or directory.startswith(f"{each}/") for each in self._volumes)
        return directory in self._private or any(below)

    def _cover(self, directory: str) -> None:
        """Cover a directory by a temporary file system with the same entries."""
        entries = list(os.scandir(directory))
        place = self._scratch if os.path.isdir(self._scratch) else SPARE_PLACE
        _mount("tmpfs", place, 0, "tmpfs")
        os.chmod(place, os.stat(directory).st_mode & 0o7777)
        for each in entries:
            self._copy(each, os.path.join(place, each.name))
        if directory == "/":
            os.chroot(place)
        else:
            _mount(place, directory, MOVE)
        self._private.add(directory)

    def _copy(self, entry: "os.DirEntry[str]", place: str) -> None:
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), place)
            return
        if entry.is_dir():
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(entry.path, place, BIND | RECURSIVE)


def _mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
    words = [None if each is None else each.encode() for each in (source, target, kind)]
    _check(_LIBC.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def isolated(words: Sequence[str], user: Sequence[str]) -> list[str]:
    """Return the words that run a command as process 1 of new namespaces; `user` are those of `as_user`."""
    return [*NEW_PROCESSES, *user, *words]


def joined(process: int, words: Sequence[str], user: Sequence[str]) -> list[str]:
    """Return the words that run a command in the namespaces of a process."""
    spaces = ("--mount", "--pid", "--uts", "--root", "--wd")
    return ["nsenter", "--target", str(process), *spaces, "--", *user, *words]


def as_user(user: int | None, group: int | None) -> list[str]:
    """Return the words that become another user; that clears the signal of the parent's death, so it is set again."""
    if user is None:
        return []
    number = str(user if group is None else group)
    rights = ("--clear-groups", "--inh-caps=-all", "--pdeathsig", "KILL", "--")
    return ["setpriv", "--reuid", str(user), "--regid", number, *rights]
