"""Confinement of a process to its needs, by the kernel's Landlock and `no_new_privs`.

A process confines itself, irrevocably. It bounds the effects of a snapshot on a host or an engine, even if the engine
has an unknown vulnerability. A torch host reads its code, its libraries and its cache of snapshots. It writes nothing,
starts no program, opens no further socket, and signals no other process. The rights of a vLLM host and its engines are
in `serving.genai.engine.enclosure`.
"""

import argparse
import os
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
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
from serving.confinement.socket_filter import TCP, SocketKind, limit_sockets

_FILES: Final = ~AccessFS.RESOLVE_UNIX
"""All file accesses but sockets by path: other hosts and routers check the callers of their sockets themselves."""
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
"""Files of a Linux system: libraries, name resolution, time zone, harmless devices."""
_KERNEL: Final = tuple(
    Path("/proc") / name
    for name in ("self", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "sys")
)
"""Kernel information about the machine and this process. Not all of /proc, which has the command lines of other
processes."""


REQUIRED_VERSION: Final = 4
"""Of Landlock, if confinement is required."""
_NEEDED: Final = "version 4 (truncation of files: 3, TCP ports: 4), in Linux since 6.7"
_LATER_RIGHTS: Final = {3: "truncation of files", 4: "TCP ports", 6: "signals and abstract Unix sockets"}
"""Version of Landlock -> what it restricts from then on."""


class Confinement(StrEnum):
    """Policy for the confinement of a host."""

    OFF = "off"
    AVAILABLE = "available"
    """As far as the kernel can; the host logs what stays open."""
    REQUIRED = "required"
    """A host does not start on a kernel whose Landlock has no rules for truncation and TCP ports, or that has no
    seccomp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandlockRights:
    """Rights of a confined process.

    Paths that do not exist, or cannot be reached, are skipped; a directory includes its contents.
    """

    reads: Iterable[Path] = ()
    runs: Iterable[Path] = ()
    """Paths to read, and to start programs from."""
    writes: Iterable[Path] = ()
    devices: Iterable[Path] = ()
    binds: Iterable[int] | None = ()
    """TCP ports to listen on, 0 for ports chosen by the kernel; None: any."""
    connects: Iterable[int] | None = ()
    """TCP ports to connect to, at any address; None: any."""


def add_confinement(parser: argparse.ArgumentParser) -> None:
    """Add the confinement arguments of a host."""
    parser.add_argument(
        "--confinement",
        type=Confinement,
        choices=list(Confinement),
        default=Confinement.AVAILABLE,
        help=(
            "whether the host and its engines are confined to what they need (default available: "
            "as far as the kernel can)"
        ),
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
    """Load the C library and query the kernel, so that forks of this process need not."""
    _version()


def confine(
    mode: Confinement,
    *,
    readable: Iterable[Path],
    writable: Iterable[Path] = (),
    connects: bool = False,
    runs_programs: bool = False,
    keeps_group: bool = False,
) -> bool:
    """Confine this process, a torch host; return whether it is confined. Otherwise as `restrict`.

    `readable` and `writable` are in addition to the code and the system's libraries. `connects`: whether it opens TCP
    connections. `runs_programs`: whether it starts programs of the system and of its environment; they are confined as
    it is. `keeps_group`: neither it nor what it starts leaves its process group.
    """
    tempfile.gettempdir()  # torch needs its name on import, and determining it writes a file there
    system = (*own_code(), *SYSTEM)
    allowed = LandlockRights(
        reads=(*system, *_KERNEL, *readable),
        runs=system if runs_programs else (),
        writes=(Path(os.devnull), *writable),
        connects=None if connects else (),
    )
    return restrict(mode, allowed, sockets=TCP if connects else (), keeps_group=keeps_group)


def restrict(
    mode: Confinement, allowed: LandlockRights, *, sockets: Sequence[SocketKind], keeps_group: bool = False
) -> bool:
    """Confine this process to the allowed rights, and to new sockets of these kinds; return whether that was done.

    Only while it has a single thread: others would stay unconfined. Unavailable as for `make_ruleset`, and if sockets
    can't be limited although confinement is required.
    """
    rules = make_ruleset(mode, allowed)
    if rules is None:
        return False
    with rules:
        rules.restrict()
    restrict_sockets(mode, sockets, keeps_group=keeps_group)
    return True


def restrict_sockets(mode: Confinement, sockets: Sequence[SocketKind], *, keeps_group: bool = False) -> None:
    """Confine this process to new sockets of these kinds only. Otherwise as `restrict`."""
    if mode is Confinement.OFF:
        return
    try:
        limit_sockets(sockets, keeps_group=keeps_group)
    except Unavailable as error:
        if mode is Confinement.REQUIRED:
            raise
        structlog.get_logger().warning("the host opens sockets of any kind", reason=error.message)


def make_ruleset(mode: Confinement, allowed: LandlockRights) -> Ruleset | None:
    """Return the ruleset for this process or one that inherits the descriptor; None: unconfined. The caller closes it.

    Unavailable if confinement is required and the kernel does not support it.
    """
    if mode is Confinement.OFF:
        return None
    version = _version()
    if mode is Confinement.REQUIRED and version < REQUIRED_VERSION:
        found = f"Landlock of this kernel is of version {version}" if version else "this kernel has no Landlock"
        msg = (
            f"{found}, and IPNEXT_AGENT_HOST_CONFINEMENT=required or IPNEXT_WORKER_CONFINEMENT=required needs "
            f"{_NEEDED}; "
            "allowed: a later kernel with `landlock` among lsm=, or available"
        )
        raise Unavailable(msg)
    if version == 0:
        structlog.get_logger().warning("the host is not confined", reason="this kernel has no Landlock")
        return None
    if missing := [right for since, right in _LATER_RIGHTS.items() if version < since]:
        structlog.get_logger().warning("the host is confined in part", landlock=version, unrestricted=missing)
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
    """Yield the paths of importable modules without the working directory.

    `python -m` puts it first, and any user may own it.
    """
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


def _fill(rules: Ruleset, allowed: LandlockRights) -> None:
    files = ((_READ, allowed.reads), (_RUN, allowed.runs), (_WRITE, allowed.writes), (_DEVICE, allowed.devices))
    for access, paths in files:
        for path in set(paths):
            _allow(rules, path, access)


def _allow(rules: Ruleset, path: Path, access: AccessFS) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:  # it does not exist, or cannot be reached
        return
    rules.allow_path(path, access if stat.S_ISDIR(mode) else access & _OF_A_FILE)
