"""The memory budget of a host: checked before each load, updated after it, and reported in the host's state.

A host without a budget loads all assigned snapshots. All but `used_bytes` is for the loading thread.
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
    """Return this process's resident memory, including mapped files; 0 if the system does not report it."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return 0


def shared_bytes() -> int:
    """Return the proportional set size: pages mapped several times, such as weights shared by deltas, count once.

    It traverses all mappings, which takes milliseconds for gigabytes.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    return resident_bytes()


class HostMemory:
    """The budget of one host process and its use, in bytes.

    `counted` is a slower, more accurate count than `resident`. It is taken if that one leaves no room, and after each
    load or close while snapshots share memory.
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
        """Resident memory, with shared memory counted once, and at least the size of the process and its snapshots.

        The system may drop pages of mapped weights for a while; they will be needed again.
        """
        return max(self._resident() - self._counted_twice, self._own + self._snapshots)

    def check(self, needed: int, subject: str) -> None:
        """Raise MemoryExceeded if `needed` more bytes exceed the budget; `subject` names their purpose."""
        if not self._snapshots:
            self._own = self._resident()
        used, budget = self.used_bytes, self.budget_bytes
        if budget is not None and used + needed > budget:
            used = max(self._counted(), self._own + self._snapshots)
        if budget is not None and used + needed > budget:
            msg = (
                f"{subject} needs about {_mega(needed)}; {_mega(used)} of the host's {_mega(budget)} are in use. "
                "Raise memoryBytes, hold fewer generations (rollout.keepWarm), "
                "or refresh by replacing (rollout.refresh)"
            )
            raise MemoryExceeded(msg, needed=needed, used=used, budget=budget)

    def note_loaded(self, size_bytes: int, *, shares: bool = False) -> None:
        """Count a loaded snapshot of this size. `shares`: the size excludes memory shared with another one."""
        self._snapshots += size_bytes
        self._sharing = self._sharing or shares
        self._count()

    def note_closed(self, size_bytes: int) -> None:
        """Subtract a closed snapshot of this size, and return the allocator's free memory to the system."""
        self._snapshots -= size_bytes
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        self._sharing = self._sharing and self._snapshots > 0
        self._count()

    def _count(self) -> None:
        self._counted_twice = max(0, self._resident() - self._counted()) if self._sharing else 0


def keep_freed() -> None:
    """Let the allocator keep freed memory of passes, up to 64 MB, and use separate mappings only from 32 MB.

    By default glibc returns large blocks at once, and each pass then waits for the kernel to zero the pages again.
    `note_closed` still returns a snapshot's memory. With another C library this does nothing.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, 64 * 2**20)
        set_option(_MMAP_THRESHOLD, 32 * 2**20)


def settle() -> None:
    """Exclude all live objects from garbage collection. Called once, before the first request is served.

    With an engine loaded, a full collection traverses half a million objects and stops every thread for a tenth of a
    second; none of them is ever garbage.
    """
    gc.collect()
    gc.freeze()


def _mega(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
