"""The process of a container: a process group that ends with the node."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ipnext.infra.process.parent_death import tether

KILLED = 128 + signal.SIGKILL


def time_text() -> str:
    """Return the time as objects have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Container:
    """One run of a container's command."""

    process: asyncio.subprocess.Process
    started_at: str

    @classmethod
    async def start(cls, words: Sequence[str], environment: Mapping[str, str], log: Path) -> "Container":
        """Start the command in a session of its own; its output goes to the end of `log`. OSError if it cannot."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *words,
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tether(),
            )
        return cls(process, time_text())

    async def wait(self) -> int:
        """Return the exit code, 128 and more for a signal; nothing of its process group is left."""
        code = await self.process.wait()
        self.signal(signal.SIGKILL)
        return 128 - code if code < 0 else code

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    async def stop(self, seconds: float) -> None:
        """Ask it to end, and kill it after so many seconds."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), seconds)
        self.signal(signal.SIGKILL)
        await self.process.wait()
