"""What a host's memory holds and may hold: asked before each load, told after it, shown in the host's state.

A host without a budget loads whatever it is asked to. All but `used_bytes` belongs to the thread that loads.
"""

import ctypes
import gc
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ipnext.errors import MemoryExceeded

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Options of mallopt, from glibc's malloc.h."""


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, mapped files included; 0 where the system does not tell."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return 0


def shared_bytes() -> int:
    """The same with each page that is mapped several times counted once, as weights that deltas share are.

    The proportional set size: it walks all mappings, which takes milliseconds for gigabytes.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    return resident_bytes()


class HostMemory:
    """The budget of one host process, in bytes, and what is used of it.

    `counted` is a slower, closer count than `resident`, asked where that one leaves no room, and after each load or end
    while snapshots share memory.
    """

    def __init__(
        self,
        budget_bytes: int | None = None,
        *,
        resident: Callable[[], int] = resident_bytes,
        counted: Callable[[], int] | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._resident = resident
        self._counted = counted or resident
        self._snapshots = 0
        self._own = 0
        self._sharing = False
        self._counted_twice = 0

    @property
    def used_bytes(self) -> int:
        """What is in RAM, shared memory once, and at least what the process itself and its snapshots take.

        The system may drop pages of mapped weights for a while; they are wanted back.
        """
        return max(self._resident() - self._counted_twice, self._own + self._snapshots)

    def check(self, needed: int, subject: str) -> None:
        """MemoryExceeded where `needed` bytes more would go beyond the budget; `subject` is what they are for."""
        if not self._snapshots:
            self._own = self._resident()
        used, budget = self.used_bytes, self.budget_bytes
        if budget is not None and used + needed > budget:
            used = max(self._counted(), self._own + self._snapshots)
        if budget is not None and used + needed > budget:
            msg = (
                f"{subject} needs about {_mega(needed)}; {_mega(used)} of the host's {_mega(budget)} are in use. "
                "Raise memoryBytes, hold fewer generations (rollout.keepWarm), or refresh by replacing (rollout.refresh)"
            )
            raise MemoryExceeded(msg, needed=needed, used=used, budget=budget)

    def loaded(self, size_bytes: int, *, shares: bool = False) -> None:
        """A snapshot of this size is in memory. `shares`: beside what it shares with another one."""
        self._snapshots += size_bytes
        self._sharing = self._sharing or shares
        self._count()

    def closed(self, size_bytes: int) -> None:
        """A snapshot of this size is gone: what the allocator kept of it goes back to the system."""
        self._snapshots -= size_bytes
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        self._sharing = self._sharing and self._snapshots > 0
        self._count()

    def _count(self) -> None:
        self._counted_twice = max(0, self._resident() - self._counted()) if self._sharing else 0


def keep_freed() -> None:
    """Let the allocator keep what passes free, up to 64 MB, and take no mapping of its own for less than 32 MB.

    glibc gives large pieces back at once, and each pass then waits for the kernel to zero the pages again.
    `closed` still gives back what a snapshot has left. Nothing happens with another C library.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, 64 * 2**20)
        set_option(_MMAP_THRESHOLD, 32 * 2**20)


def settle() -> None:
    """Take what lives now out of the garbage collector's sight. Called once, before anything is served.

    With an engine loaded a full collection walks half a million objects and stops every thread for a tenth of a second;
    none of them is ever garbage.
    """
    gc.collect()
    gc.freeze()


def _mega(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
