"""Starts hosts and the router as forks of one process that has imported everything, or else as fresh processes.

A torch host takes seconds of CPU time for its imports, whatever it then loads. A program of the first module waits
while the fork server makes the same imports. Nothing waits longer: if the fork server has ended, or gives no answer, a
start costs the time of a fresh interpreter.
"""

import asyncio
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import IO, NamedTuple

import structlog

from ipnext.errors import Unavailable
from ipnext.infra.process.child import ChildProcess, LoggedCommand, RestartSettings
from ipnext.infra.process.forked_process import ForkedProcess, OrphanReaper, become_subreaper, end_fork
from ipnext.infra.process.spawn import StartedProcess, fresh

MESSAGE_BYTES = 2**16
IMPORT_SECONDS = 30.0
"""Longest wait for the imports of a fork server that has just been started; they take some seconds."""
FORK_SECONDS = 2.0
"""Longest wait for a fork, which takes some milliseconds."""
LOOK_SECONDS = 0.5
"""Interval between checks for orphans; a check is one system call."""
LOOK_AGAIN_SECONDS = 0.05
"""The same while there are some. The children that this process started are reaped much sooner."""

_ROOM = {"IPNEXT_COMMAND_LINE_ROOM": " " * 4096}
"""Forks write their command lines over those of the fork server and over its environment, which may be small."""


class Ask(NamedTuple):
    """A command for the fork server, in the form that it accepts."""

    module: str
    arguments: list[str]
    command: str


class ForkServer:
    """A `Spawn` for commands `python -m MODULE ...` of its modules, in the environment that it was created with.

    Call all methods in one event loop, in the main thread.
    """

    def __init__(
        self,
        modules: Sequence[str],
        *,
        log_file: Path,
        environment: Mapping[str, str],
        settings: RestartSettings,
        python: str = sys.executable,
    ) -> None:
        """`python` is the interpreter of the agent whose commands are forked.

        A newer build than this process may use another one. The imports of the first module take longest: its programs
        wait for them, and others, which start sooner by themselves, do not.
        """
        self._python = python
        self._modules = tuple(modules)
        self._environment = dict(environment)
        self._child = ChildProcess(
            "fork-server",
            LoggedCommand(
                lambda: [python, "-m", "ipnext.infra.process.fork_server_process", *self._modules],
                log_file=log_file,
                environment=environment,
                log_limit_bytes=settings.log_limit_bytes,
                spawn=self._spawn_server,
            ),
            settings=settings,
            on_change=self._note_change,
        )
        self._socket: socket.socket | None = None
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._number = 0
        self._orphans = OrphanReaper()
        self._reaping: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._imported = asyncio.Event()
        """Set while no imports are waited for."""
        self._imported.set()
        self.ready = False
        """Whether it accepts requests now."""

    @property
    def pid(self) -> int | None:
        """Process id of the fork server while it runs."""
        return self._child.pid

    def start(self) -> None:
        """Begin to keep it running, if there are modules to import and the system supports it."""
        if self._modules and become_subreaper():
            self._imported.clear()
            self._child.start()
            self._reaping = asyncio.create_task(self._reap(), name="reap orphans")

    async def stop(self, grace_seconds: float) -> None:
        """End the fork server. Its forks continue."""
        await self._child.stop(grace_seconds)
        if self._reaping:
            self._reaping.cancel()

    def hurry(self) -> None:
        """End the waits for its imports: these programs are started afresh."""
        self._imported.set()

    async def spawn(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> StartedProcess:
        """Fork the program if possible, else start a fresh process. OSError if there is no such program."""
        ask = self._ask(command)
        # Libraries read some variables when they are loaded, so another environment needs another interpreter.
        if ask is not None and dict(environment) == self._environment and await self._is_ready(ask.module):
            try:
                async with self._turn:  # all that waited for the imports come at once
                    return ForkedProcess(await self._fork(ask, log))
            except (Unavailable, OSError) as error:
                structlog.get_logger().warning("not forked, started afresh", module=ask.module, reason=str(error))
        return await fresh(command, environment, log)

    async def _is_ready(self, module: str) -> bool:
        """Return whether it accepts requests; for the first module, once it has made its imports."""
        if module == self._modules[0]:
            with suppress(TimeoutError):
                async with asyncio.timeout(IMPORT_SECONDS):
                    await self._imported.wait()
        return self.ready

    def _ask(self, command: Sequence[str]) -> Ask | None:
        match list(command):
            case [self._python, "-m", module, *arguments] if module in self._modules:
                return Ask(module, arguments, " ".join(command))
        return None

    async def _fork(self, ask: Ask, log: IO[bytes]) -> int:
        """Return the id of a new process. Unavailable or OSError: there is none, and none will come."""
        if self._socket is None:
            msg = "the fork server has ended"
            raise Unavailable(msg)
        self._number += 1
        number = self._number
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        message = json.dumps({"id": number, **ask._asdict()}).encode()
        socket.send_fds(self._socket, [message], [log.fileno()])
        self._asked[number] = answer
        try:
            async with asyncio.timeout(FORK_SECONDS):
                return await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled():  # the answer came at the same moment
                return answer.result()
            self._child.signal(SIGKILL)  # a fork that arrives later ends by itself or in `_handle_message`
            msg = f"the fork server gave no answer within {FORK_SECONDS} s"
            raise Unavailable(msg) from None
        finally:
            self._asked.pop(number, None)

    async def _spawn_server(
        self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> StartedProcess:
        self._close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                process = await fresh(command, {**environment, **_ROOM}, log, stdin=theirs.fileno())
            except BaseException:
                ours.close()
                raise
        self._socket = ours
        self._imported.clear()
        asyncio.get_running_loop().add_reader(ours, self._read)
        return process

    def _note_change(self) -> None:
        """Close the connection if the fork server has just ended."""
        if self._child.pid is None:
            self._read()
            self._close()
            self._imported.set()

    def _read(self) -> None:
        """Read its messages; close the connection at its end."""
        while self._socket is not None:
            try:
                message = self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if message:
                self._handle_message(json.loads(message))
            else:
                self._close()

    def _handle_message(self, told: Mapping[str, object]) -> None:
        match told:
            case {"ready": _}:
                self.ready = True
                self._imported.set()
                structlog.get_logger().info("fork server ready", modules=self._modules)
            case {"id": int(number), "pid": int(pid)}:
                answer = self._asked.pop(number, None)
                if answer is not None and not answer.done():
                    answer.set_result(pid)
                else:
                    end_fork(pid)  # too late: another process was started in its place
            case {"id": int(number), "refused": reason}:
                self._give_up(number, f"the fork server refuses: {reason}")

    def _close(self) -> None:
        self.ready = False
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for number in tuple(self._asked):
            self._give_up(number, "the fork server has ended")

    def _give_up(self, number: int, reason: str) -> None:
        answer = self._asked.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_exception(Unavailable(reason))

    async def _reap(self) -> None:
        while True:
            more = False
            with suppress(OSError):
                more = self._orphans.look()
            await asyncio.sleep(LOOK_AGAIN_SECONDS if more else LOOK_SECONDS)
