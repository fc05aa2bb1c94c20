"""A number that rises with each change, and the wait for its next rise."""

import asyncio


class Revision:
    """A revision for one event loop. It begins at 1, so that 0 can mean that there is none."""

    def __init__(self) -> None:
        self.number = 1
        self._next: asyncio.Future[None] | None = None

    def rise(self) -> None:
        """Count a change, and wake all waiters."""
        self.number += 1
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def wait_change(self, number: int, *, wait_seconds: float) -> None:
        """Return once the number differs from `number`, at the latest after `wait_seconds`."""
        if number != self.number:
            return
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next], timeout=wait_seconds)
