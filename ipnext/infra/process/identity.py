"""Identifies a process so that another one with the same process id is not mistaken for it. Linux only."""

import os
import select
from pathlib import Path
from signal import Signals, pidfd_send_signal
from typing import NamedTuple

PROC = Path("/proc")
_START_TIME = 22 - 3
"""Index of field 22 of /proc/PID/stat (proc_pid_stat(5)) among those after the command, which may contain spaces and
brackets."""


class ProcessIdentity(NamedTuple):
    """A process id and the start time of its process, in clock ticks after the boot of the machine."""

    pid: int
    started_ticks: int


def identify(pid: int, *, proc: Path = PROC) -> ProcessIdentity | None:
    """Return the identity of a process; None if there is none with this id."""
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessIdentity(pid=pid, started_ticks=int(stat.rpartition(b")")[2].split()[_START_TIME]))


def open_process(identity: ProcessIdentity, *, proc: Path = PROC) -> int | None:
    """Return a descriptor of exactly this process (pidfd_open(2)).

    None if it has ended, even if its id is in use again. OSError if the kernel is older than Linux 5.3.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if identify(identity.pid, proc=proc) != identity:  # from here on the descriptor names one process for good
        os.close(descriptor)
        return None
    return descriptor


def runs(identity: ProcessIdentity, *, proc: Path = PROC) -> bool:
    """Return whether exactly this process runs; False if it has ended, even if it was not reaped."""
    descriptor = open_process(identity, proc=proc)
    if descriptor is None:
        return False
    try:
        return not select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)


def kill(identity: ProcessIdentity, number: Signals, *, proc: Path = PROC) -> bool:
    """Send a signal to exactly this process. False if it has ended."""
    descriptor = open_process(identity, proc=proc)
    if descriptor is None:
        return False
    try:
        pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
