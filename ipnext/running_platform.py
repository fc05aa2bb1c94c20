"""Names the process that wrote an entry of the credentials file, and says later whether it runs still.

Linux. On another system a process is known by its id alone.
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
    """What is known of a process that wrote an entry."""

    RUNS = "runs"
    ENDED = "ended"
    ELSEWHERE = "elsewhere"
    """On another machine, or in another container, that has the same file: process ids say nothing here."""


def name_this_process() -> Mapping[str, Any]:
    """What tells this process from all others, also from a later one with its id."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), **_here()}


def life_of(entry: Mapping[str, Any]) -> Life:
    """Whether the process that these fields name runs."""
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
    started = _started(pid)
    same = started is None or started == entry.get("started", started)
    return Life.RUNS if same else Life.ENDED


def _here() -> Mapping[str, str]:
    """Machine, its boot, and the name space of process ids."""
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
        pass  # another user's
    return pid > 0


def _started(pid: int) -> int | None:
    """When it started, in clock ticks after the boot; None if the system does not tell, or it has ended."""
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
