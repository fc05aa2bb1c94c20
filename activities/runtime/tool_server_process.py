"""The fork server of tools: has imported them, reads no snapshot, and forks one process for each request.

The worker starts it at its first tool: `python -m activities.runtime.tool_server_process IDLE_SECONDS`. Standard input
is a Unix socket of whole messages. A request is `{"module", "arguments", "command", "environment"}` with three
descriptors: a channel of the run, its standard output, and its errors. On the channel the server sends `{"pid"}`, or
`{"refused"}` with a reason. The fork begins once the worker has sent `GO` there. `{"status"}` follows once the fork's
process group is gone.

A run whose channel the worker closes is killed. The server ends with its socket, and if it is idle for IDLE_SECONDS.
"""

import json
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, Final

from setproctitle import setproctitle

from ipnext.errors import EXIT_FAILURE
from ipnext.infra.process.forking import explain_threads, leave_server, take_control_socket
from ipnext.infra.process.parent_death import tether
from ipnext.process.garbage_collection import collect_after_imports
from serving.confinement.landlock import prepare

MODULES: Final = (
    "activities.optimization.split_process",
    "activities.optimization.step_process",
    "activities.validation.check_process",
)
"""Programs that it forks; each has `main(arguments)`."""
PRELOADED: Final = (
    "ipnext.cli.app",
    "serving.checking.process",
    "serving.optimizing.process",
    "serving.splitting.split",
    "sympy.tensor.tensor",
    "torch.export._trace",
)
"""The imports that these make once they are confined, with those that torch makes at its first export."""
MESSAGE_BYTES: Final = 2**16
GO: Final = b"1"

Program = Callable[[], object]


class _Forks:
    """The running forks, by their descriptors and by those of their channels."""

    def __init__(self, control: socket.socket) -> None:
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self._runs: dict[int, tuple[int, int, socket.socket]] = {}
        self._channels: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, pid: int, channel: socket.socket) -> None:
        """Watch a fork, and whether the worker still wants it. OSError: it can't be watched, and is killed."""
        try:
            watched = os.pidfd_open(pid)
        except OSError:
            _kill(pid)
            os.waitpid(pid, 0)
            raise
        self._runs[watched] = (watched, pid, channel)
        self._channels[channel.fileno()] = watched
        self.poll.register(watched, select.POLLIN)
        self.poll.register(channel, select.POLLRDHUP)

    def handle(self, descriptor: int) -> None:
        """Report the end of a fork, or kill one whose channel was closed."""
        if descriptor in self._channels:
            self.poll.unregister(descriptor)
            _kill(self._runs[self._channels.pop(descriptor)][1])
        elif descriptor in self._runs:
            self._report(*self._runs.pop(descriptor))

    def end(self) -> None:
        """Kill all forks."""
        for _, pid, _ in self._runs.values():
            _kill(pid)

    def _report(self, watched: int, pid: int, channel: socket.socket) -> None:
        self.poll.unregister(watched)
        os.close(watched)
        if self._channels.pop(channel.fileno(), None) is not None:
            self.poll.unregister(channel)
        _kill(pid)  # before it is reaped, so that its id is its own
        _, status = os.waitpid(pid, 0)
        with suppress(OSError), channel:
            channel.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())


def main() -> Program | None:
    """Serve until the worker has ended. In a fork: return the program to run."""
    idle_seconds, server = float(sys.argv[1]), os.getpid()
    control = take_control_socket()
    with collect_after_imports():  # a garbage collection in a fork neither reads nor writes the shared objects
        for name in (*MODULES, *PRELOADED):
            import_module(name)
            if _has_ended(control):
                return None
        prepare()
    forks = _Forks(control)
    while True:
        events = forks.poll.poll(None if forks else idle_seconds * 1000)
        if not events and not forks:
            return None
        for descriptor, _ in events:
            if descriptor != control.fileno():
                forks.handle(descriptor)
                continue
            message, descriptors, *_ = socket.recv_fds(control, MESSAGE_BYTES, 3)
            if not message:
                forks.end()
                return None
            if (program := _answer(forks, json.loads(message), descriptors)) is not None:
                return partial(program, str(server))


def _answer(forks: _Forks, asked: Mapping[str, Any], descriptors: Sequence[int]) -> Callable[[str], object] | None:
    """Fork what is asked for, or refuse it. Return the program in the fork; it takes the process id of its parent."""
    pid = None
    try:
        if (reason := _refusal(asked["module"], descriptors)) is None:
            channel = socket.socket(fileno=os.dup(descriptors[0]))
            if (pid := _fork()) != 0:
                forks.add(pid, channel)
                _send(channel, {"pid": pid})
    except OSError as error:
        reason = str(error)
    if pid == 0:
        _settle(channel, descriptors[1:], asked)
        program = import_module(asked["module"]).main
        return lambda server: program([server, *asked["arguments"]])
    if reason is not None:
        for descriptor in descriptors[:1]:
            with suppress(OSError):  # the worker no longer wants it
                os.write(descriptor, json.dumps({"refused": reason}).encode())
    for descriptor in descriptors:
        os.close(descriptor)
    return None


def _has_ended(control: socket.socket) -> bool:
    """Return whether the worker has."""
    poll = select.poll()
    poll.register(control, select.POLLRDHUP)
    return bool(poll.poll(0))


def _refusal(module: str, descriptors: Sequence[int]) -> str | None:
    if len(descriptors) < 3:  # the kernel has left some out
        return "it may open no more files"
    if module not in MODULES:
        return f"{module} is not imported"
    return explain_threads()


def _send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    with suppress(OSError):  # the worker no longer wants it: observed by its channel
        channel.send(json.dumps(message).encode())


def _fork() -> int:
    """Fork a process that leads a group, and ends with this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    end_with_server = tether()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            end_with_server()
        except OSError:
            os._exit(EXIT_FAILURE)  # never a second server
    return pid


def _settle(channel: socket.socket, streams: Sequence[int], asked: Mapping[str, Any]) -> None:
    """Become a process like a fresh one, with its command line, output and environment, once it may begin."""
    setproctitle(asked["command"])  # before the environment is replaced, whose memory it takes
    try:
        may_begin = channel.recv(1) == GO
    except OSError:
        may_begin = False
    if not may_begin:
        os._exit(EXIT_FAILURE)
    channel.detach()
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    leave_server()
    os.environ.clear()
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # found by the environment at its next use


def _kill(pid: int) -> None:
    """Kill a fork that may not lead its group yet, and its group."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    program = main()
    sys.exit(program() if program else 0)  # type: ignore[arg-type]
