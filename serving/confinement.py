"""Confines a host to what it needs, by the kernel's Landlock and `no_new_privs`. A process does it to itself, once, for ever.

What a snapshot makes a host do is bounded by this even if an engine has a fault that nobody knows: the host reads its code, its libraries
and its cache of snapshots, writes nothing, starts no program, listens on nothing further, and signals no other process.
"""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog
from landlockpy import AccessFS, AccessNet, LandlockError, Ruleset, Scope, abi_version

import ipnext
import serving
from ipnext.errors import Unavailable

_FILES: Final = ~AccessFS.RESOLVE_UNIX
"""All that is done with files. Sockets of other hosts and routers are reached by their paths, and judge who calls."""
_READ: Final = AccessFS.READ_FILE | AccessFS.READ_DIR
_WRITE: Final = (
    _READ | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | AccessFS.MAKE_REG | AccessFS.MAKE_DIR | AccessFS.REMOVE_FILE
)
_SYSTEM: Final = (
    *("/usr", "/lib", "/lib64", "/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/hosts", "/etc/resolv.conf"),
    *("/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
    *(
        f"/proc/{name}"
        for name in ("self", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "sys")
    ),
)
"""Of a Linux system: libraries, what the kernel tells about the machine and this process, names and time zones. Not all of /proc:
the environment of other processes of the same user lies there."""


class Confinement(StrEnum):
    """Whether a host confines itself."""

    OFF = "off"
    AVAILABLE = "available"
    """As far as the kernel can; a kernel without Landlock is told in the log."""
    REQUIRED = "required"
    """A host does not start without Landlock."""


def prepare() -> None:
    """Find the C library and ask the kernel, so that a fork of this process need not."""
    _version()


def confine(
    mode: Confinement, *, readable: Iterable[Path], writable: Iterable[Path] = (), connects: bool = False
) -> bool:
    """Confine this process; whether it is. Only while it has one thread: others would stay as they were.

    `readable` and `writable` are beside the code and the system's libraries. `connects`: whether it opens TCP connections. Unavailable
    if it is required and the kernel can't.
    """
    if mode is Confinement.OFF:
        return False
    version = _version()
    if version == 0:
        if mode is Confinement.REQUIRED:
            msg = "this kernel has no Landlock, and hosts are to be confined; allowed: a kernel of 5.13 or later with `landlock` among lsm=, or available"
            raise Unavailable(msg)
        structlog.get_logger().warning("the host is not confined", reason="this kernel has no Landlock")
        return False
    tempfile.gettempdir()  # torch asks for its name as it is imported, and finding it takes a file that is written there
    network = AccessNet.BIND_TCP if connects else AccessNet.BIND_TCP | AccessNet.CONNECT_TCP
    with Ruleset(handled_fs=_FILES, handled_net=network, scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL) as rules:
        for path in {*_code(), *map(Path, _SYSTEM), *readable}:
            _allow(rules, path, _READ)
        for path in {Path(os.devnull), *writable}:
            _allow(rules, path, _WRITE)
        rules.restrict()
    return True


def _version() -> int:
    try:
        return abi_version()
    except LandlockError:
        return 0


def _code() -> Iterator[Path]:
    """Where modules are imported from, but for the working directory: `python -m` puts it first, and it may be anybody's."""
    here = Path.cwd()
    for package in (ipnext, serving):
        yield from map(Path, package.__path__)
    for text in (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *sys.path):
        path = Path(text or here).resolve()
        if path != here.resolve():
            yield path


def _allow(rules: Ruleset, path: Path, access: AccessFS) -> None:
    if path.is_dir():
        rules.allow_path(path, access)
    elif path.exists():
        rules.allow_path(path, access & (AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.TRUNCATE))
