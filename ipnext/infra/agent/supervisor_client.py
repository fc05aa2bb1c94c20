"""An agent's connection to its region's supervisor, which is the parent of all processes and outlives the agent."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from signal import SIGKILL, Signals
from typing import IO, Final

import structlog

from ipnext import __version__
from ipnext.components.caller_proof import keep_proof
from ipnext.infra.process.identity import ProcessIdentity, kill, runs
from ipnext.infra.process.message_link import Message, MessageLink, from_object
from ipnext.infra.process.spawn import Note, Spawn, StartedProcess
from ipnext.infra.settings import AgentSettings
from ipnext.infra.supervisor_process import IDENTITY_FILE, PROOF_FILE, PROTOCOL, ForkServerRestarts

SOCKET_FILE: Final = "supervisor.sock"
LOST_STATUS: Final = -int(SIGKILL)
"""Status of processes whose supervisor has ended: the kernel killed them with it."""
END_POLL_SECONDS: Final = 0.02


class SupervisedProcess:
    """A process that the supervisor runs."""

    def __init__(self, pid: int, send: Callable[[Message], None], number: int) -> None:
        self.pid = pid
        self.number = number
        self._send = send
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        """Return its status once it has ended; below zero the signal that ended it."""
        return await asyncio.shield(self._status)

    def signal(self, number: Signals) -> None:
        """Send a signal; do nothing if it has ended.

        The supervisor sends it, since it knows whether the pid is still valid.
        """
        self._send({"kind": "signal", "id": self.number, "signal": int(number)})

    def end(self, status: int) -> None:
        """Record that it has ended."""
        if not self._status.done():
            self._status.set_result(status)


class SupervisorClient:
    """`Processes` that outlive this agent. Call all methods in one event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        settings: AgentSettings,
        environment: Mapping[str, str],
        modules: Sequence[str],
        owner: ProcessIdentity | None,
    ) -> None:
        """`modules` are those of the fork server. `owner` is the process whose end ends all others, if there is one."""
        self._directory = directory
        self._settings = settings
        self._environment = environment
        self._modules = tuple(modules)
        self._owner = owner
        self._link: MessageLink | None = None
        self._welcome: asyncio.Future[Message] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._running: dict[int, SupervisedProcess] = {}
        self._names: dict[str, SupervisedProcess] = {}
        self._found: dict[str, Note] = {}
        self._asked: dict[int, asyncio.Future[SupervisedProcess]] = {}
        self._last = 0
        self._left = False
        self._connecting = asyncio.Lock()

    @property
    def notes(self) -> Mapping[str, Note]:
        """Notes of all processes that ran before this agent started, by name."""
        return self._found

    def find_adopted(self, name: str) -> StartedProcess | None:
        """Return the process of this name that ran before this agent started, if it still runs."""
        return self._names.get(name) if name in self._found else None

    async def connect(self) -> None:
        """Connect to the running supervisor, or start one. OSError if neither is possible."""
        async with self._connecting:
            if self._link is None:
                link = self._listening()
                if link is None or not await self._take_over(link):
                    await self._greet_a_new_one()

    def spawn(self, name: str, note: Callable[[], Note]) -> Spawn:
        """Return a `Spawn` for the process of this name."""

        async def start(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> StartedProcess:
            if self._link is None:
                await self._recover()
            process = await self._start(
                {
                    "kind": "start",
                    "name": name,
                    "command": list(command),
                    "environment": dict(environment),
                    "log": str(log.name),
                    "note": note(),
                }
            )
            self._names[name] = process
            return process

        return start

    def note(self, name: str, note: Note) -> None:
        """Replace the note of a running process; do nothing if it does not run."""
        process = self._names.get(name)
        if process is not None:
            self._send({"kind": "note", "id": process.number, "note": note})

    def leave(self) -> None:
        """Disconnect: its processes continue, for the next agent. Nothing can be started or signalled any more."""
        link, self._link, self._left = self._link, None, True
        if link is not None:
            link.close()

    async def end(self) -> None:
        """End the supervisor with all its processes; return when it has ended."""
        if self._link is None:
            return
        self._send({"kind": "end"})
        await self._wait_end(2 * self._settings.grace_seconds)

    def _listening(self) -> socket.socket | None:
        """Connect to the supervisor of this directory; None if none listens there."""
        link = socket.socket(socket.AF_UNIX)
        try:
            with _short(self._directory) as place:
                link.connect(f"{place}/{SOCKET_FILE}")
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            return None
        return link

    async def _greet_a_new_one(self) -> None:
        await self._wait_end(0.0)
        if not await self._take_over(self._launch()):
            msg = "the supervisor does not answer; see logs/supervisor.log"
            raise OSError(msg)

    def _launch(self) -> socket.socket:
        """Start a supervisor and connect to it: the socket that it listens on is its standard input."""
        path = self._directory / SOCKET_FILE
        path.unlink(missing_ok=True)
        log_file = self._directory / "logs" / "supervisor.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ipnext.infra.supervisor_process", "--state", str(self._directory)]
        with socket.socket(socket.AF_UNIX) as listener, log_file.open("ab") as log:
            with _short(self._directory) as place:
                listener.bind(f"{place}/{SOCKET_FILE}")
            path.chmod(0o600)
            listener.listen()
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                env=dict(self._environment),
                stdin=listener.fileno(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        link = self._listening()
        if link is None:
            msg = "the supervisor ended as it started; see logs/supervisor.log"
            raise OSError(msg)
        return link

    async def _take_over(self, link: socket.socket) -> bool:
        """Take over its processes. False if this supervisor cannot be used."""
        loop = asyncio.get_running_loop()
        welcome: asyncio.Future[Message] = loop.create_future()
        self._welcome = welcome
        _, answered = await loop.connect_accepted_socket(lambda: MessageLink(self._take, self._lose), link)
        answered.send(self._hello())
        try:
            async with asyncio.timeout(self._settings.hung_seconds):
                told = await welcome
        except TimeoutError:
            told = {"reason": "no answer"}
        if told.get("kind") != "welcome":
            structlog.get_logger().error("supervisor not usable, another one is started", answer=told)
            answered.close()
            return False
        return True

    def _hello(self) -> Message:
        settings = self._settings
        restarts = ForkServerRestarts(
            settings.backoff_first_seconds,
            settings.backoff_limit_seconds,
            settings.steady_seconds,
            settings.log_limit_bytes,
        )
        return {
            "kind": "hello",
            "protocol": PROTOCOL,
            "proof": keep_proof(self._directory / PROOF_FILE),
            "owner": self._owner and self._owner._asdict(),
            "successor_seconds": settings.successor_seconds,
            "grace_seconds": settings.grace_seconds,
            "fork": {
                "modules": list(self._modules),
                "environment": dict(self._environment),
                "log": str(self._directory / "logs" / "fork-server.log"),
                "restarts": asdict(restarts),
                "python": sys.executable,
                "version": __version__,
            },
        }

    async def _recover(self) -> None:
        """Replace a supervisor that has ended or is unusable: end it with all its processes, and start another one."""
        async with self._connecting:
            if self._left:
                msg = "this agent has left its region"
                raise ProcessLookupError(msg)
            if self._owner is not None and not runs(self._owner):
                msg = f"the owner, process {self._owner.pid}, has ended"
                raise ProcessLookupError(msg)
            if self._link is None:
                structlog.get_logger().error("supervisor lost, another one is started")
                await self._greet_a_new_one()

    async def _start(self, message: Message) -> SupervisedProcess:
        self._last += 1
        answer: asyncio.Future[SupervisedProcess] = asyncio.get_running_loop().create_future()
        self._asked[self._last] = answer
        self._send(message | {"number": self._last})
        return await answer

    def _take(self, link: MessageLink, message: Message) -> None:
        match message:
            case {"kind": "welcome", "processes": processes} if self._welcome and not self._welcome.done():
                self._link = link
                for told in processes:
                    process = self._running[told["id"]] = SupervisedProcess(told["pid"], self._send, told["id"])
                    self._names[told["name"]], self._found[told["name"]] = process, told["note"]
                self._welcome.set_result(message)
            case {"kind": "refused"} if self._welcome and not self._welcome.done():
                self._welcome.set_result(message)
            case {"kind": "started", "number": int(asked), "id": int(number), "pid": int(pid)}:
                process = self._running[number] = SupervisedProcess(pid, self._send, number)
                self._answer(asked, process)
            case {"kind": "failed", "number": int(asked), "reason": str(reason)}:
                self._answer(asked, OSError(reason))
            case {"kind": "ended", "id": int(number), "status": int(status)} if number in self._running:
                self._forget(self._running.pop(number), status)

    def _answer(self, asked: int, answer: SupervisedProcess | OSError) -> None:
        future = self._asked.pop(asked)
        if future.done():  # the caller does not wait for it any more
            return
        if isinstance(answer, OSError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _forget(self, process: SupervisedProcess, status: int) -> None:
        for name in [name for name, one in self._names.items() if one is process]:
            del self._names[name]
        process.end(status)

    def _lose(self, link: MessageLink) -> None:
        """Mark all processes as ended: the supervisor has ended, and its processes with it."""
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_result({"reason": "it has ended"})
        if link is not self._link:
            return
        self._link = None
        for asked in tuple(self._asked):
            self._answer(asked, ConnectionError("the supervisor has ended"))
        for process in self._running.values():
            self._forget(process, LOST_STATUS)
        self._running.clear()

    def _send(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _wait_end(self, seconds: float) -> None:
        """Return when the last supervisor has ended; kill it after `seconds`. Its processes end with it."""
        identity = self._identity()
        deadline = asyncio.get_running_loop().time() + seconds
        while identity is not None and _runs(identity, self._process):
            if asyncio.get_running_loop().time() > deadline:
                kill(identity, SIGKILL)
            await asyncio.sleep(END_POLL_SECONDS)

    def _identity(self) -> ProcessIdentity | None:
        try:
            return from_object(ProcessIdentity, json.loads((self._directory / IDENTITY_FILE).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


class _short:  # noqa: N801 - used as a function
    """A short path for a directory: the address of a Unix socket has room for 107 bytes (unix(7))."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> str:
        self._descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _runs(identity: ProcessIdentity, own: "subprocess.Popen[bytes] | None") -> bool:
    """Return whether it runs; reap it if this process started it."""
    if own is not None and own.pid == identity.pid:
        return own.poll() is None
    return runs(identity)
