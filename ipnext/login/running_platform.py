"""Identifies the process that wrote an entry of the credentials file, and checks later whether it still runs.

Linux. On another system the process id alone identifies a process.
"""

import os
import platform
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

_PROC: Final = Path("/proc")
_START_TIME: Final = 22 - 3
"""Index of field 22 of /proc/PID/stat (proc_pid_stat(5)) among those after the command."""


class Life(Enum):
    """State of the process that wrote an entry."""

    RUNS = "runs"
    ENDED = "ended"
    ELSEWHERE = "elsewhere"
    """On another machine, or in another container, that shares the file: its process ids are meaningless here."""


def name_this_process() -> Mapping[str, Any]:
    """Return the fields that distinguish this process from all others, also from a later one with its id."""
    return {"pid": os.getpid(), "started": _start_time(os.getpid()), **_here()}


def life_of(entry: Mapping[str, Any]) -> Life:
    """Return the state of the process that these fields name."""
    here = _here()
    if entry.get("machine", here["machine"]) != here["machine"]:
        return Life.ELSEWHERE
    if entry.get("boot", here["boot"]) != here["boot"]:
        return Life.ENDED
    if entry.get("processes", here["processes"]) != here["processes"]:
        return Life.ELSEWHERE
    pid = entry.get("pid")
    if not isinstance(pid, int) or not _is_taken(pid):
        return Life.ENDED
    started = _start_time(pid)
    same = started is None or started == entry.get("started", started)
    return Life.RUNS if same else Life.ENDED


def _here() -> Mapping[str, str]:
    """Return machine, its boot, and the name space of process ids."""
    return {
        "machine": _text(Path("/etc/machine-id")) or platform.node(),
        "boot": _text(_PROC / "sys/kernel/random/boot_id"),
        "processes": _link(_PROC / "self/ns/pid"),
    }


def _is_taken(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it belongs to another user
    return pid > 0


def _start_time(pid: int) -> int | None:
    """Return its start time, in clock ticks after the boot; None if the system does not report it, or it has ended."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[_START_TIME])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
