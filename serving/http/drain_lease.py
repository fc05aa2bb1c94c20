"""Whether a host takes new requests: no longer once it ends, and for a while after each request of its agent to drain."""

import asyncio
from typing import Final

LEASE_SECONDS: Final = 60.0
"""A drain that is not followed by a question for the host's state, or by the signal to end, is over after so long."""


class Drain:
    """A lease: an agent that ends a host renews it by each look at the host's state. Used from the event loop."""

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self.on = False
        """Whether nothing new is taken."""
        self._lease_seconds = lease_seconds
        self._over: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Take nothing new, unless the lease runs out."""
        self.on = True
        self._renew()

    def looked_at(self) -> None:
        """Go on for another lease, if it drains by one."""
        if self._over is not None:
            self._renew()

    def end(self) -> None:
        """Take nothing new for good: the process ends."""
        self.on = True
        if self._over is not None:
            self._over.cancel()
            self._over = None

    def _renew(self) -> None:
        if self._over is not None:
            self._over.cancel()
        self._over = asyncio.get_running_loop().call_later(self._lease_seconds, self._open)

    def _open(self) -> None:
        self.on, self._over = False, None
