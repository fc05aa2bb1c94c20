"""Fair queueing of requests by part: parts share pass time equally, so that none waits for another's backlog.

Start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, SIGCOMM 1996): each pass advances its part's clock by its
seconds, and the part with the lowest clock is next. A part that returns after a pause sets its clock to that of the
part served last, so that idle time earns no credit. Pure.
"""

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class QueuedRequest(Protocol):
    """A request in a fair queue."""

    @property
    def part(self) -> Hashable:
        """The part whose queue holds the request: the same object for all requests that can share a pass."""


J = TypeVar("J", bound=QueuedRequest)


class FairQueue(Generic[J]):
    """One first-come-first-served queue per part."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[J]] = {}
        self._clocks: dict[Hashable, float] = {}
        """Clocks of parts with waiting requests, and of those whose clock is ahead of the last part served."""
        self._now = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[J]:
        for line in self._lines.values():
            yield from line

    def add(self, job: J) -> None:
        """Append a request to its part's queue."""
        line = self._lines.get(job.part)
        if line is None:
            line = self._lines[job.part] = deque()
            self._clocks[job.part] = max(self._now, self._clocks.get(job.part, 0.0))
        line.append(job)
        self._length += 1

    def next(self) -> deque[J]:
        """Remove and return the queue of the part whose turn it is; `put_back` takes the unused rest.

        There must be one.
        """
        part = min(self._lines, key=lambda one: self._clocks[one])
        self._now = self._clocks[part]
        line = self._lines.pop(part)
        self._length -= len(line)
        self._clocks = {one: clock for one, clock in self._clocks.items() if clock > self._now or one in self._lines}
        self._clocks[part] = self._now
        return line

    def put_back(self, line: deque[J]) -> None:
        """Put the rest of a part's queue back in its place."""
        if line:
            self._lines[line[0].part] = line
            self._length += len(line)

    def spend(self, part: Hashable, seconds: float) -> None:
        """Advance a part's clock by the seconds of a pass."""
        self._clocks[part] = max(self._now, self._clocks.get(part, 0.0)) + seconds

    def rest(self) -> None:
        """Reset all clocks: nothing waits and nothing runs."""
        self._clocks.clear()
        self._now = 0.0

    def shed(self, part: Hashable) -> J | None:
        """Remove and return the newest request of the longest queue, to admit one of `part`.

        None if `part`'s own queue would then be as long.
        """
        longest = max(self._lines.values(), key=len, default=None)
        if longest is None or len(longest) <= len(self._lines.get(part, ())) + 1:
            return None
        job = longest.pop()
        self._length -= 1
        return job
