"""Hosts, routers and workers of tests as forks of one process that has imported them, as an agent starts its own.

An interpreter of its own takes five seconds of processor time for each host before it has loaded anything, and three
for each worker.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ipnext.infra.process.forked_process import PR_SET_CHILD_SUBREAPER
from ipnext.infra.process.parent_death import tether

MODULES = ("serving.host", "serving.router")
MESSAGE_BYTES = 2**16
WITH_ENVIRONMENT = "tests.with_environment"
OF_THE_TEST = "PYTEST_CURRENT_TEST"
"""A variable that is another one in each test, and that no program reads."""


class Fork:
    """A child of this process, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid, self.args = pid, args
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._descriptor], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._descriptor)
        return self.returncode


class ForkServer:
    """Starts with the first program that it can fork. Its environment is that of this moment."""

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        self._modules = modules
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._environment: Mapping[str, str] = {}
        self._number = 0

    def spawn(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Any:
        """A fork if the command is one of a module in the server's environment, else an interpreter of its own."""
        match list(command):
            case [sys.executable, "-m", module, *arguments] if module in self._modules:
                server = self._server(environment)
                if _lasting(environment) == self._environment:
                    return self._fork(server, module, arguments, log)
        return start_interpreter(command, environment, log)

    def spawn_in(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: IO[bytes],
        *,
        files: int | None = None,
    ) -> Fork:
        """A fork that has this environment, whatever the server's is: of a program that reads none as it is imported.

        `files`: how many it may open.
        """
        with tempfile.NamedTemporaryFile("w", delete=False) as noted:
            json.dump({"environment": dict(environment), "files": files}, noted)
        server = self._server(os.environ)
        command = [sys.executable, "-m", module, *arguments]
        return self._fork(server, WITH_ENVIRONMENT, [noted.name, module, *arguments], log, shown=command)

    def close(self) -> None:
        """End the server; its forks have ended."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()
            self._socket = None

    def _server(self, environment: Mapping[str, str]) -> socket.socket:
        if self._socket is None:
            self._environment = _lasting(environment)
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-m", "ipnext.infra.process.fork_server_process", WITH_ENVIRONMENT]
                command += self._modules
                room = {"IPNEXT_COMMAND_LINE_ROOM": " " * 4096}  # forks write their command lines over it
                self._process = subprocess.Popen(
                    command,
                    env={**self._environment, **room},
                    stdin=theirs,
                    preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
                    cwd=Path(__file__).parents[1],
                )
            assert json.loads(self._socket.recv(MESSAGE_BYTES)) == {"ready": True}
        return self._socket

    def _fork(
        self,
        server: socket.socket,
        module: str,
        arguments: Sequence[str],
        log: IO[bytes],
        *,
        shown: Sequence[str] | None = None,
    ) -> Fork:
        command = shown or [sys.executable, "-m", module, *arguments]
        self._number += 1
        asked = {"id": self._number, "module": module, "arguments": arguments, "command": " ".join(command)}
        _reap_orphans(True)  # the fork becomes a child of this process
        try:
            socket.send_fds(server, [json.dumps(asked).encode()], [log.fileno()])
            told = json.loads(server.recv(MESSAGE_BYTES))
        finally:
            _reap_orphans(False)
        assert "pid" in told, told
        return Fork(told["pid"], command)


def start_interpreter(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A process that shares no memory with others."""
    return subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here


def _lasting(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != OF_THE_TEST}


def _reap_orphans(whether: bool) -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0) == 0
