"""The process of a container, which ends with the node and takes all below it along."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipnext.infra.process.parent_death import tether
from tests.kubernetes.kubelet.processes.isolation import Isolation, isolated, joined
from tests.kubernetes.kubelet.processes.memory import MemoryLimit
from tests.kubernetes.kubelet.times import time_text

KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Command:
    """What a container runs, and where."""

    words: Sequence[str]
    environment: Mapping[str, str]
    user: Sequence[str] = ()
    """Words that become its user."""
    directory: str | None = None
    isolation: Isolation | None = None
    """None: the container shares the namespaces of the node."""
    rewrite: Callable[[str], str] = str
    """Without namespaces: replaces the paths of the container in a text."""


@dataclass
class Container:
    """One run of a container's command."""

    process: asyncio.subprocess.Process
    command: Command
    started_at: str
    limit: MemoryLimit

    @classmethod
    async def start(cls, command: Command, log: Path, limit: MemoryLimit) -> "Container":
        """Start the command in a session of its own, with its output in `log`. OSError if it cannot."""
        isolation = command.isolation
        words = command.words if isolation is None else isolated(command.words, command.user)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *words,
                env=dict(command.environment),
                cwd=command.directory if isolation is None else None,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_preparation(isolation, limit),
            )
        return cls(process, command, time_text(), limit)

    @property
    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self.process.returncode is None

    def _first(self) -> int | None:
        """Return the process that the command is, None if it is not there yet or has ended."""
        if self.command.isolation is None:
            return self.process.pid
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    async def wait(self) -> int:
        """Return the exit code, 128 and more for a signal; nothing of its process group is left."""
        code = await self.process.wait()
        self.kill()
        return 128 - code if code < 0 else code

    def kill(self) -> None:
        """Kill the command and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def ask_to_end(self) -> None:
        """Send SIGTERM to the command, which is process 1 and may ignore it, or without namespaces to its group."""
        first = self._first()
        if first is None:
            self.kill()
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (os.killpg if self.command.isolation is None else os.kill)(first, signal.SIGTERM)

    async def stop(self, seconds: float) -> None:
        """Ask it to end, and kill it after so many seconds."""
        if self.is_running and seconds > 0:
            self.ask_to_end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), seconds)
        self.kill()
        await self.process.wait()

    async def execute(self, words: Sequence[str]) -> int:
        """Run another command inside of it, and return its exit code. OSError if it cannot."""
        first = self._first()
        if first is None:
            msg = "the container does not run"
            raise OSError(msg)
        if self.command.isolation is not None:
            words = joined(first, words, self.command.user)
        else:
            words = [self.command.rewrite(each) for each in words]
        nothing = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *words,
            env=dict(self.command.environment),
            cwd=self.command.directory if self.command.isolation is None else None,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
            preexec_fn=tether(),
        )
        try:
            return await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise


def _preparation(isolation: Isolation | None, limit: MemoryLimit) -> Callable[[], None]:
    """Return what the child does before it runs the command."""
    tie = tether()

    def prepare() -> None:
        tie()
        limit.join()
        if isolation is not None:
            isolation.enter()

    return prepare
