"""Runs tools as forks of one process that has imported them, or else as fresh processes.

A fresh process takes seconds of CPU time for its imports, torch's above all. The server is started by the first tool of
a worker, which waits for the same imports. If it can't be started, gives no answer, or runs in another environment, a
tool is a fresh process as before.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import structlog

from activities.runtime.child_process import POLL_SECONDS, ChildFiles, child_environment, run_child
from activities.runtime.tool_server_process import GO, MESSAGE_BYTES, MODULES
from ipnext.errors import Unavailable

Beat = Callable[[float], None]

ANSWER_SECONDS: Final = 60.0
"""Longest wait for a fork, with the imports of a server that has just been started."""
IDLE_SECONDS: Final = 300.0
"""A server without a run for so long ends, and gives its memory back."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""One thread for each operation, as in hosts, whatever the worker has; and a process with several threads can't be
forked."""
_ROOM: Final = {"IPNEXT_COMMAND_LINE_ROOM": " " * 4096}
"""Forks write their command lines over that of the server and over its environment, which may be small."""


class ToolServer:
    """Starts the server at the first run, and again after its end. Its methods may be called by several threads."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._python = sys.executable
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._environment: Mapping[str, str] = {}
        atexit.register(self.stop)

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def run(self, command: Sequence[str], files: ChildFiles, beat: Beat, *, environment: Mapping[str, str]) -> int:
        """Run `python -m MODULE PARENT ...`; see `run_child`. A run whose server is killed ends as by SIGKILL."""
        match list(command):
            case [self._python, "-m", module, _, *arguments] if module in MODULES and files.job is None:
                asked = {"module": module, "arguments": arguments, "command": " ".join(command)}
            case _:
                return run_child(command, files, beat, environment=environment)
        started = time.monotonic()
        try:
            with contextlib.closing(self._ask({**asked, "environment": dict(environment)}, files)) as channel:
                pid = self._await_fork(channel, lambda: beat(time.monotonic() - started))
                return _watch(channel, pid, lambda: beat(time.monotonic() - started))
        except _NotForked as error:
            structlog.get_logger().warning("not forked, started afresh", module=module, reason=str(error))
        return run_child(command, files, beat, environment=environment)

    def stop(self) -> None:
        """Kill the server; its forks end with it."""
        with self._lock:
            self._end()

    def _ask(self, asked: Mapping[str, Any], files: ChildFiles) -> socket.socket:
        """Request a fork, and return the channel of its run."""
        message = json.dumps(asked).encode()
        if len(message) > MESSAGE_BYTES:
            msg = f"the request has {len(message)} bytes, more than {MESSAGE_BYTES}"
            raise _NotForked(msg)
        with contextlib.ExitStack() as here:
            answer, errors = (here.enter_context(file.open("wb")) for file in (files.answer, files.errors))
            channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            here.enter_context(theirs)
            try:
                with self._lock:
                    control = self._running()
                    socket.send_fds(control, [message], [theirs.fileno(), answer.fileno(), errors.fileno()])
            except (OSError, _NotForked) as error:
                channel.close()
                raise _NotForked(str(error)) from error
        return channel

    def _running(self) -> socket.socket:
        """Return the socket of the server, which is started if none runs in this environment."""
        environment = child_environment(ONE_THREAD)
        if self.pid is None or self._control is None:
            self._end()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-m", "activities.runtime.tool_server_process", str(self._idle_seconds)]
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own program
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**environment, **_ROOM},
                )
            descriptor = os.pidfd_open(self._process.pid)
            threading.Thread(target=self._reap, args=(self._process, descriptor), daemon=True).start()
            ours.settimeout(ANSWER_SECONDS)
            self._control, self._environment = ours, environment
        elif self._environment != environment:  # libraries read some variables when they are loaded
            msg = "the fork server has another environment"
            raise _NotForked(msg)
        return self._control

    def _reap(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        """Take the status of a server that ends by itself, which would stay a zombie until the next run."""
        _is_readable(descriptor, None)
        os.close(descriptor)
        with self._lock:
            process.poll()

    def _await_fork(self, channel: socket.socket, beat: Callable[[], None]) -> int:
        until = time.monotonic() + ANSWER_SECONDS
        while not _is_readable(channel.fileno(), POLL_SECONDS):
            beat()
            if time.monotonic() > until:
                self.stop()
                msg = f"the fork server gave no answer within {ANSWER_SECONDS:g} s"
                raise _NotForked(msg)
        answer = _receive(channel)
        if "pid" not in answer:
            raise _NotForked(answer.get("refused", "the fork server has ended"))
        return int(answer["pid"])

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


class _NotForked(Unavailable):
    """There is no fork, and none will begin its program."""


def _watch(channel: socket.socket, pid: int, beat: Callable[[], None]) -> int:
    """Let the fork begin, and return its status. It has ended when this returns or raises, and its group is killed."""
    with _descriptor_of(pid) as fork:
        answer: Mapping[str, Any] | None = None
        try:
            with contextlib.suppress(OSError):  # it was killed: its status is next
                channel.send(GO)
            while answer is None:
                beat()
                if _is_readable(channel.fileno(), POLL_SECONDS):
                    answer = _receive(channel)
            return int(answer.get("status", -signal.SIGKILL))
        finally:
            if answer is None or "status" not in answer:  # else the server has ended the group, and given up its id
                _kill(pid, fork)
            _is_readable(fork, None)


def _kill(pid: int, fork: int) -> None:
    """Kill a fork and its group, which it may not lead yet."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fork, signal.SIGKILL)


def _is_readable(descriptor: int, seconds: float | None) -> bool:
    """Wait so long until a descriptor is readable, for ever if None. Its number may be any, unlike with `select`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


@contextlib.contextmanager
def _descriptor_of(pid: int) -> Iterator[int]:
    """Open a descriptor that is readable once the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        msg = "the fork ended before it began"
        raise _NotForked(msg) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _receive(channel: socket.socket) -> Mapping[str, Any]:
    """Return the next message; an empty one if the server has ended."""
    try:
        message = channel.recv(MESSAGE_BYTES)
    except OSError:
        return {}
    found: Mapping[str, Any] = json.loads(message) if message else {}
    return found


SERVER: Final = ToolServer()
"""That of this process."""


def run_forked(command: Sequence[str], files: ChildFiles, beat: Beat, *, environment: Mapping[str, str]) -> int:
    """Run a tool as a fork of this process's server; see `ToolServer.run`."""
    return SERVER.run(command, files, beat, environment=environment)
