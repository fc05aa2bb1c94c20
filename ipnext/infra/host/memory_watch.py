"""Limit of a host's memory: `memoryBytes` of its part, else that of the machine. The agent ends a host beyond it.

The agent checks a declared limit at each probe, the other one every UNDECLARED_SECONDS.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

import psutil

UNDECLARED_SECONDS: Final = 5.0
"""Interval of checks without a declared limit."""
TREE_SECONDS: Final = 0.25
"""Longest time for which a reading of all processes of the machine is used: shorter than the interval of probes."""


class ProcessTree:
    """Processes of the machine by their parents, read once for hosts that are checked shortly after each other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_at = float("-inf")
        self._children: Mapping[int, Sequence[psutil.Process]] = {}

    def family(self, pid: int) -> Iterator[psutil.Process]:
        """Yield a process and all that it has started, as of TREE_SECONDS ago or later; nothing if it has ended."""
        if self._clock() - self._read_at >= TREE_SECONDS:
            self._children = _read_children()
            self._read_at = self._clock()
        with suppress(psutil.NoSuchProcess):
            seen, below = {pid}, [psutil.Process(pid)]
            while below:  # an id that is used again while they are read may make a circle
                process = below.pop()
                yield process
                children = [child for child in self._children.get(process.pid, ()) if child.pid not in seen]
                seen.update(child.pid for child in children)
                below += children


TREE: Final = ProcessTree()
"""Shared by all hosts of this process's region."""


class MemoryWatch:
    """Measures one host and all processes that it has started, such as engines."""

    def __init__(
        self,
        allowance_bytes: int,
        undeclared_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        tree: ProcessTree = TREE,
    ) -> None:
        """`allowance_bytes` is the memory allowed beyond the budget.

        The budget limits loaded snapshots, not memory for requests. `undeclared_bytes` is the limit of a process
        without a budget.
        """
        self._allowance_bytes = allowance_bytes
        self._undeclared_bytes = undeclared_bytes
        self._clock = clock
        self._tree = tree
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
        family = tuple(self._tree.family(pid))
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


def _read_children() -> Mapping[int, Sequence[psutil.Process]]:
    """Map the id of each process to those that it has started."""
    found: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            found[process.ppid()].append(process)
    return found


def _sum_bytes(processes: Iterable[psutil.Process], count: Callable[[psutil.Process], int]) -> int:
    """Sum the bytes of all processes that still run and may be read."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += count(process)
    return total


def _mega(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
