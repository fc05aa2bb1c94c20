"""One vLLM process and its descendants: spawned under a reaper, measured, terminated as a whole."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil
from landlockpy import Ruleset

from serving.genai.engine import process_reaper


class ReapedProcess:
    """A command under a reaper: none of its processes outlives this process, however that ends."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: IO[bytes]) -> None:
        self._process = process
        self._lifeline = lifeline
        self.pid = process.pid

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: IO[bytes],
        *,
        ruleset: Ruleset | None = None,
        remove: Path | None = None,
    ) -> "ReapedProcess":
        """Start the command in a new session, confined by the ruleset, with all output in the log.

        `remove` is a directory that the reaper removes if this process ends first.
        """
        reading, writing = os.pipe()
        inherited = () if ruleset is None else (ruleset.fileno(),)
        options = [word for number in inherited for word in ("--ruleset", str(number))]
        options += [] if remove is None else ["--remove", str(remove)]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", process_reaper.__file__, *options, *command),
                stdin=reading,
                stdout=log,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
                pass_fds=inherited,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return cls(process, os.fdopen(writing, "wb"))

    async def wait_end(self) -> int:
        """Wait for the end and return the exit status; below 0 the signal that ended it."""
        status = await self._process.wait()
        self._lifeline.close()
        with suppress(ProcessLookupError):  # processes left behind by a killed reaper
            os.killpg(self.pid, signal.SIGKILL)
        return status

    async def end(self, grace_seconds: float) -> int:
        """Send SIGTERM, then after the grace time SIGKILL to the command and all its descendants."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                return await self.wait_end()
        self._lifeline.close()  # the reaper kills everything
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                return await self.wait_end()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return await self.wait_end()


def tree_bytes(pid: int) -> int:
    """Return the resident memory of a process and all its descendants."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def ending(status: int) -> str:
    """Describe how a process ended."""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
