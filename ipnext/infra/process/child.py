"""A program that is kept running: restarted with growing pauses whenever it ends, until it is stopped."""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import structlog

from ipnext.infra.process.spawn import Spawn, StartedProcess, fresh

TAIL_LINES = 5
TAIL_BYTES = 4096


class RestartSettings(Protocol):
    """The settings of restarts, as in `AgentSettings`."""

    @property
    def backoff_first_seconds(self) -> float:
        """Pause before the first restart."""

    @property
    def backoff_limit_seconds(self) -> float:
        """Longest pause between restarts."""

    @property
    def steady_seconds(self) -> float:
        """A process that ran for this long starts over with the first pause."""

    @property
    def log_limit_bytes(self) -> int:
        """A longer log is rotated at a start."""


class Program(Protocol):
    """What is started again and again."""

    async def start(self) -> StartedProcess:
        """Start it. OSError, LookupError, ValueError if that is not possible now."""

    def describe_end(self, status: int) -> str:
        """Return how a start of it ended, for people."""

    def read_last_output(self) -> str:
        """Return the last lines of its output on one line; empty if there are none."""


class LoggedCommand:
    """A program of this machine whose output is appended to a file."""

    def __init__(
        self,
        command: Callable[[], Sequence[str]],
        *,
        log_file: Path,
        environment: Mapping[str, str],
        log_limit_bytes: int,
        spawn: Spawn = fresh,
    ) -> None:
        """`command` is called at each start, so that it may pick another port.

        A log of more than `log_limit_bytes` is rotated at a start.
        """
        self._command = command
        self._log_file = log_file
        self._environment = environment
        self._log_limit_bytes = log_limit_bytes
        self._spawn = spawn

    async def start(self) -> StartedProcess:
        """Start it. OSError, LookupError, ValueError: no such program, or a command template with a mistake."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        if self._log_file.exists() and self._log_file.stat().st_size > self._log_limit_bytes:
            self._log_file.replace(self._log_file.with_suffix(".log.1"))
        with self._log_file.open("ab") as log:
            return await self._spawn(self._command(), self._environment, log)

    def describe_end(self, status: int) -> str:
        """Return how it ended: by its status, or by a signal."""
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def read_last_output(self) -> str:
        """Return the last lines of its log."""
        return log_tail(self._log_file)


class ChildProcess:
    """One program and its restarts.

    `on_change` is called, in the event loop, right after each start and each end.
    """

    def __init__(
        self, name: str, program: Program, *, settings: RestartSettings, on_change: Callable[[], None]
    ) -> None:
        self.name = name
        self.restarts = 0
        self.message: str | None = None
        """Why it ended last, with the last lines of its log; None if it never did."""
        self.started_at = 0.0
        """`time.monotonic()` of the last start."""
        self._program = program
        self._settings = settings
        self._on_change = on_change
        self._process: StartedProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._killed_for: str | None = None

    @property
    def running(self) -> StartedProcess | None:
        """Its present process; another one after each start."""
        return self._process

    @property
    def pid(self) -> int | None:
        """Process id while it runs on this machine."""
        return self._process.pid if self._process else None

    @property
    def is_started(self) -> bool:
        """Whether `start` was called."""
        return self._task is not None

    def start(self, adopted: StartedProcess | None = None) -> None:
        """Begin to keep it running, from a running process on if `adopted` is given.

        `on_change` is not called for that one.
        """
        self._process = adopted
        self.started_at = time.monotonic()
        self._task = asyncio.create_task(self._keep_running(), name=f"keep {self.name} running")

    async def stop(self, grace_seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after the grace time; return when it has ended and will not be restarted."""
        self._ending.set()
        if self._task is None:
            return
        self.signal(signal.SIGTERM)
        _, late = await asyncio.wait([self._task], timeout=grace_seconds)
        if late:
            structlog.get_logger().warning("killed after its grace time", process=self.name)
            self.signal(signal.SIGKILL)
            await asyncio.wait([self._task])

    async def release(self) -> None:
        """Wait until it ends by itself; it is not restarted."""
        self._ending.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal. SIGKILL goes to the whole process group, so that nothing that it started survives."""
        if self._process is not None:
            self._process.signal(number)

    def kill(self, why: str) -> None:
        """Send SIGKILL; the message names `why` in place of the signal."""
        self._killed_for = why
        self.signal(signal.SIGKILL)

    async def _keep_running(self) -> None:
        pause = self._settings.backoff_first_seconds
        while not self._ending.is_set():
            await self._run_once()
            if self._ending.is_set():
                return
            self.restarts += 1
            structlog.get_logger().warning("process ended, starting it again", process=self.name, reason=self.message)
            if time.monotonic() - self.started_at > self._settings.steady_seconds:
                pause = self._settings.backoff_first_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()
            pause = min(2 * pause, self._settings.backoff_limit_seconds)

    async def _run_once(self) -> None:
        process = self._process or await self._start_process()
        if process is None:
            return
        status = await process.wait()
        self._process = None
        why, self._killed_for = self._killed_for or self._program.describe_end(status), None
        self.message = f"{why}; last output: {self._program.read_last_output() or 'none'}"
        self._on_change()

    async def _start_process(self) -> StartedProcess | None:
        self.started_at = time.monotonic()
        try:
            self._process = await self._program.start()
        except (OSError, LookupError, ValueError) as error:
            self.message = f"could not be started: {error!r}"
            self._on_change()
            return None
        if self._ending.is_set():  # stop() was called during the start and had no process to signal
            self.signal(signal.SIGTERM)
        self._on_change()
        return self._process


def log_tail(path: Path) -> str:
    """Return the last lines of a log, on one line."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = deque(file.read().decode(errors="replace").splitlines(), maxlen=TAIL_LINES)
    except FileNotFoundError:
        return ""
    return " | ".join(line.strip() for line in lines if line.strip())
