"""Retention and rotation of process logs, including those of running processes. Called by the agent and `ipnext dev`.

A process must open its log for appending (O_APPEND): its next line then goes to the file's end, even after the file was
truncated.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from ipnext.infra.settings import AgentSettings

FORMER: Final = ".1"
"""Suffix of the name of a rotated log."""
_PROC: Final = Path("/proc")

File = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Limits of a directory's logs."""

    keep_seconds: float
    """A log that no process writes is deleted this long after its last write."""
    keep_bytes: int
    """Beyond this size of all logs together, those that no process writes are deleted, the oldest first."""
    file_bytes: int
    """A log that a process writes is rotated if it is longer; one former log is kept."""
    look_seconds: float
    """Interval between two checks."""

    @classmethod
    def of(cls, settings: AgentSettings) -> "LogLimits":
        """Take the limits from the settings."""
        return cls(
            settings.log_keep_seconds, settings.log_keep_bytes, settings.log_limit_bytes, settings.log_look_seconds
        )


@dataclass(frozen=True, slots=True)
class _Log:
    path: Path
    file: File
    size: int
    written_at: float


class LogRetention:
    """Checks a directory of logs periodically. No other component may remove files there."""

    def __init__(
        self,
        directory: Path,
        limits: LogLimits,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._limits = limits
        self._clock = clock
        self._looked_at = float("-inf")

    @property
    def due(self) -> bool:
        """Whether the interval since the last check has passed."""
        return abs(self._clock() - self._looked_at) >= self._limits.look_seconds

    def look(self) -> None:
        """Rotate long logs and delete expired ones. May take as long as copying a log."""
        self._looked_at = self._clock()
        try:
            self._remove_scraps()
            self._shorten([log for log in self._logs() if log.path.suffix == ".log" and self._too_long(log)])
            self._remove(self._candidates(list(self._logs())))
        except OSError as error:
            structlog.get_logger().error("logs not looked after, tried again soon", reason=str(error))

    def _logs(self) -> Iterator[_Log]:
        for path in self._directory.glob("[!.]*"):
            with suppress(FileNotFoundError):
                told = path.lstat()
                if stat.S_ISREG(told.st_mode) and path.name.removesuffix(FORMER).endswith(".log"):
                    yield _Log(path, (told.st_dev, told.st_ino), told.st_size, told.st_mtime)

    def _too_long(self, log: _Log) -> bool:
        return log.size > self._limits.file_bytes

    def _shorten(self, logs: Iterable[_Log]) -> None:
        """Rotate the logs that a process writes. Other long logs are left as they are, or deleted as a whole."""
        if not (logs := list(logs)):
            return
        written = written_files()
        for log in logs:
            if log.file in written:
                put_aside(log.path)

    def _candidates(self, logs: list[_Log]) -> list[_Log]:
        """Return the expired logs, and the oldest ones while all together exceed the limit."""
        logs.sort(key=lambda log: log.written_at)
        found, total, written = [], sum(log.size for log in logs), None
        for log in logs:
            old = self._clock() - log.written_at > self._limits.keep_seconds
            if not old and total <= self._limits.keep_bytes:
                break
            written = written_files() if written is None else written
            if log.file not in written:
                found.append(log)
                total -= log.size
        return found

    def _remove(self, logs: list[_Log]) -> None:
        """Delete logs, each renamed first.

        It is restored if a process has opened it since, or if the renamed file is another one.
        """
        aside = [(log, log.path.with_name(f".{log.path.name}.leaving")) for log in logs]
        for log, place in aside:
            with suppress(FileNotFoundError):
                log.path.rename(place)
        written = written_files() if aside else frozenset()
        for log, place in aside:
            with suppress(FileNotFoundError):
                told = place.stat()
                file = (told.st_dev, told.st_ino)
                if file != log.file or file in written:
                    with suppress(FileExistsError):
                        log.path.hardlink_to(place)
                place.unlink()

    def _remove_scraps(self) -> None:
        """Delete the temporary files of an interrupted check."""
        for path in self._directory.glob(".*"):
            path.unlink(missing_ok=True)


def put_aside(path: Path) -> None:
    """Rotate a log that a process writes: copy it to the former log, then truncate it.

    Lines written between copy and truncation are lost; the whole content is lost if there is no space for a copy.
    """
    copy, former = path.with_name(f".{path.name}.copy"), path.with_name(path.name + FORMER)
    with path.open("rb+") as log:
        try:
            with copy.open("wb") as target:
                shutil.copyfileobj(log, target, 2**20)
            copy.replace(former)
        except OSError as error:
            copy.unlink(missing_ok=True)
            structlog.get_logger().error("log cut, and not put aside", log=str(path), reason=str(error))
        log.truncate(0)


def written_files() -> frozenset[File]:
    """Return the files that are output or error output of a running process.

    OSError if the system does not report them.
    """
    found: set[File] = set()
    for process in os.listdir(_PROC):  # noqa: PTH208 - names are all that is wanted
        if process.isdigit():
            for number in (1, 2):
                with suppress(OSError):  # it has ended, or belongs to another user
                    told = (_PROC / process / "fd" / str(number)).stat()
                    found.add((told.st_dev, told.st_ino))
    return frozenset(found)
