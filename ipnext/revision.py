"""A number that rises with each change of something, and the wait for its next rise."""

import asyncio


class Revision:
    """Belongs to one event loop. Begins at 1, so that 0 is free to say that something has no revision."""

    def __init__(self) -> None:
        self.number = 1
        self._next: asyncio.Future[None] | None = None

    def rise(self) -> None:
        """Note a change, and wake all who wait for one."""
        self.number += 1
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def passed(self, number: int, *, wait_seconds: float) -> None:
        """Return once the number is not `number`: at once if it is another one, at the latest after `wait_seconds`."""
        if number != self.number:
            return
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._next], timeout=wait_seconds)
