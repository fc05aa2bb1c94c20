"""Delayed removal of generations from a router.

After requests already on the network have arrived, and in the background.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ipnext.errors import Unavailable


class DelayedRemoval:
    """One pending removal for each model. `forget` is called with the model `settle_seconds` after the last `begin`."""

    def __init__(self, settle_seconds: float, forget: Callable[[str], Awaitable[None]]) -> None:
        self._seconds = settle_seconds
        self._forget = forget
        self._settled_at: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, model: str) -> None:
        """Schedule the removal after the gateway has stopped sending a generation.

        A removal that has not begun is postponed.
        """
        self._settled_at[model] = time.monotonic() + self._seconds
        if (former := self._tasks.get(model)) is not None:
            former.cancel()
        task = asyncio.create_task(self._later(model), name=f"forget what {model} no longer needs")
        self._tasks[model] = task
        task.add_done_callback(lambda ended: self._note_end(model, ended))

    async def wait_settled(self, model: str) -> None:
        """Return once all requests have arrived that the gateway sent before its last change."""
        while (left := self._settled_at.get(model, 0.0) - time.monotonic()) > 0:  # noqa: ASYNC110 - `begin` puts it off
            await asyncio.sleep(left)

    def stop(self) -> None:
        """Cancel all pending removals."""
        for task in self._tasks.values():
            task.cancel()

    async def _later(self, model: str) -> None:
        await self.wait_settled(model)
        with suppress(Unavailable):  # the table is written: a router that is down reads it when it restarts
            await self._forget(model)

    def _note_end(self, model: str, ended: asyncio.Task[None]) -> None:
        if self._tasks.get(model) is ended:
            del self._tasks[model], self._settled_at[model]
