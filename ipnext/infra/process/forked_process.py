"""A process that another one forked for this one.

Its parent ended, so the kernel gave it to this process, a subreaper.
"""

import asyncio
import ctypes
import errno
import os
import signal
import sys
from contextlib import suppress

from ipnext.infra.process.spawn import end_group, send

PR_SET_CHILD_SUBREAPER = 36
UNKNOWN_STATUS = 255
"""Reported, as by asyncio, if another caller has already reaped the process."""


class ForkedProcess:
    """A child of this process that another one forked. Create it in the event loop; OSError if it has already ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._status = self._loop.create_future()
        self._loop.add_reader(self._descriptor, self._note_end)

    async def wait(self) -> int:
        """Return its status once it has ended; below zero the signal that ended it."""
        status: int = await asyncio.shield(self._status)
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if it has ended. SIGKILL goes to its whole process group."""
        if not self._status.done():
            send(self.pid, number)

    def _note_end(self) -> None:
        self._loop.remove_reader(self._descriptor)
        end_group(self.pid)
        status = _reap(self._descriptor)
        os.close(self._descriptor)
        self._status.set_result(status)


class OrphanReaper:
    """Reaps adopted orphans, so that none stays a zombie.

    A child that this process started has a waiter that reaps it at once. A child still unreaped at the next check is an
    orphan.
    """

    def __init__(self) -> None:
        self._seen: int | None = None

    def look(self) -> bool:
        """Reap the child that the last check saw too; return whether there is more to do.

        Checks must not follow each other at once.
        """
        first = _first_ended()
        if first is not None and first == self._seen:
            with suppress(ChildProcessError):
                os.waitpid(first, os.WNOHANG)
            first = _first_ended()
        self._seen = first
        return first is not None


def become_subreaper() -> bool:
    """Make this process the subreaper of orphans below it. False if the system cannot do that, or cannot watch them."""
    if sys.platform != "linux" or not _pidfds_work():
        return False
    return bool(ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def end_fork(pid: int) -> None:
    """Send SIGKILL to a fork that may not lead its group yet, and to its group."""
    end_group(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _pidfds_work() -> bool:
    try:
        descriptor = os.pidfd_open(os.getpid())
    except OSError:
        return False
    try:
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except OSError as error:
        return error.errno == errno.ECHILD  # of oneself; an older kernel reports an unknown argument
    finally:
        os.close(descriptor)
    return True


def _reap(descriptor: int) -> int:
    try:
        result = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
    except ChildProcessError:
        return UNKNOWN_STATUS
    if result is None:
        return UNKNOWN_STATUS
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _first_ended() -> int | None:
    """Return the id of a child that has ended and was not reaped."""
    try:
        result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return result.si_pid if result is not None else None
