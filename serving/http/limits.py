"""Limits on the size and pace of clients' requests, the sweep that ends slower connections, and limits of answers.

Requests have no timers: once a second the sweep checks all open connections of a server.
"""

import argparse
import asyncio
import math
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol, Self

from ipnext.errors import AnswerTooLarge, TooSlow, Unavailable

MAX_BODY_BYTES: Final = 256 * 2**20
MAX_ANSWER_BYTES: Final = 64 * 2**20
"""Default limit of an answer of a host or engine that is kept in memory."""
ANSWER_BUDGET_BYTES: Final = 512 * 2**20
"""Default limit of all such answers of a process."""
SWEEP_SECONDS: Final = 1.0
"""Interval of the sweep; limits in seconds are accurate to within it."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of each connection, and of all connections of the process together."""

    body_bytes: int = MAX_BODY_BYTES
    """Largest request body, as sent or decompressed; a larger one is refused with 413."""
    held_bytes: int = 2 * 2**30
    """All bodies of requests in flight in the process; a request that exceeds it is refused with 503."""
    small_bytes: int = 2**20
    """The last eighth of `held_bytes` is for bodies up to this size: large ones, however slow, leave room for them."""
    head_bytes: int = 64 * 2**10
    """Largest request line with headers; larger ones are refused with 413."""
    read_seconds: float = 20.0
    """A request must be complete within this time, plus time for a large body; otherwise it is refused with 408."""
    read_bytes_per_second: int = 64 * 2**10
    """Additional time: one second for this many received bytes (like mod_reqtimeout's MinRate)."""
    window_seconds: float = 10.0
    """If a body is slower than that rate for this long after `read_seconds`, it is refused with 408, however fast it
    was before."""
    longest_read_seconds: float = 600.0
    """Time limit of a complete request, however large."""
    write_seconds: float = 20.0
    """Time after which a client that reads nothing of its answer, or next to nothing, is disconnected."""
    write_bytes_per_second: int = 2**10
    """Next to nothing: a lower rate than this over `write_seconds`."""

    def takes_too_little(self, seconds: float, size: int) -> bool:
        """Return whether a client that read `size` bytes in the last `seconds` must be disconnected."""
        return seconds > self.write_seconds and size < self.write_bytes_per_second * self.write_seconds

    linger_seconds: float = 2.0
    """Time after a refusal in which input is read and dropped; otherwise the refusal could be lost in transit."""

    def check_held(self, held: int, body: int) -> None:
        """Raise Unavailable if all bodies together, `held` bytes, leave no room for one of `body` bytes."""
        limit = self.held_bytes if body <= self.small_bytes else self.held_bytes - self.held_bytes // 8
        if held > limit:
            msg = f"requests of more than {limit} bytes are under way; try again"
            raise Unavailable(msg)


class BodyBudget:
    """Bytes of all bodies in flight in a process, each counted at its current size. Used from its event loop."""

    __slots__ = ("ample_bytes", "held_bytes", "largest_bytes", "limits")

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.held_bytes = 0
        self.ample_bytes = self.limits.held_bytes - self.limits.held_bytes // 8
        """Up to this total there is room for bodies of any size up to `largest_bytes`."""
        self.largest_bytes: float = math.inf
        """Size beyond which a body is refused in any case."""

    def check(self, held: int, body: int) -> None:
        """Raise Unavailable if all bodies together, `held` bytes, leave no room for one of `body` bytes."""
        self.limits.check_held(held, body)

    def take(self, size: int, *, body: int) -> None:
        """Count `size` more bytes of a body that has grown to `body` bytes.

        If there is no room: Unavailable, and none is counted.
        """
        held = self.held_bytes + size
        if held > self.ample_bytes or body > self.largest_bytes:
            self.check(held, body)
        self.held_bytes = held

    def give_back(self, size: int) -> None:
        """Subtract `size` bytes."""
        self.held_bytes -= size

    def claim(self) -> "MemoryClaim":
        """Return an empty claim for one request."""
        return MemoryClaim(self)


class AnswerBudget(BodyBudget):
    """Bytes of all answers of hosts or engines that a process keeps in memory, and the limit of one."""

    __slots__ = ()

    def __init__(self, answer_bytes: int = MAX_ANSWER_BYTES, held_bytes: int = ANSWER_BUDGET_BYTES) -> None:
        """`answer_bytes` bounds one answer, `held_bytes` all; the last eighth is for answers up to 1 MiB."""
        super().__init__(HttpLimits(body_bytes=answer_bytes, held_bytes=held_bytes))
        self.largest_bytes = answer_bytes

    def check(self, held: int, body: int) -> None:
        """Raise AnswerTooLarge if an answer of `body` bytes exceeds the limit, Unavailable if there is no room."""
        if body > self.largest_bytes:
            msg = (
                f"the answer has more than {self.largest_bytes} bytes, the limit (--max-answer-bytes); "
                "ask for less at once"
            )
            raise AnswerTooLarge(msg)
        if held > (self.ample_bytes if body > self.limits.small_bytes else self.limits.held_bytes):
            msg = f"answers fill their budget of {self.limits.held_bytes} bytes (--answer-budget-bytes); try again"
            raise Unavailable(msg)

    def release_with(self, memory: object, size: int) -> None:
        """Subtract `size` bytes once `memory`, which contains them, is no longer used, in whichever thread that is."""
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        weakref.finalize(memory, self._release, size, loop, thread).atexit = False

    def _release(self, size: int, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        """Have the loop subtract the bytes: this may be called within any step of the budget's own."""
        call = loop.call_soon if threading.get_ident() == thread else loop.call_soon_threadsafe
        with suppress(RuntimeError):  # the loop has ended
            call(self.give_back, size)


class MemoryClaim:
    """Memory that one request takes in addition to its body as sent. A context manager that releases all of it."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.size = 0

    def set(self, size: int) -> None:
        """Change the claim to `size` bytes. Unavailable if there is no room for more."""
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
class RequestPace:
    """The pace of a request that has begun and is incomplete. Seconds are of time.monotonic."""

    since: float
    _window: tuple[float, int] = (0.0, 0)
    """Time of the last measurement of the pace, and the bytes received until then."""

    def check(self, now: float, size: int, limits: HttpLimits) -> None:
        """Raise TooSlow if the request, with `size` bytes of its body received, has exceeded its time."""
        began, before = self._window if self._window[0] else (self.since, 0)
        rate = limits.read_bytes_per_second
        stalled = now - began > limits.window_seconds and size - before < rate * limits.window_seconds
        if now - began > limits.window_seconds:
            self._window = (now, size)
        allowed = min(limits.read_seconds + size / rate, limits.longest_read_seconds)
        if now - self.since > allowed or (stalled and now - self.since > limits.read_seconds):
            msg = f"the request has not come whole in {now - self.since:.0f} s; {size} bytes of its body are here"
            raise TooSlow(msg)


class PacedConnection(Protocol):
    """A connection, as seen by its server."""

    @property
    def idle(self) -> bool:
        """Whether no request is in flight, and all answers have been sent."""

    def close(self) -> None:
        """Close once the written bytes have been sent."""

    def check_pace(self, now: float) -> None:
        """End the connection if the client is too slow. `now` is of time.monotonic."""


def add_answer_limits(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of an AnswerBudget."""
    parser.add_argument(
        "--max-answer-bytes",
        type=_positive,
        default=MAX_ANSWER_BYTES,
        help=f"bytes of one answer of a host or engine that are kept in memory (default {MAX_ANSWER_BYTES})",
    )
    parser.add_argument(
        "--answer-budget-bytes",
        type=_positive,
        default=ANSWER_BUDGET_BYTES,
        help=f"bytes of all such answers together (default {ANSWER_BUDGET_BYTES})",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"must be at least 1, got {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


class Abortable(Protocol):
    """A connection that can be closed at once."""

    def abort(self) -> None:
        """Close the connection now; bytes that are not sent yet are lost."""


class UnreadAnswers:
    """Bytes of answers that wait in memory until their clients read them, by connection.

    Beyond `limit_bytes` the connection that has waited longest is closed: slow clients never take the memory of others.
    """

    __slots__ = ("_limit", "_sizes", "_total")

    def __init__(self, limit_bytes: int = ANSWER_BUDGET_BYTES // 2) -> None:
        self._limit = limit_bytes
        self._sizes: dict[Abortable, int] = {}
        self._total = 0

    @property
    def total_bytes(self) -> int:
        """Bytes that wait."""
        return self._total

    def add(self, connection: Abortable, size: int) -> None:
        """Count `size` bytes that a connection has not sent.

        Close those that have waited longest if there is no room.
        """
        self.discard(connection)
        self._sizes[connection] = size
        self._total += size
        while self._total > self._limit and len(self._sizes) > 1:
            oldest = next(iter(self._sizes))
            self.discard(oldest)
            oldest.abort()

    def discard(self, connection: Abortable) -> None:
        """Forget a connection: its client has read, or left."""
        self._total -= self._sizes.pop(connection, 0)


class OpenConnections(set[PacedConnection]):
    """The open connections of one server. If there are any, the sweep checks them once a second."""

    def __init__(self, budget: BodyBudget | None = None, unread: UnreadAnswers | None = None) -> None:
        super().__init__()
        self.budget = budget or BodyBudget()
        """Bytes of bodies of requests that are not answered yet."""
        self.unread = unread or UnreadAnswers()
        """Bytes of answers that are not read yet."""
        self.closing = False
        """Whether the server is about to end: each answer is the last one of its connection."""
        self._round: asyncio.TimerHandle | None = None

    def add(self, connection: PacedConnection) -> None:
        """Add a connection, and start the sweep if it is the first."""
        super().add(connection)
        if self._round is None:
            self._round = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self.sweep)

    def sweep(self) -> None:
        """Check all connections; again in a second if any is left."""
        now = time.monotonic()
        for connection in tuple(self):
            connection.check_pace(now)
        self._round = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self.sweep) if self else None
