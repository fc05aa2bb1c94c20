"""Simulated time: processes are generators that yield how long they wait, or what for."""

import heapq
from collections.abc import Generator
from typing import Any

MOST_EVENTS = 20_000
"""Steps of one history, after which it is taken for one that never ends."""

Body = Generator[Any, Any, Any]


class Signal:
    """Wakes every process that waits for it."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[tuple[Process, int]] = []


class Process:
    """A generator and the number of its present wait: a wake-up for an older one is void."""

    __slots__ = ("body", "done", "ended", "name", "result", "token")

    def __init__(self, name: str, body: Body) -> None:
        self.name, self.body, self.token, self.done = name, body, 0, False
        self.ended, self.result = Signal(), None
        """What it returned; GONE if it was ended from outside."""


class Gone:
    """The result of a process that was ended from outside."""


GONE = Gone()


def join(process: Process) -> Body:
    """Wait for the end of a process; its result."""
    while not process.done:
        yield (None, (process.ended,))
    return process.result


class NeverEnds(Exception):
    """More steps than any history needs."""


class Clock:
    """Runs processes in the order of time; at the same time in the order in which they were put there."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self.current: Process | None = None
        """The process that took the last step."""
        self._heap: list[tuple[float, int, Process, int]] = []
        self._order = 0
        self.processes: list[Process] = []

    def spawn(self, name: str, body: Body, *, after: float = 0.0) -> Process:
        """A process that starts `after` seconds from now."""
        process = Process(name, body)
        self.processes.append(process)
        self._wake(process, process.token, self.now + after)
        return process

    def kill(self, process: Process) -> None:
        """End a process where it stands. It can't be the one that is running."""
        if not process.done:
            process.token += 1
            process.body.close()
            self._end(process, GONE)

    def fire(self, signal: Signal) -> None:
        """Wake what waits."""
        waiting, signal.waiting = signal.waiting, []
        for process, token in waiting:
            self._wake(process, token, self.now)

    def run(self, until: float = float("inf")) -> None:
        """Until nothing is left to do, or a time is reached. NeverEnds."""
        while self._heap and self._heap[0][0] <= until:
            at, _, process, token = heapq.heappop(self._heap)
            if process.done or process.token != token:
                continue
            self.now = max(self.now, at)
            self.events += 1
            if self.events > MOST_EVENTS:
                msg = f"more than {MOST_EVENTS} steps, the last one of {process.name}"
                raise NeverEnds(msg)
            self._step(process)
        if until != float("inf"):
            self.now = max(self.now, until)

    def _step(self, process: Process) -> None:
        process.token, self.current = process.token + 1, process
        try:
            wish = process.body.send(None)
        except StopIteration as ended:
            self._end(process, ended.value)
            return
        seconds, signals = wish if isinstance(wish, tuple) else (wish, ())
        for signal in signals:
            signal.waiting.append((process, process.token))
        if seconds is not None:
            self._wake(process, process.token, self.now + seconds)

    def _end(self, process: Process, result: Any) -> None:
        process.done, process.result = True, result
        self.fire(process.ended)

    def _wake(self, process: Process, token: int, at: float) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, process, token))
