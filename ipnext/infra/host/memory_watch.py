"""Limit of a host's memory: `memoryBytes` of its part, else that of the machine. The agent ends a host beyond it.

The agent checks a declared limit at each probe, the other one every UNDECLARED_SECONDS.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

import psutil

UNDECLARED_SECONDS: Final = 5.0
"""Interval of checks without a declared limit: each looks at all processes of the machine."""


class MemoryWatch:
    """Measures one host and all processes that it has started, such as engines."""

    def __init__(
        self, allowance_bytes: int, undeclared_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`allowance_bytes` is the memory allowed beyond the budget.

        The budget limits loaded snapshots, not memory for requests. `undeclared_bytes` is the limit of a process
        without a budget.
        """
        self._allowance_bytes = allowance_bytes
        self._undeclared_bytes = undeclared_bytes
        self._clock = clock
        self._due_at = clock()
        self.budget_bytes: int | None = None
        """Budget of the running process; None if it has none."""

    def excess(self, pid: int) -> str | None:
        """Return how much memory the process uses, as text, if that is too much; else None.

        Memory in RAM counts. Shared pages count in proportion (PSS), which is measured only if the sum with whole pages
        exceeds the limit.
        """
        if self.budget_bytes is None:
            if self._clock() < self._due_at:
                return None
            self._due_at = self._clock() + UNDECLARED_SECONDS
            limit = self._undeclared_bytes
        else:
            limit = self.budget_bytes + self._allowance_bytes
        family = tuple(_family(pid))
        if _sum_bytes(family, lambda process: process.memory_info().rss) <= limit:
            return None
        taken = _sum_bytes(family, lambda process: process.memory_full_info().pss)
        if taken <= limit:
            return None
        if self.budget_bytes is None:
            return (
                f"it took {_mega(taken)} of memory; its part has no memoryBytes, and without them a host may take "
                f"{_mega(limit)} (IPNEXT_AGENT_HOST_MEMORY_BYTES)"
            )
        return (
            f"it took {_mega(taken)} of memory; its memoryBytes are {_mega(self.budget_bytes)}, "
            f"and {_mega(self._allowance_bytes)} beyond are allowed"
        )


def _family(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def _sum_bytes(processes: Iterable[psutil.Process], count: Callable[[psutil.Process], int]) -> int:
    """Sum the bytes of all processes that still run and may be read."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += count(process)
    return total


def _mega(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
