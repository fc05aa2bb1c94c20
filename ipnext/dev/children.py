"""The processes of the embedded platform: tethered to this one, restarted after crashes, ended in order."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from ipnext.dev.forked_program import ForkedProgram, program_of
from ipnext.errors import EXIT_BAD_INPUT, Conflict, Unavailable
from ipnext.infra.process.parent_death import tether

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 10.0
HURRIED_SECONDS = 15.0
"""Time in which a process must end after its second SIGTERM."""
POLL_SECONDS = 0.02
STEADY_SECONDS = 10.0
"""The backoff of a process that ran this long is reset: it is restarted at once when it ends."""


@dataclass
class Child:
    """One process. `grace_seconds` is the time from SIGTERM to SIGKILL."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    grace_seconds: float = 15.0
    unhurried: bool = False
    """Whether it first finishes its work under way; a second SIGTERM ends it at once."""
    process: subprocess.Popen[bytes] | ForkedProgram | None = None
    started_at: float = 0.0
    backoff_seconds: float = 0.0
    start_after: float = 0.0
    killed_after: float | None = None
    """`time.monotonic()` from which on it may be killed; None until it gets its SIGTERM."""

    def start(self) -> None:
        """Start the process in a new session, output appended to its log, tethered to this process.

        It is a fork of this process if its command runs a preloaded module.
        """
        with self.log.open("ab") as log:
            if module := program_of(self.command):
                self.process = ForkedProgram(
                    module, self.command, environment=self.environment, log=log, prepare=tether()
                )
            else:
                self.process = subprocess.Popen(  # noqa: S603 - our own commands
                    self.command,
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=tether(),  # noqa: PLW1509 - no other thread runs yet in this process
                )
        self.started_at, self.killed_after = time.monotonic(), None

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        return self.process.poll() if self.process else None

    def restart_when_due(self, now: float) -> None:
        """Restart a process that ended: at once, and after a backoff that doubles while it keeps ending soon."""
        status = self.poll()
        if status is None:
            return
        if not self.start_after:
            if now - self.started_at > STEADY_SECONDS:
                self.backoff_seconds = 0.0
            self.start_after = now + self.backoff_seconds
            self.backoff_seconds = min(max(2 * self.backoff_seconds, FIRST_BACKOFF_SECONDS), LONGEST_BACKOFF_SECONDS)
            structlog.get_logger().warning("process ended", process=self.name, status=status, log=str(self.log))
        if now >= self.start_after:
            self.start_after = 0.0
            self.start()

    def ask_to_end(self) -> None:
        """Send SIGTERM once, if it runs; its grace time begins."""
        if self.killed_after is None and self.process is not None and self.process.poll() is None:
            self.killed_after = time.monotonic() + self.grace_seconds
            self.process.send_signal(signal.SIGTERM)

    def hurry(self) -> None:
        """Send a second SIGTERM if it still finishes its work; HURRIED_SECONDS of its grace time remain."""
        if (
            self.unhurried
            and self.killed_after is not None
            and self.process is not None
            and self.process.poll() is None
        ):
            self.killed_after = min(self.killed_after, time.monotonic() + HURRIED_SECONDS)
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Send SIGTERM, then SIGKILL after the grace time."""
        if self.process is None or self.process.poll() is not None:
            return
        self.ask_to_end()
        while self.process.poll() is None:
            if time.monotonic() > (self.killed_after or 0.0):
                structlog.get_logger().warning("process killed after its grace", process=self.name)
                self.process.kill()
                self.process.wait()
            time.sleep(POLL_SECONDS)

    def last_lines(self, count: int = 5) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:]) if self.log.exists() else ""


def end_orphans() -> None:
    """Send SIGKILL to all processes that the kernel gave to this one, and to those below them.

    Return when they have ended.
    """
    left = psutil.Process().children(recursive=True)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=HURRIED_SECONDS)


@dataclass
class Family:
    """All children, in the order of their start. They end in the reverse order.

    Children with the same command end together, and so do those that first finish their work.
    """

    children: list[Child] = field(default_factory=list)

    def start(self, *children: Child) -> None:
        """Start further children, at once."""
        for child in children:
            child.start()
            self.children.append(child)

    def tend(self) -> None:
        """Restart ended children when their backoff is over."""
        now = time.monotonic()
        for child in self.children:
            child.restart_when_due(now)

    def wait_until(self, ready: Callable[[], bool], *, what: str, limit_seconds: float) -> None:
        """Poll until ready, and restart children that end.

        Raises Unavailable with the ends of the logs; Conflict if a child ends because its input is invalid.
        """
        deadline = time.monotonic() + limit_seconds
        while not ready():
            if time.monotonic() > deadline:
                ends = "\n".join(f"--- {c.name}: {c.log}\n{c.last_lines()}" for c in self.children)
                msg = f"{what} was not ready within {limit_seconds:.0f} s\n{ends}"
                raise Unavailable(msg)
            for child in self.children:
                if child.poll() == EXIT_BAD_INPUT:
                    msg = f"{child.name} can't start; the end of {child.log}:\n{child.last_lines()}"
                    raise Conflict(msg)
            self.tend()
            time.sleep(0.05)

    def stop(self) -> None:
        """End every child, the newest first."""
        for child in reversed(self.children):
            for other in self.children:
                if other.command == child.command or (other.unhurried and child.unhurried):
                    other.ask_to_end()
            child.stop()
        self.children.clear()

    def hurry(self) -> None:
        """Hurry the children that were asked to end and still finish their work."""
        for child in self.children:
            child.hurry()
