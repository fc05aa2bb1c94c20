"""Start of child processes: the protocols that ChildProcess uses, and a fresh process, tethered to this one."""

import asyncio
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from signal import SIGKILL, Signals
from typing import IO, Any, Protocol

from ipnext.infra.process.parent_death import tether

Note = Mapping[str, Any]
"""JSON that an agent stores with a process, for the agent that adopts it."""


class StartedProcess(Protocol):
    """A started process. It has one waiter."""

    @property
    def pid(self) -> int | None:
        """Its process id, and that of its process group; None if it runs elsewhere."""

    async def wait(self) -> int:
        """Return its status once it has ended; below zero the signal that ended it."""

    def signal(self, number: Signals) -> None:
        """Send a signal; do nothing if it has ended. SIGKILL goes to its whole process group."""


class Spawn(Protocol):
    """Starts a program in a new session, its output appended to `log`. OSError if there is no such program."""

    async def __call__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> StartedProcess:
        """Return the running process. It ends with its parent process."""


class Processes(Protocol):
    """Starts the processes of a region. Each has a name that no other running process of the region has."""

    def spawn(self, name: str, note: Callable[[], Note]) -> Spawn:
        """Return a `Spawn` for the process of this name; `note` is called at each start, after the command."""

    def note(self, name: str, note: Note) -> None:
        """Replace the note of a running process; do nothing if it does not run."""

    def find_adopted(self, name: str) -> StartedProcess | None:
        """Return the process of this name that ran before this agent started, if it still runs."""

    @property
    def notes(self) -> Mapping[str, Note]:
        """Notes of all processes that ran before this agent started, by name."""


class FreshProcess:
    """A child of this process in a new session."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id, and that of its process group."""
        return self._process.pid

    async def wait(self) -> int:
        """Return its status once it has ended; below zero the signal that ended it."""
        status = await self._process.wait()
        end_group(self.pid)
        return status

    def signal(self, number: Signals) -> None:
        """Send a signal; do nothing if it has ended. SIGKILL goes to its whole process group."""
        if self._process.returncode is None:
            send(self.pid, number)


class ChildProcesses:
    """`Processes` that are children of this process, and end with it."""

    def spawn(self, name: str, note: Callable[[], Note]) -> Spawn:  # noqa: ARG002 - the port's signature
        """Return the `Spawn` of fresh processes."""
        return fresh

    def note(self, name: str, note: Note) -> None:
        """Do nothing: no agent reads the note."""

    def find_adopted(self, name: str) -> StartedProcess | None:  # noqa: ARG002 - the port's signature
        """Return None: such a process ended with its agent."""
        return None

    @property
    def notes(self) -> Mapping[str, Note]:
        """No notes."""
        return {}


def end_group(pid: int) -> None:
    """Send SIGKILL to the rest of a group whose leader has ended."""
    with suppress(ProcessLookupError):
        os.killpg(pid, SIGKILL)


def send(pid: int, number: Signals) -> None:
    """Send a signal to an unreaped child; SIGKILL to its group. Do nothing if it has ended."""
    with suppress(ProcessLookupError):
        if number == SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


async def fresh(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
) -> FreshProcess:
    """Start the program itself. Call it from the main thread, whose end kills the child."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=log,
        stderr=log,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=tether(),
    )
    return FreshProcess(process)
