"""Confines a process to what it needs, by the kernel's Landlock and `no_new_privs`. A process does it to itself, once, for ever.

What a snapshot makes a host or an engine do is bounded by this even if an engine has a fault that nobody knows. A torch host reads its
code, its libraries and its cache of snapshots, writes nothing, starts no program, listens on nothing further, and signals no other
process. What a vLLM host and its engines may do is in `serving.genai.engine.enclosure`.
"""

import argparse
import os
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from operator import or_
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
_RUN: Final = _READ | AccessFS.EXECUTE
_MAKE: Final = AccessFS.MAKE_REG | AccessFS.MAKE_DIR | AccessFS.MAKE_SOCK | AccessFS.MAKE_FIFO | AccessFS.MAKE_SYM
_REMOVE: Final = AccessFS.REMOVE_FILE | AccessFS.REMOVE_DIR | AccessFS.REFER
_WRITE: Final = _READ | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | _MAKE | _REMOVE
_DEVICE: Final = _READ | AccessFS.WRITE_FILE | AccessFS.IOCTL_DEV
_OF_A_FILE: Final = AccessFS.READ_FILE | AccessFS.WRITE_FILE | AccessFS.TRUNCATE | AccessFS.EXECUTE | AccessFS.IOCTL_DEV

SYSTEM: Final = tuple(
    map(
        Path,
        (
            *("/usr", "/lib", "/lib64", "/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/hosts", "/etc/resolv.conf"),
            *("/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"),
            *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
        ),
    )
)
"""Of a Linux system: libraries, names and time zones, devices that give nothing away."""
_KERNEL: Final = tuple(
    Path("/proc") / name
    for name in ("self", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "sys")
)
"""What the kernel tells about the machine and this process. Not all of /proc: command lines of other processes lie there."""


class Confinement(StrEnum):
    """Whether a host confines itself."""

    OFF = "off"
    AVAILABLE = "available"
    """As far as the kernel can; a kernel without Landlock is told in the log."""
    REQUIRED = "required"
    """A host does not start without Landlock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a confined process may do. Paths that do not exist, or are out of its reach, are left out; a directory stands for all that is in it."""

    reads: Iterable[Path] = ()
    runs: Iterable[Path] = ()
    """Read, and programs in them started."""
    writes: Iterable[Path] = ()
    devices: Iterable[Path] = ()
    binds: Iterable[int] | None = ()
    """TCP ports to listen on, 0 for those that the kernel chooses; None: any."""
    connects: Iterable[int] | None = ()
    """TCP ports to connect to, at any address; None: any."""


def add_confinement(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a host."""
    parser.add_argument(
        "--confinement",
        type=Confinement,
        choices=list(Confinement),
        default=Confinement.AVAILABLE,
        help="whether the host and its engines are confined to what they need (default available: as far as the kernel can)",
    )
    parser.add_argument(
        "--readable",
        type=Path,
        action="append",
        default=[],
        help="path that they may read beside their code and the cache",
    )
    parser.add_argument("--writable", type=Path, action="append", default=[], help="path that they may write")


def prepare() -> None:
    """Find the C library and ask the kernel, so that a fork of this process need not."""
    _version()


def confine(
    mode: Confinement, *, readable: Iterable[Path], writable: Iterable[Path] = (), connects: bool = False
) -> bool:
    """Confine this process, a torch host; whether it is. As `restrict`.

    `readable` and `writable` are beside the code and the system's libraries. `connects`: whether it opens TCP connections.
    """
    tempfile.gettempdir()  # torch asks for its name as it is imported, and finding it takes a file that is written there
    allowed = Allowed(
        reads=(*own_code(), *SYSTEM, *_KERNEL, *readable),
        writes=(Path(os.devnull), *writable),
        connects=None if connects else (),
    )
    return restrict(mode, allowed)


def restrict(mode: Confinement, allowed: Allowed) -> bool:
    """Take from this process all that is not allowed; whether that was done. Only while it has one thread: others would stay as they were.

    Unavailable as for `make_ruleset`.
    """
    rules = make_ruleset(mode, allowed)
    if rules is None:
        return False
    with rules:
        rules.restrict()
    return True


def make_ruleset(mode: Confinement, allowed: Allowed) -> Ruleset | None:
    """What the kernel is to enforce, for this process or one that inherits the descriptor; None: nothing. The caller closes it.

    Unavailable if it is required and the kernel can't.
    """
    if mode is Confinement.OFF:
        return None
    if _version() == 0:
        if mode is Confinement.REQUIRED:
            msg = "this kernel has no Landlock, and hosts are to be confined; allowed: a kernel of 5.13 or later with `landlock` among lsm=, or available"
            raise Unavailable(msg)
        structlog.get_logger().warning("the host is not confined", reason="this kernel has no Landlock")
        return None
    asked = ((AccessNet.BIND_TCP, allowed.binds), (AccessNet.CONNECT_TCP, allowed.connects))
    ports = [(access, numbers) for access, numbers in asked if numbers is not None]
    network = reduce(or_, (access for access, _ in ports), AccessNet.NONE)
    rules = Ruleset(handled_fs=_FILES, handled_net=network, scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL)
    try:
        _fill(rules, allowed)
        for access, numbers in ports:
            for number in numbers:
                rules.allow_port(number, access)
    except BaseException:
        rules.close()
        raise
    return rules


def own_code() -> Iterator[Path]:
    """Where modules are imported from, but for the working directory: `python -m` puts it first, and it may be anybody's."""
    here = Path.cwd()
    for package in (ipnext, serving):
        yield from map(Path, package.__path__)
    for text in (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *sys.path):
        path = Path(text or here).resolve()
        if path != here.resolve():
            yield path


def _version() -> int:
    try:
        return abi_version()
    except LandlockError:
        return 0


def _fill(rules: Ruleset, allowed: Allowed) -> None:
    files = ((_READ, allowed.reads), (_RUN, allowed.runs), (_WRITE, allowed.writes), (_DEVICE, allowed.devices))
    for access, paths in files:
        for path in set(paths):
            _allow(rules, path, access)


def _allow(rules: Ruleset, path: Path, access: AccessFS) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:  # it is not there, or not to be reached
        return
    rules.allow_path(path, access if stat.S_ISDIR(mode) else access & _OF_A_FILE)
