"""Drops the privileges of root that a process does not need. A process does this to itself, irrevocably."""

import argparse
import ctypes
import os
import signal
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
FILES: Final = frozenset({CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH})
"""Capabilities to read and write files of other users, as root does; Landlock limits which files."""

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_PDEATHSIG: Final = 2
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_VERSION_3: Final = 0x20080522
_WORD_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class User:
    """A user other than root, by numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def add_user(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the user of a host."""
    parser.add_argument(
        "--user",
        type=_user,
        default=None,
        metavar="UID:GID[:GID...]",
        help=(
            "user that a host of root becomes before it sees a snapshot, with all its groups (default: "
            "it stays what it is)"
        ),
    )


def become(user: User) -> None:
    """Become this user, without root's capabilities and groups. OSError.

    If the process must end with its parent and that has ended, it ends too.
    """
    library, parent = ctypes.CDLL(None, use_errno=True), os.getppid()
    number = ctypes.c_int()
    library.prctl(_PR_GET_PDEATHSIG, ctypes.byref(number), 0, 0, 0)
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    library.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else the files of this process in /proc stay root's
    if number.value:  # the kernel forgets it with the user
        library.prctl(_PR_SET_PDEATHSIG, number.value, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def give_to(path: Path, user: User) -> None:
    """Change the owner of a file or directory to the user."""
    os.chown(path, user.uid, user.gid)


def drop_capabilities(*, keep: Collection[int] = FILES) -> None:
    """Keep only these capabilities of root, also in started programs. Does nothing for another user. OSError."""
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    permitted = _read_permitted()
    for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii")) + 1):
        if number not in keep:
            library.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # refused to a root that may not even do this
    kept = sum(1 << number for number in keep) & permitted
    low, high = kept & (2**_WORD_BITS - 1), kept >> _WORD_BITS
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0))
    if library.capset(header, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _user(text: str) -> User:
    uid, gid, *groups = (int(word) for word in text.split(":"))
    if uid == 0:
        msg = f"must not be root, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return User(uid, gid, tuple(groups))


def _read_permitted() -> int:
    """Return the capabilities that this process may use."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("CapPrm:")).split()[1], 16)
