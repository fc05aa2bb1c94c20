"""Times two replicas of one part with the same requests in turns, without exceeding a share of their time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from ipnext.errors import IPnextError
from ipnext.model.gate.live import ReplicaTimes, RoundTimes, TimedReplica, TimingRound

LONGEST_TEXT: Final = 300
"""Of an error in the answer."""

LARGEST_FRACTION: Final = 0.5
"""Of a round's seconds: the longest time of one request."""

Send = Callable[[TimedReplica, str, float], Awaitable[None]]
"""Sends one request to a replica; returns with its answer. Raises an IPnextError if that is no good one, or if there is
none after so many seconds."""


async def time_replicas(
    asked: TimingRound,
    send: Send,
    *,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> RoundTimes:
    """Send the requests of a round: half of them one at a time, half `concurrency` at once.

    The replicas alternate with each step, and which one is first alternates, too. A pause after each pair keeps both
    replicas, or the one that has both generations, idle for the rest of their time. Ends once `seconds` have passed,
    whatever a replica does: the caller waits no longer.
    """
    ends_at = clock() + asked.seconds
    sides = tuple(_Side(asked, replica, send, clock, ends_at) for replica in (asked.new, asked.serving))
    steps = asked.requests // 2
    groups = max(1, steps // asked.concurrency)
    is_one = asked.new.id == asked.serving.id
    for step in range(steps + groups):
        size = asked.concurrency if _is_group(step, steps, groups) else 1
        spent = [await side.run(size) for side in (sides if step % 2 else sides[::-1])]
        busy = sum(spent) if is_one else max(spent)
        rest = max(0.0, busy / asked.share - sum(spent))
        if clock() + rest >= ends_at:
            break
        await pause(rest)
    return RoundTimes(new=sides[0].times, serving=sides[1].times)


def _is_group(step: int, steps: int, groups: int) -> bool:
    """Spread the groups evenly over all steps."""
    total = steps + groups
    return (step + 1) * groups // total > step * groups // total


class _Side:
    """One of both replicas: sends, and keeps the times."""

    def __init__(
        self, asked: TimingRound, replica: TimedReplica, send: Send, clock: Callable[[], float], ends_at: float
    ) -> None:
        self._bodies = asked.bodies
        self._replica, self._send, self._clock = replica, send, clock
        self._ends_at, self._longest = ends_at, asked.seconds * LARGEST_FRACTION
        self._numbers = count()
        self._single: list[float] = []
        self._together: list[float] = []
        self._failed, self._error = 0, ""

    async def run(self, size: int) -> float:
        """Send so many requests at once; return the seconds until the last answer."""
        began = self._clock()
        good = await asyncio.gather(*(self._is_answered() for _ in range(size)))
        spent = self._clock() - began
        if all(good):
            (self._single if size == 1 else self._together).append(spent)
        return spent

    async def _is_answered(self) -> bool:
        """Return whether a request got a good answer. One that the round's end cut short counts as none."""
        body = self._bodies[next(self._numbers) % len(self._bodies)]
        left = self._ends_at - self._clock()
        if left <= 0:
            return False
        try:
            await self._send(self._replica, body, min(left, self._longest))
        except IPnextError as error:
            if left >= self._longest or self._clock() < self._ends_at:
                self._failed += 1
                self._error = self._error or error.message[:LONGEST_TEXT]
            return False
        return True

    @property
    def times(self) -> ReplicaTimes:
        return ReplicaTimes(
            single=tuple(self._single), together=tuple(self._together), failed=self._failed, error=self._error
        )
