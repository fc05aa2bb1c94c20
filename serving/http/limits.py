"""How much and how slowly a client may send, and the round that ends connections which are slower.

No request has a timer of its own: once a second all open connections of a server are looked at.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Protocol, Self

from ipnext.errors import TooSlow, Unavailable

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
    small_bytes: int = 2**20
    """The last eighth of `held_bytes` is for bodies up to this size: large ones, however slow, leave room for them."""
    head_bytes: int = 64 * 2**10
    """A larger request line with headers is refused with 413."""
    read_seconds: float = 20.0
    """A request that has begun must be there by then, with time for a large body on top; else 408."""
    read_bytes_per_second: int = 64 * 2**10
    """The time on top: a second for each so many bytes that have come (as mod_reqtimeout's MinRate)."""
    window_seconds: float = 10.0
    """A body that after `read_seconds` is slower than that for so long is refused with 408, however fast it was before."""
    longest_read_seconds: float = 600.0
    """A request must be there by then, however large."""
    write_seconds: float = 20.0
    """A client that takes none of its answer for so long, or next to none, is cut off."""
    write_bytes_per_second: int = 2**10
    """Next to none: less than so much over `write_seconds`."""

    def takes_too_little(self, seconds: float, size: int) -> bool:
        """Return whether a client that has taken `size` bytes in the last `seconds` is to be cut off."""
        return seconds > self.write_seconds and size < self.write_bytes_per_second * self.write_seconds

    linger_seconds: float = 2.0
    """After a refusal what still comes is read and dropped for so long, or the refusal would be lost on its way."""

    def check_held(self, held: int, body: int) -> None:
        """Unavailable if all bodies together, `held` bytes, leave no room for one of `body` bytes."""
        limit = self.held_bytes if body <= self.small_bytes else self.held_bytes - self.held_bytes // 8
        if held > limit:
            msg = f"requests of more than {limit} bytes are under way; try again"
            raise Unavailable(msg)


class BodyBudget:
    """Bytes of all bodies under way in a process, each counted as what it has become so far. Used from its event loop."""

    __slots__ = ("ample_bytes", "held_bytes", "limits")

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.held_bytes = 0
        self.ample_bytes = self.limits.held_bytes - self.limits.held_bytes // 8
        """As long as no more is held, there is room for bodies of any size."""

    def take(self, size: int, *, body: int) -> None:
        """Count `size` more bytes of a body that has become `body` bytes. Unavailable if there is no room; none is counted then."""
        held = self.held_bytes + size
        if held > self.ample_bytes:
            self.limits.check_held(held, body)
        self.held_bytes = held

    def give_back(self, size: int) -> None:
        """Count so many bytes no longer."""
        self.held_bytes -= size

    def claim(self) -> "Claim":
        """Return a claim of one request, with nothing in it."""
        return Claim(self)


class Claim:
    """Memory that one request takes beside its body as sent. A context manager that gives all of it back."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.size = 0

    def set(self, size: int) -> None:
        """Hold `size` bytes, more or fewer than before. Unavailable if there is no room for more."""
        more = size - self.size
        if more > 0:
            self._budget.take(more, body=size)
        else:
            self._budget.give_back(-more)
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.set(0)


@dataclass(slots=True)
class Reading:
    """The pace of one request that has begun and is not whole yet. Seconds are of time.monotonic."""

    since: float
    _window: tuple[float, int] = (0.0, 0)
    """When the pace was last measured, and the bytes that had come."""

    def check(self, now: float, size: int, limits: HttpLimits) -> None:
        """TooSlow if the request, of which `size` bytes of the body have come, may not be waited for any longer."""
        began, before = self._window if self._window[0] else (self.since, 0)
        rate = limits.read_bytes_per_second
        stalled = now - began > limits.window_seconds and size - before < rate * limits.window_seconds
        if now - began > limits.window_seconds:
            self._window = (now, size)
        allowed = min(limits.read_seconds + size / rate, limits.longest_read_seconds)
        if now - self.since > allowed or (stalled and now - self.since > limits.read_seconds):
            msg = f"the request has not come whole in {now - self.since:.0f} s; {size} bytes of its body are here"
            raise TooSlow(msg)


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

    def __init__(self, budget: BodyBudget | None = None) -> None:
        super().__init__()
        self.budget = budget or BodyBudget()
        """Bodies of requests that are not answered yet."""
        self.closing = False
        """Whether the server is about to end: each answer is the last one of its connection."""
        self._round: asyncio.TimerHandle | None = None

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
