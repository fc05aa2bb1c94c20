"""How long the logs of processes are kept, and how large they may grow: those of processes that run too. Called by the agent and `ipnext dev`.

Whoever writes a log has to have it opened for appending (O_APPEND): its next line then stands at the file's end, wherever that is.
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

from ipnext.infra.agent_settings import AgentSettings

FORMER: Final = ".1"
"""Stands behind the name of a log that was put aside."""
_PROC: Final = Path("/proc")

File = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """How much is kept of a directory's logs."""

    keep_seconds: float
    """A log that no process writes goes when it was written last so long ago."""
    keep_bytes: int
    """Beyond so much of all logs together, those that no process writes go, the oldest first."""
    file_bytes: int
    """A log that a process writes is put aside when it is longer; one former log is kept."""
    look_seconds: float
    """Between two looks."""

    @classmethod
    def of(cls, settings: AgentSettings) -> "LogLimits":
        """As the settings have it."""
        return cls(
            settings.log_keep_seconds, settings.log_keep_bytes, settings.log_limit_bytes, settings.log_look_seconds
        )


@dataclass(frozen=True, slots=True)
class _Log:
    path: Path
    file: File
    size: int
    written_at: float


class LogKeeping:
    """Looks at a directory of logs now and then. Nobody else may remove files there."""

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
        """Whether the last look is long ago."""
        return abs(self._clock() - self._looked_at) >= self._limits.look_seconds

    def look(self) -> None:
        """Put aside what is too long, and remove what is kept no longer. May take as long as it takes to copy a log."""
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
        """A log that nobody writes keeps its length: it is left alone, or goes as a whole."""
        if not (logs := list(logs)):
            return
        written = written_files()
        for log in logs:
            if log.file in written:
                put_aside(log.path)

    def _candidates(self, logs: list[_Log]) -> list[_Log]:
        """Those whose time is over, and the oldest of all while they are too many bytes."""
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
        """Each leaves its place first. One that a process has opened since, or another file of that name, comes back."""
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
        """What a look left that was cut off."""
        for path in self._directory.glob(".*"):
            path.unlink(missing_ok=True)


def put_aside(path: Path) -> None:
    """Begin a log anew that a process writes, by copying it and then cutting it: what had been written stands in the former log.

    What comes in the moment between both is lost, and all of it where there is no room for a copy.
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
    """Files that are output or error output of a process that runs. OSError where the system does not tell."""
    found: set[File] = set()
    for process in os.listdir(_PROC):  # noqa: PTH208 - names are all that is wanted
        if process.isdigit():
            for number in (1, 2):
                with suppress(OSError):  # it has ended, or is another user's
                    told = (_PROC / process / "fd" / str(number)).stat()
                    found.add((told.st_dev, told.st_ino))
    return frozenset(found)
