"""One vLLM process and what it has started: spawned under a keeper, logged, measured, ended as a whole."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import psutil

from serving.genai import keeper

TAIL_LINES: Final = 4
_TAIL_BYTES: Final = 2**17
_LINE_LETTERS: Final = 300
_LINE_BYTES: Final = 2**12
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_COMPLAINT: Final = re.compile(r"\bERROR\b|[a-z]Error\b|[eE]rror:|[eE]xception:")


class KeptProcess:
    """A command that runs under a keeper: nothing of it outlives this process, however that ends."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: IO[bytes]) -> None:
        self._process = process
        self._lifeline = lifeline
        self.pid = process.pid

    @classmethod
    async def spawn(cls, command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> "KeptProcess":
        """Start it in a session of its own, with all output in the log."""
        reading, writing = os.pipe()
        try:
            with log_file.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-S", keeper.__file__, *command),
                    stdin=reading,
                    stdout=log,
                    stderr=log,
                    env=dict(environment),
                    start_new_session=True,
                )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return cls(process, os.fdopen(writing, "wb"))

    async def ended(self) -> int:
        """Its exit status, once it has ended; below 0 the signal that ended it."""
        status = await self._process.wait()
        self._lifeline.close()
        with suppress(ProcessLookupError):  # what a keeper that was killed has left behind
            os.killpg(self.pid, signal.SIGKILL)
        return status

    async def end(self, grace_seconds: float) -> int:
        """SIGTERM, then after the grace time SIGKILL for it and all that it has started."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                return await self.ended()
        self._lifeline.close()  # the keeper kills everything
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                return await self.ended()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return await self.ended()


def tree_bytes(pid: int) -> int:
    """Memory in RAM of a process and all its descendants."""
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


def keep_former(log_file: Path) -> None:
    """Put the log of the last start aside, so that a restart begins a new one; one former log is kept."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists():
        log_file.replace(log_file.with_suffix(".log.1"))


def log_tail(log_file: Path) -> str:
    """The last complaints in a log and its last lines, on one line: a program may say much while it ends."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - _TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return ""
    last = range(max(0, len(lines) - TAIL_LINES), len(lines))
    complaints = [number for number in range(last.start) if _COMPLAINT.search(lines[number])][-TAIL_LINES:]
    return " | ".join(lines[number][:_LINE_LETTERS] for number in (*complaints, *last))


def last_line(log_file: Path) -> str:
    """What a program said last, without the colours that it may give to a terminal."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - _LINE_BYTES))
            text = _COLOUR.sub("", file.read().decode(errors="replace"))
    except FileNotFoundError:
        return ""
    lines = ("".join(filter(str.isprintable, line)).strip() for line in reversed(text.splitlines()))
    return next(filter(None, lines), "")[:_LINE_LETTERS]


def ending(status: int) -> str:
    """How a process ended, in words."""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
