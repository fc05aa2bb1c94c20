"""Requests that wait for passes, by part: each part gets its turn by the time its passes have taken, none by the crowd before it.

Start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, SIGCOMM 1996): a part's clock runs on by the seconds of its
passes, the part whose clock shows least is next, and one that comes after a pause sets its clock to that of the part
served last, so that nobody saves up time by asking nothing. Pure.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class QueuedRequest(Protocol):
    """A request. `part` says whose queue it is in."""

    @property
    def part(self) -> Hashable:
        """The same object for all requests that passes can be shared by."""


J = TypeVar("J", bound=QueuedRequest)


class FairQueue(Generic[J]):
    """One queue a part, each first come first served."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[J]] = {}
        self._clocks: dict[Hashable, float] = {}
        """Of parts that wait, and of those whose clock is ahead of the last one served."""
        self._now = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[J]:
        for line in self._lines.values():
            yield from line

    def add(self, job: J) -> None:
        """Stand in line."""
        line = self._lines.get(job.part)
        if line is None:
            line = self._lines[job.part] = deque()
            self._clocks[job.part] = max(self._now, self._clocks.get(job.part, 0.0))
        line.append(job)
        self._length += 1

    def next(self) -> deque[J]:
        """The line whose turn it is, taken out whole; what is not used goes back by `put_back`. There must be one."""
        part = min(self._lines, key=lambda one: self._clocks[one])
        self._now = self._clocks[part]
        line = self._lines.pop(part)
        self._length -= len(line)
        self._clocks = {one: clock for one, clock in self._clocks.items() if clock > self._now or one in self._lines}
        self._clocks[part] = self._now
        return line

    def put_back(self, line: deque[J]) -> None:
        """Put the rest of a line back where it was."""
        if line:
            self._lines[line[0].part] = line
            self._length += len(line)

    def spend(self, part: Hashable, seconds: float) -> None:
        """A pass of a part took so long."""
        self._clocks[part] = max(self._now, self._clocks.get(part, 0.0)) + seconds

    def rest(self) -> None:
        """Nobody waits and nothing runs: all parts begin anew."""
        self._clocks.clear()
        self._now = 0.0

    def shed(self, part: Hashable) -> J | None:
        """Make place for a request of `part`: the newest of the longest line leaves. None where `part`'s own is as long."""
        longest = max(self._lines.values(), key=len, default=None)
        if longest is None or len(longest) <= len(self._lines.get(part, ())) + 1:
            return None
        job = longest.pop()
        self._length -= 1
        return job
