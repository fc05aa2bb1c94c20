"""How much and how slowly a client may send, and the round that ends connections which are slower.

No request has a timer of its own: once a second all open connections of a server are looked at.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Protocol

MAX_BODY_BYTES: Final = 256 * 2**20
SWEEP_SECONDS: Final = 1.0
"""Connections are looked at so often; a limit in seconds holds to within it."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a connection may ask of the process, and all of them together."""

    body_bytes: int = MAX_BODY_BYTES
    """A larger request body, as sent or as unpacked, is refused with 413."""
    held_bytes: int = 2 * 2**30
    """All bodies of requests under way in the process; the request that goes beyond is refused with 503."""
    head_bytes: int = 64 * 2**10
    """A larger request line with headers is refused with 413."""
    read_seconds: float = 20.0
    """A request that has begun must be there by then, with time for a large body on top; else 408."""
    read_bytes_per_second: int = 64 * 2**10
    """The time on top: a second for each so many bytes that have come (as mod_reqtimeout's MinRate)."""
    write_seconds: float = 20.0
    """A client that takes none of its answer for so long is cut off."""
    linger_seconds: float = 2.0
    """After a refusal what still comes is read and dropped for so long, or the refusal would be lost on its way."""


class Paced(Protocol):
    """A connection as its server sees it."""

    @property
    def idle(self) -> bool:
        """Whether no request is under way, and all answers have left."""

    def close(self) -> None:
        """Close once what is written has left."""

    def check_pace(self, now: float) -> None:
        """End the connection where the client is too slow. `now` is of time.monotonic."""


class OpenConnections(set[Paced]):
    """The open connections of one server. While there are any, they are looked at once a second."""

    held_bytes = 0
    """Bodies of requests that are not answered yet."""
    closing = False
    """Whether the server is about to end: each answer is the last one of its connection."""
    _round: asyncio.TimerHandle | None = None

    def add(self, connection: Paced) -> None:
        """A client has come."""
        super().add(connection)
        if self._round is None:
            self._round = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self.sweep)

    def sweep(self) -> None:
        """Look at all; again in a second, if any is left."""
        now = time.monotonic()
        for connection in tuple(self):
            connection.check_pace(now)
        self._round = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self.sweep) if self else None
