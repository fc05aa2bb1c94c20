"""When a router forgets generations: after the requests that were just on their way have arrived, and beside other work."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ipnext.errors import Unavailable


class Forgetting:
    """One pending forgetting for each model. `forget` is called with the model `settle_seconds` after the last `begin`."""

    def __init__(self, settle_seconds: float, forget: Callable[[str], Awaitable[None]]) -> None:
        self._seconds = settle_seconds
        self._forget = forget
        self._settled_at: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, model: str) -> None:
        """The gateway has just stopped sending something. A forgetting that has not begun yet begins that much later."""
        self._settled_at[model] = time.monotonic() + self._seconds
        if (former := self._tasks.get(model)) is not None:
            former.cancel()
        task = asyncio.create_task(self._later(model), name=f"forget what {model} no longer needs")
        self._tasks[model] = task
        task.add_done_callback(lambda ended: self._ended(model, ended))

    async def settled(self, model: str) -> None:
        """Return once what was on its way when the gateway changed last has arrived."""
        while (left := self._settled_at.get(model, 0.0) - time.monotonic()) > 0:  # noqa: ASYNC110 - `begin` puts it off
            await asyncio.sleep(left)

    def stop(self) -> None:
        """Forget nothing more."""
        for task in self._tasks.values():
            task.cancel()

    async def _later(self, model: str) -> None:
        await self.settled(model)
        with suppress(Unavailable):  # the table is written: a router that is away reads it when it is back
            await self._forget(model)

    def _ended(self, model: str, ended: asyncio.Task[None]) -> None:
        if self._tasks.get(model) is ended:
            del self._tasks[model], self._settled_at[model]
