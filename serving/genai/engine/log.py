"""The logs of engines: each start begins a new one, and the former one is kept next to it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from ipnext.errors import Forbidden

TAIL_LINES: Final = 4
_TAIL_BYTES: Final = 2**17
_LINE_LETTERS: Final = 300
_LINE_BYTES: Final = 2**12
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_COMPLAINT: Final = re.compile(r"\bERROR\b|[a-z]Error\b|[eE]rror:|[eE]xception:")

OpenLog = Callable[[str], IO[bytes]]
"""Begins the log of this name, opened for appending and reading. OSError, or an IPnextError."""


class EngineLogs:
    """The directory of a host's engine logs. A host that may not write there has its fetching keeper begin the logs."""

    def __init__(self, directory: Path, host_id: str) -> None:
        self._directory = directory
        self._prefix = f"{host_id}.engine-"

    def name(self, digest: str, suffix: str = "") -> str:
        """Return the log name of a snapshot's engine."""
        return f"{self._prefix}{digest:.8}{suffix}.log"

    def begin(self, name: str) -> IO[bytes]:
        """Begin a log (an `OpenLog`). Forbidden if the name is not that of one of this host's engines."""
        if not name.startswith(self._prefix) or not name.endswith(".log") or "/" in name:
            msg = f"{name!r} is no log of an engine of this host; allowed: {self._prefix}....log"
            raise Forbidden(msg)
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / name
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        return path.open("a+b", buffering=0)


class EngineLog:
    """The log of one engine, over its starts. Read through the descriptor, because its host may not open the file."""

    def __init__(self, name: str, begin: OpenLog) -> None:
        self.name = name
        self._begin = begin
        self._file: IO[bytes] | None = None

    @property
    def engine(self) -> str:
        """The engine's name in messages."""
        return self.name.removesuffix(".log")

    def begin(self) -> IO[bytes]:
        """Rotate the log of the last start and begin a new one. The next start, or `close`, closes it."""
        self.close()
        self._file = self._begin(self.name)
        return self._file

    def close(self) -> None:
        """Close the log once the engine is not started again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    @property
    def tail(self) -> str:
        """The last error lines and the last lines, joined into one line: a program may write much while it ends."""
        lines = [line.strip() for line in self._end(_TAIL_BYTES).splitlines() if line.strip()]
        last = range(max(0, len(lines) - TAIL_LINES), len(lines))
        complaints = [number for number in range(last.start) if _COMPLAINT.search(lines[number])][-TAIL_LINES:]
        return " | ".join(lines[number][:_LINE_LETTERS] for number in (*complaints, *last))

    @property
    def last_line(self) -> str:
        """The last line that the program wrote, without terminal colours."""
        text = _COLOUR.sub("", self._end(_LINE_BYTES))
        lines = ("".join(filter(str.isprintable, line)).strip() for line in reversed(text.splitlines()))
        return next(filter(None, lines), "")[:_LINE_LETTERS]

    def _end(self, count: int) -> str:
        if self._file is None:
            return ""
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, count, max(0, size - count)).decode(errors="replace")
