"""What processes under test run, and whether they have ended: each may end while one looks."""

from collections.abc import Iterable

import psutil


def command_line(process: psutil.Process) -> str:
    """Empty of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def runs(process: psutil.Process) -> bool:
    """Whether it runs still; one that has ended but was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether none of them runs any more."""
    return not any(runs(process) for process in processes)
