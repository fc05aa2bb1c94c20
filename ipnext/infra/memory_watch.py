"""Limit of a host's memory: `memoryBytes` of its part. The agent checks it at each probe, and ends a host beyond it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import psutil


class MemoryWatch:
    """Measures one host and all processes that it has started, such as engines."""

    def __init__(self, allowance_bytes: int) -> None:
        """`allowance_bytes` is the memory allowed beyond the budget: the budget limits loaded snapshots, not memory for requests."""
        self._allowance_bytes = allowance_bytes
        self.budget_bytes: int | None = None
        """Budget of the running process; None if it has none."""

    def excess(self, pid: int) -> str | None:
        """Return how much memory the process uses, as text, if that is too much; else None.

        Memory in RAM counts. Shared pages count in proportion (PSS), which is measured only if the sum with whole pages
        exceeds the limit.
        """
        if self.budget_bytes is None:
            return None
        limit = self.budget_bytes + self._allowance_bytes
        family = tuple(_family(pid))
        if _summed(family, lambda process: process.memory_info().rss) <= limit:
            return None
        taken = _summed(family, lambda process: process.memory_full_info().pss)
        if taken <= limit:
            return None
        return (
            f"it took {_mega(taken)} of memory; its memoryBytes are {_mega(self.budget_bytes)}, "
            f"and {_mega(self._allowance_bytes)} beyond are allowed"
        )


def _family(pid: int) -> Iterator[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def _summed(processes: Iterable[psutil.Process], count: Callable[[psutil.Process], int]) -> int:
    """Sum the bytes of all processes that still run and may be read."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += count(process)
    return total


def _mega(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
