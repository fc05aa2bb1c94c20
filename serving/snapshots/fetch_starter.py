"""Starts fetching processes, begins logs and reaches other hosts for a confined host, which can't.

A fork from before its confinement. Host and keeper communicate over a socket pair. The keeper has at most one fetching
process, and ends with the host.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final, NoReturn

from setproctitle import setproctitle

from ipnext.errors import Forbidden, IPnextError, Unavailable

_START: Final = b"start"
_END: Final = b"end"
_LOG: Final = b"log "
_REACH: Final = b"reach "
_FDS: Final = 2
_BYTES: Final = 1024
"""Largest message in bytes."""

Logs = Callable[[str], IO[bytes]]
"""Begins the log of a name. OSError or an IPnextError if that is impossible or forbidden."""
Reaches = Callable[[str], tuple[socket.socket, str]]
"""Connects to the URL of another host; returns the connection and the proof for it. Errors as of Logs."""


class FetchProcess:
    """The used subset of subprocess.Popen, for a process started by another one."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str], end: Callable[[], None]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._end = end

    def kill(self) -> None:
        """Send SIGKILL through the keeper; the process has ended once this returns."""
        self._end()

    def wait(self) -> None:
        """Return at once: a killed process has already ended."""


class FetchingKeeper:
    """The keeper; it forks on creation. Only before this process has other threads, sockets or an event loop."""

    def __init__(
        self,
        run: Callable[[], None],
        *,
        logs: Logs | None = None,
        reaches: Reaches | None = None,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        """`run` is the main function of a fetching process, on its standard input and output.

        `logs` begins logs and `reaches` connects to other hosts, both in the keeper.

        `at_end` is called in the keeper before it ends with the host, unless both are killed.
        """
        self._one_at_a_time = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._channel.close()
            _keep(theirs, run, logs, reaches, at_end)
        theirs.close()

    def start(self) -> FetchProcess:
        """Start a fetching process in place of the former one. Unavailable if the keeper has ended."""
        told, fds = self._ask(_START)
        if len(fds) < _FDS:
            msg = "the process that starts those that fetch snapshots has ended; this host fetches no more"
            raise Unavailable(msg)
        return FetchProcess(int(told), os.fdopen(fds[0], "w"), os.fdopen(fds[1]), self._end)

    def begin_log(self, name: str) -> IO[bytes]:
        """Begin the log of this name in the keeper; return it opened for appending and reading.

        Unavailable with the reason.
        """
        told, fds = self._ask(_LOG + name.encode())
        if not fds:
            msg = (
                f"log {name} could not be begun: "
                f"{told.decode(errors='replace') or 'the process that begins it has ended'}"
            )
            raise Unavailable(msg)
        return os.fdopen(fds[0], "a+b", buffering=0)

    def reach(self, url: str) -> tuple[socket.socket, str]:
        """Connect to another host in the keeper; return the connection and the proof for it.

        OSError with the reason.
        """
        told, fds = self._ask(_REACH + url.encode())
        if not fds:
            msg = f"{url} not reached: {told.decode(errors='replace') or 'the process that connects has ended'}"
            raise ConnectionError(msg)
        return socket.socket(fileno=fds[0]), told.decode()

    def close(self) -> None:
        """End the keeper and its fetching process; it has ended once this returns."""
        self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _end(self) -> None:
        self._ask(_END)

    def _ask(self, question: bytes) -> tuple[bytes, list[int]]:
        """Return the answer with its descriptors; both empty if the keeper has ended."""
        try:
            with self._one_at_a_time:
                self._channel.send(question)
                told, fds, _, _ = socket.recv_fds(self._channel, _BYTES, _FDS)
        except OSError:
            return b"", []
        return told, fds


def _keep(
    channel: socket.socket,
    run: Callable[[], None],
    logs: Logs | None,
    reaches: Reaches | None,
    at_end: Callable[[], object],
) -> NoReturn:
    """Run the keeper's process: one request after another, until the host has gone."""
    setproctitle(f"{sys.executable} -m serving.snapshots.fetch_starter")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host decides when to end
    pid = 0
    while request := _request(channel):
        if request.startswith(_LOG):
            _begin_log(channel, logs, request.removeprefix(_LOG).decode(errors="replace"))
            continue
        if request.startswith(_REACH):
            _reach(channel, reaches, request.removeprefix(_REACH).decode(errors="replace"))
            continue
        _kill(pid)
        pid = _fork(channel, run) if request == _START else 0
        if request == _END:
            channel.send(b"ended")
    _kill(pid)
    at_end()
    os._exit(0)


def _request(channel: socket.socket) -> bytes:
    try:
        return channel.recv(_BYTES)
    except OSError:
        return b""


def _begin_log(channel: socket.socket, logs: Logs | None, name: str) -> None:
    try:
        if logs is None:
            msg = "this host has no logs of its own"
            raise Forbidden(msg)
        with logs(name) as log, suppress(OSError):  # the host has gone: the next request shows it
            socket.send_fds(channel, [b"begun"], [log.fileno()])
    except (OSError, IPnextError) as error:
        with suppress(OSError):
            channel.send(str(error).encode()[:_BYTES] or b"refused")


def _reach(channel: socket.socket, reaches: Reaches | None, url: str) -> None:
    try:
        if reaches is None:
            msg = "this host reaches no others"
            raise Forbidden(msg)
        link, proof = reaches(url)
        with link, suppress(OSError):  # the host has gone: the next request shows it
            socket.send_fds(channel, [proof.encode() or b" "], [link.fileno()])
    except (OSError, IPnextError) as error:
        with suppress(OSError):
            channel.send(str(error).encode()[:_BYTES] or b"refused")


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
    with suppress(OSError):  # the host has gone: the next request shows it
        socket.send_fds(channel, [str(pid).encode()], [ask, answered])
    for fd in (asked, ask, answered, answer):
        os.close(fd)
    return pid
