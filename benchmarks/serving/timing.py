"""Measures several ways to the same answer in turns, so that what else the machine does strikes all of them alike."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

SLICE_SECONDS = 0.2
"""Each contender's turn, again and again until its time is up."""
UNCOUNTED = 5
"""First calls of a turn: caches and sleeping processes come back."""


@dataclass
class Sample:
    """What was measured of one contender."""

    seconds: list[float] = field(default_factory=list)
    calls: int = 0
    cpu_seconds: float = 0.0

    def quantile(self, share: float) -> float:
        """Seconds that this share of the calls took at most."""
        return float(np.quantile(self.seconds, share))

    @property
    def fastest(self) -> float:
        """Seconds of the fastest call."""
        return min(self.seconds)

    @property
    def cpu_per_call(self) -> float:
        """CPU seconds of a call."""
        return self.cpu_seconds / max(1, self.calls)


@dataclass(frozen=True)
class Contender:
    """A name, a call that answers request number i, and the CPU seconds spent so far by all that answers it."""

    name: str
    call: Callable[[int], object]
    cpu_seconds: Callable[[], float]

    def take_turn(self, sample: Sample, seconds: float) -> None:
        """Call for so long, and note each call."""
        call, clock, number = self.call, time.perf_counter, sample.calls
        for _ in range(UNCOUNTED):
            call(number)
        cpu = self.cpu_seconds()
        until = clock() + seconds
        now = clock()
        while now < until:
            began = now
            call(number)
            now = clock()
            sample.seconds.append(now - began)
            number += 1
        sample.cpu_seconds += self.cpu_seconds() - cpu
        sample.calls = number


@dataclass(frozen=True)
class LoopContender(Contender):
    """One whose calls are awaited in an event loop.

    It runs through the turn: starting it again costs more than a call.
    """

    call: Callable[[int], Awaitable[object]]
    loop: asyncio.AbstractEventLoop

    def take_turn(self, sample: Sample, seconds: float) -> None:
        """As the others do."""
        self.loop.run_until_complete(self._turn(sample, seconds))

    async def _turn(self, sample: Sample, seconds: float) -> None:
        call, clock, number = self.call, time.perf_counter, sample.calls
        for _ in range(UNCOUNTED):
            await call(number)
        cpu = self.cpu_seconds()
        until = clock() + seconds
        now = clock()
        while now < until:
            began = now
            await call(number)
            now = clock()
            sample.seconds.append(now - began)
            number += 1
        sample.cpu_seconds += self.cpu_seconds() - cpu
        sample.calls = number


def measure(contenders: Sequence[Contender], seconds: float) -> dict[str, Sample]:
    """By name, after `seconds` of calls to each, in turns of drawn order: none always follows the same one."""
    samples = {contender.name: Sample() for contender in contenders}
    turns = max(2, round(seconds / SLICE_SECONDS))
    for contender in contenders:
        contender.take_turn(Sample(), seconds / turns)
    order = Random(0)
    for _ in range(turns):
        for contender in order.sample(contenders, len(contenders)):
            contender.take_turn(samples[contender.name], seconds / turns)
    return samples
