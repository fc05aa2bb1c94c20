"""Ties a child's life to its parent's: the kernel kills the child when the parent ends, however that happens."""

import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def tether() -> Callable[[], None]:
    """Return a function for `preexec_fn`: the child gets SIGKILL when the calling thread of this process ends.

    Linux only. Call and spawn from the main thread: the kernel watches the thread that forked, not the process. The
    child's own children are not tied; it must tether them too.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        if prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return die_with_parent
