"""Starts fetching processes for a host that may start none any more: a fork of it from before it was confined.

Host and keeper talk over a pair of sockets. The keeper has at most one fetching process, and ends with the host.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final, NoReturn

from setproctitle import setproctitle

from ipnext.errors import Unavailable

_START: Final = b"start"
_END: Final = b"end"
_FDS: Final = 2


class KeptProcess:
    """What is used of subprocess.Popen, of a process that another one started."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str], end: Callable[[], None]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._end = end

    def kill(self) -> None:
        """SIGKILL, by the keeper; it has ended once this returns."""
        self._end()

    def wait(self) -> None:
        """Nothing is left to wait for once it was killed."""


class FetchingKeeper:
    """Forks at once. Only before this process has other threads, sockets or a loop of its own."""

    def __init__(self, run: Callable[[], None]) -> None:
        """`run` is what a fetching process does with its standard input and output."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._channel.close()
            _keep(theirs, run)
        theirs.close()

    def start(self) -> KeptProcess:
        """Start a fetching process in place of the one before. Unavailable if the keeper has ended."""
        try:
            self._channel.send(_START)
            told, fds, _, _ = socket.recv_fds(self._channel, 32, _FDS)
        except OSError:
            told, fds = b"", []
        if len(fds) < _FDS:
            msg = "the process that starts those that fetch snapshots has ended; this host fetches no more"
            raise Unavailable(msg)
        return KeptProcess(int(told), os.fdopen(fds[0], "w"), os.fdopen(fds[1]), self._end)

    def close(self) -> None:
        """End the keeper, and the fetching process with it."""
        self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _end(self) -> None:
        with suppress(OSError):
            self._channel.send(_END)
            self._channel.recv(32)


def _keep(channel: socket.socket, run: Callable[[], None]) -> NoReturn:
    """The keeper's process: one request after another, until the host has gone."""
    setproctitle(f"{sys.executable} -m serving.fetching_keeper")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host decides when to end
    pid = 0
    while request := _request(channel):
        _kill(pid)
        pid = _fork(channel, run) if request == _START else 0
        if request == _END:
            channel.send(b"ended")
    _kill(pid)
    os._exit(0)


def _request(channel: socket.socket) -> bytes:
    try:
        return channel.recv(32)
    except OSError:
        return b""


def _kill(pid: int) -> None:
    if pid:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(channel: socket.socket, run: Callable[[], None]) -> int:
    asked, ask = os.pipe()
    answered, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(asked, 0)
        os.dup2(answer, 1)
        os.closerange(3, max(asked, ask, answered, answer, channel.fileno()) + 1)
        run()
        os._exit(1)
    with suppress(OSError):  # the host has gone: the next request says so
        socket.send_fds(channel, [str(pid).encode()], [ask, answered])
    for fd in (asked, ask, answered, answer):
        os.close(fd)
    return pid
