"""What fork servers have in common: their socket, whether they may fork, and how a fork becomes a process of its own.

For programs that import others and fork them on request; `fork_server_process` forks hosts, the worker's forks tools.
"""

import os
import socket
import sys
from typing import Any


def take_control_socket() -> socket.socket:
    """Return the socket of standard input, and replace standard input by /dev/null."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return control


def explain_threads() -> str | None:
    """Return why this process may not fork, or None.

    A fork has only the thread that forks, and locks of other threads would stay locked for ever.
    """
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are all that is wanted
    return f"{threads} threads run" if threads > 1 else None


def leave_server() -> None:
    """Close what a fork inherited but for its standard streams, and draw a new random state.

    Python's own is reseeded by each fork; torch's is that of a fresh process.
    """
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)  # noqa: PTH208 - as above
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
