"""A wait that ends early: at a signal, or after some seconds."""

import asyncio


class Wakeup:
    """Wakes a loop that checks something periodically."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def strike(self) -> None:
        """End the present wait, or the next one at once."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return at the next strike, at the latest after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()
