"""Runs controllers beside the API server double: each change makes keys due, and each due key is reconciled."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import ApiFailure
from tests.kubernetes.server.storage import Change, Key

LOG = logging.getLogger(__name__)
RETRY_SECONDS = 0.2


class Controller(Protocol):
    """A loop that makes the observed state the desired one, object by object."""

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return the keys that a change makes due."""

    def reconcile(self, key: Key) -> float | None:
        """Bring one object on. Return the seconds after which to look again, None if changes suffice."""


Makers = Sequence[Callable[[Cluster], Controller]]


class ControllerManager:
    """All controllers of one cluster, in its event loop."""

    def __init__(self, cluster: Cluster, makers: Makers) -> None:
        self._cluster = cluster
        self._controllers = [make(cluster) for make in makers]
        self._due: dict[tuple[int, Key], None] = {}
        self._timers: dict[tuple[int, Key], asyncio.TimerHandle] = {}
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        subscription = self._cluster.storage.subscribe(None, since=0)
        reader = asyncio.create_task(self._read(subscription.queue))
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                await self._reconcile_due()
        finally:
            reader.cancel()
            self._cluster.storage.unsubscribe(subscription)
            for timer in self._timers.values():
                timer.cancel()

    async def _read(self, queue: "asyncio.Queue[Change | None]") -> None:
        while True:
            change = await queue.get()
            if change is None:
                continue
            for number, controller in enumerate(self._controllers):
                for key in controller.concerned(change):
                    self._mark((number, key))

    def _mark(self, entry: tuple[int, Key]) -> None:
        self._due[entry] = None
        self._woken.set()

    async def _reconcile_due(self) -> None:
        while self._due:
            entry = next(iter(self._due))
            del self._due[entry]
            self._reconcile(entry)
            await asyncio.sleep(0)

    def _reconcile(self, entry: tuple[int, Key]) -> None:
        number, key = entry
        try:
            seconds = self._controllers[number].reconcile(key)
        except ApiFailure as failure:
            LOG.info("%s %s: %s", type(self._controllers[number]).__name__, key, failure)
            seconds = RETRY_SECONDS
        if timer := self._timers.pop(entry, None):
            timer.cancel()
        if seconds is not None:
            self._timers[entry] = asyncio.get_running_loop().call_later(seconds, self._mark, entry)
