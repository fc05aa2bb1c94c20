"""Whether a host takes more memory than its part's `memoryBytes` allows. Its agent asks at each look, and ends a host that does."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import psutil


class MemoryWatch:
    """Looks at one host and at all that it has started, such as engines."""

    def __init__(self, allowance_bytes: int) -> None:
        """`allowance_bytes` is what a host may take beyond its budget for a moment: a budget bounds what is loaded, not what a request takes."""
        self._allowance_bytes = allowance_bytes
        self.budget_bytes: int | None = None
        """Of the process that runs; None: it has none."""

    def excess(self, pid: int) -> str | None:
        """Say how much the process takes if that is too much, in words.

        What is in RAM counts, and pages that several processes share in parts: they are counted only if all of them together are too many.
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
    """Bytes of all of them that still run and may be looked at."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += count(process)
    return total


def _mega(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
