"""Threads of one kind of work that all clients share: each client has at most its share, and waits for its turn.

`ipnext.api.requests.slots` refuses instead: there a client decides how long a slot is occupied.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio import CapacityLimiter

from ipnext.api.requests.slots import SHARE

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """The turns of one kind of work in one API process. Use it in one event loop."""

    def __init__(self, at_once: int) -> None:
        """`at_once` is the number of threads; a client has at most the SHARE-th part of them, at least one."""
        self._at_once, self._share = at_once, max(1, at_once // SHARE)
        self._threads: CapacityLimiter | None = None
        self._holders: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, holder: str | None, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Return the result of `work` in a thread of its own, once it is the turn of the holder (`slots.holder_of`).

        Without authentication, None, all clients share the threads.
        """
        async with self.share(holder):
            return await self.work(work, *given, **named)

    async def work(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Return the result of `work` in one of the threads. The caller has the turn of a holder (`share`)."""
        self._threads = self._threads or CapacityLimiter(self._at_once)
        return await anyio.to_thread.run_sync(lambda: work(*given, **named), limiter=self._threads)

    @asynccontextmanager
    async def share(self, holder: str | None) -> AsyncIterator[None]:
        """Wait until the holder has less than its share in work.

        The caller has a thread by `work`, or by other means.
        """
        if holder is None:
            yield
            return
        async with self._share_of(holder):
            yield

    def _share_of(self, holder: str) -> asyncio.Semaphore:
        """Return the share of a client, which is forgotten once it is not used."""
        found = self._holders.get(holder)
        if found is None:
            found = self._holders[holder] = asyncio.Semaphore(self._share)
        return found
