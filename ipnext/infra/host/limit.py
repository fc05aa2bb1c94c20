"""Limit of hosts on this machine: each is a process of hundreds of megabytes, however small its share of a unit."""

import time
from pathlib import Path
from typing import Final

import psutil
import structlog

from ipnext.model.deployment.host_control import HostHolds
from ipnext.model.deployment.replica import LoadFailure
from ipnext.model.lifecycle.status import Reason

BYTES_OF_ONE: Final = 256 * 2**20
"""Memory of a host besides its weights: forks of torch hosts share some of it."""
FEWEST: Final = 8
"""Lower limit, even on a small machine."""
_CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def most_hosts(*, regions: int = 1) -> int:
    """Return how many hosts fit into the memory of this machine, or of its container.

    The number is for each of `regions` regions on it.
    """
    return max(FEWEST, machine_bytes() // BYTES_OF_ONE // regions)


def machine_bytes() -> int:
    """Return the memory of this machine, or of its container if that has less."""
    return min((psutil.virtual_memory().total, *map(_limit, _CGROUP_LIMITS)))


class HostRoom:
    """Gives each replica a place for its host, as long as there are any."""

    def __init__(self, region: str, most: int) -> None:
        self._region, self._most = region, most
        self._taken: set[str] = set()

    def take(self, replica: str, *, runs_already: bool = False) -> bool:
        """Reserve a place until it is released. A host that already runs always gets one."""
        if runs_already or len(self._taken) < self._most:
            self._taken.add(replica)
        return replica in self._taken

    def give_back(self, replica: str) -> None:
        """Release the place of a host that has ended for good."""
        self._taken.discard(replica)

    @property
    def refusal(self) -> str:
        """Why there is no place."""
        return (
            f"not started: region {self._region} runs {len(self._taken)} hosts, and its machine may run {self._most} "
            "(IPNEXT_AGENT_MAX_HOSTS)"
        )


class HostPlace:
    """The place of one replica's host."""

    def __init__(self, room: HostRoom, replica: str, *, patience_seconds: float) -> None:
        """`patience_seconds` is the time for which another host may be about to end.

        Only then does a waiting load count as failed.
        """
        self._room, self._replica, self._patience_seconds = room, replica, patience_seconds
        self._waits_since: float | None = None

    def take(self, *, runs_already: bool = False) -> bool:
        """Return whether the host may be started. The caller repeats this until it may."""
        if self._room.take(self._replica, runs_already=runs_already):
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = time.monotonic()
            structlog.get_logger().warning("host not started", replica=self._replica, reason=self._room.refusal)
        return self._waits_since is None

    @property
    def refusal(self) -> str | None:
        """Why the host was not started; None if it was, or if `take` was not called yet."""
        return None if self._waits_since is None else self._room.refusal

    def failures(self, holds: HostHolds) -> tuple[LoadFailure, ...]:
        """Return a failure for each desired snapshot if the host has waited for too long."""
        if self._waits_since is None or time.monotonic() - self._waits_since < self._patience_seconds:
            return ()
        return tuple(
            LoadFailure(
                snapshot=held.snapshot,
                generations=held.generations,
                code=Reason.NO_CAPACITY.value,
                message=self._room.refusal,
            )
            for held in holds.holds
        )


def _limit(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # `max`
        return psutil.virtual_memory().total
