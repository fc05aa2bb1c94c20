"""The history of a run: one JSON line for each event, as Jepsen writes them.

Written by all clients, read by the checker.
"""

import itertools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["invoke", "ok", "fail", "info"]
"""`ok`: it happened; `fail`: it did not; `info`: nobody knows (no answer came), or a remark."""


@dataclass(frozen=True)
class Event:
    """One line. `f` is what was asked; `op` joins an invocation and its end; times in seconds."""

    f: str
    type: Kind
    process: str
    op: int
    at: float
    """Monotonic clock."""
    wall: float
    """Seconds since 1970: what the store's own times are compared with."""
    value: dict[str, Any] = field(default_factory=dict)


class Recorder:
    """Appends events to a file; safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._ops = itertools.count(1)

    def close(self) -> None:
        self._file.close()

    def op(self) -> int:
        """A new number for an operation."""
        return next(self._ops)

    def write(self, f: str, kind: Kind, process: str, op: int, /, **value: Any) -> Event:
        """Append one event, stamped now."""
        event = Event(f, kind, process, op, time.monotonic(), time.time(), value)
        line = json.dumps(asdict(event), separators=(",", ":"))
        with self._lock:
            self._file.write(line + "\n")
        return event

    def note(self, f: str, process: str = "nemesis", /, **value: Any) -> Event:
        """A remark that is no operation."""
        return self.write(f, "info", process, 0, **value)


def read_history(path: Path) -> list[Event]:
    """All events of a file, in the order of writing."""
    return [Event(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def ended(history: Iterable[Event], f: str) -> Iterator[tuple[Event, Event]]:
    """Each invocation of `f` with its end, in the order of the ends."""
    begun: dict[int, Event] = {}
    for event in history:
        if event.f != f:
            continue
        if event.type == "invoke":
            begun[event.op] = event
        elif event.op in begun:
            yield begun.pop(event.op), event
