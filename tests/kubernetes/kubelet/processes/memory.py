"""Memory limits of containers: by a group of the kernel if one can be made here, otherwise by a look at processes."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

GROUPS = Path("/sys/fs/cgroup/memory")
PREFIX = "ipnext-node"
LOOK_SECONDS = 0.2


class MemoryLimit(Protocol):
    """The limit of one run of a container."""

    def join(self) -> None:
        """Let the calling process, the child of a fork, keep the limit with all its children."""

    async def watch(self, process: int, kill: Callable[[], None]) -> None:
        """Keep the limit until cancelled."""

    def was_exceeded(self) -> bool:
        """Return whether a process was killed for it."""

    def close(self) -> None:
        """Forget it, after all processes have ended."""


class NoLimit:
    """As much memory as the node has."""

    def join(self) -> None: ...

    async def watch(self, process: int, kill: Callable[[], None]) -> None: ...

    def was_exceeded(self) -> bool:
        return False

    def close(self) -> None: ...


class GroupLimit(NoLimit):
    """A control group (version 1) of the kernel."""

    def __init__(self, name: str, limit: int) -> None:
        self._path = GROUPS / f"{PREFIX}-{os.getpid()}-{name}"
        self._path.mkdir()
        (self._path / "memory.limit_in_bytes").write_text(str(limit))

    def join(self) -> None:
        (self._path / "cgroup.procs").write_text("0")

    def was_exceeded(self) -> bool:
        lines = (self._path / "memory.oom_control").read_text().splitlines()
        return any(line.split()[0] == "oom_kill" and line.split()[1] != "0" for line in lines)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.rmdir()


class WatchedLimit(NoLimit):
    """Kills a container whose processes are resident with more than its limit."""

    def __init__(self, limit: int) -> None:
        self._limit, self._is_exceeded = limit, False

    async def watch(self, process: int, kill: Callable[[], None]) -> None:
        while True:
            if resident_bytes(process) > self._limit:
                self._is_exceeded = True
                kill()
                return
            await asyncio.sleep(LOOK_SECONDS)

    def was_exceeded(self) -> bool:
        return self._is_exceeded


def resident_bytes(process: int) -> int:
    """Return the memory of a process and of all below it."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process)
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total


def has_groups() -> bool:
    """Return whether groups with limits can be made here."""
    return os.access(GROUPS, os.W_OK) and (GROUPS / "memory.limit_in_bytes").exists()


def memory_limit(name: str, limit: int | None, *, by_groups: bool) -> MemoryLimit:
    """Return the limit of one run of a container."""
    if limit is None:
        return NoLimit()
    return GroupLimit(name, limit) if by_groups else WatchedLimit(limit)


def sweep_groups() -> None:
    """Remove the groups that killed nodes left."""
    for each in GROUPS.glob(f"{PREFIX}-*") if has_groups() else ():
        if not psutil.pid_exists(int(each.name.split("-")[2])):
            with contextlib.suppress(OSError):
                each.rmdir()
