"""The drain state of a host: on for good once the process ends, or for a lease after an agent's drain request."""

import asyncio
from typing import Final

LEASE_SECONDS: Final = 60.0
"""Duration of a drain after which it ends, unless a state request or the termination signal follows."""


class DrainLease:
    """A lease: an agent that drains a host renews it with each request for the host's state.

    Used from the event loop.
    """

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self.on = False
        """Whether new requests are refused."""
        self._lease_seconds = lease_seconds
        self._over: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Refuse new requests until the lease expires."""
        self.on = True
        self._renew()

    def renew(self) -> None:
        """Renew the lease, if there is one."""
        if self._over is not None:
            self._renew()

    def end(self) -> None:
        """Refuse new requests for good: the process ends."""
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
