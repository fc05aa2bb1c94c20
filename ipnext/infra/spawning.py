"""How a child process is started: what ChildProcess asks of it, and a fresh process, tethered to this one."""

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Protocol

from ipnext.infra.tether import tether


class Running(Protocol):
    """A process that was started and whose end nobody else waits for."""

    @property
    def pid(self) -> int:
        """Its process id, and that of its process group."""

    async def wait(self) -> int:
        """Its status once it has ended; below zero the signal that ended it."""


class Spawn(Protocol):
    """Starts a program in a session of its own, its output appended to `log`. OSError where there is no such program."""

    async def __call__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Running:
        """The running process. It dies with this one."""


async def fresh(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
) -> asyncio.subprocess.Process:
    """Start the program itself. Call it from the main thread, which the kernel watches for the child."""
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=log,
        stderr=log,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=tether(),
    )
