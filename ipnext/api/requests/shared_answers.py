"""Answers that many clients request at once: computed once, shared, cached until something changes.

One computation runs at a time for each key. A request never gets an answer that began before the request arrived,
unless nothing was written in between. Waiting requests occupy no thread, and computations have separate threads, so
that open pages do not block other requests. One client has a share of these threads, and of the answers that wait. An
answer is computed in the turn of any client that waits for it, so that none waits for the other requests of another.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field

import anyio
from fastapi import Request, Response

from ipnext.api.requests.slots import SHARE, Slots, holder_of
from ipnext.api.requests.turns import Turns
from ipnext.api.services.region_states import States

KEPT = 64
"""Cached answers, the ones requested last."""

LONGEST_SECONDS = 5.0
"""Age at which an answer is computed again although nothing was written: freezes begin and end by the clock."""

THREADS = 2
"""Computations of different keys at a time; one of them for one client."""

WAITING = 64
"""Different answers that are computed or wait for it; a client has at most the SHARE-th part."""


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    """A body with its entity tag, and the mark of its inputs."""

    body: bytes
    tag: str
    mark: str
    made: float


@dataclass(slots=True)
class _Flight:
    number: int
    mark: str
    turn: "asyncio.Future[None]"
    """Done once it is the turn of one of the clients that wait."""
    offers: "dict[str | None, asyncio.Task[None]]" = field(default_factory=dict)
    """Client -> its wait for its turn."""
    task: "asyncio.Task[SharedAnswer]" = field(init=False)


class SharedAnswers:
    """Answers by key. Use it in one event loop."""

    def __init__(self, states: Callable[[], States], revision: Callable[[], str]) -> None:
        """`states` observes the regions, `revision` marks the store's content; both may block for a moment."""
        self._states = states
        self._revision = revision
        self._kept: OrderedDict[Hashable, SharedAnswer] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self._observing: asyncio.Task[States] | None = None
        self._started = 0
        self._looking: anyio.CapacityLimiter | None = None
        self._looks, self._computing = Turns(SHARE), Turns(THREADS)
        self._slots = Slots(WAITING, "different answers")
        self.computed = 0
        """Answers computed so far."""

    async def answer(
        self, request: Request, key: Hashable, make: Callable[[States], bytes], *, media_type: str = "application/json"
    ) -> Response:
        """Answer a request with the shared body of its key, or with 304 if the client already has it."""
        found = await self.get(key, make, holder=holder_of(request.state.acting.principal))
        headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
        given = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if found.tag in given or "*" in given:
            return Response(status_code=304, headers=headers)
        return Response(found.body, media_type=media_type, headers=headers)

    async def get(self, key: Hashable, make: Callable[[States], bytes], *, holder: str | None = None) -> SharedAnswer:
        """Return the answer of a key that is not older than this call, or since which nothing was written.

        Raises:
            Unavailable: too many different answers are computed or wait for it.
            RateLimited: too many of this holder (`slots.holder_of`) do.
        """
        arrived = self._started
        states, mark = await self.look(holder)
        while True:
            kept = self._kept.get(key)
            if kept is not None and kept.mark == mark and time.monotonic() - kept.made < LONGEST_SECONDS:
                self._kept.move_to_end(key)
                return kept
            flight = self._flights.get(key)
            if flight is None:
                slot = ExitStack()
                slot.enter_context(self._slots.occupy(holder))
                self._started += 1
                turn = asyncio.get_running_loop().create_future()
                flight = self._flights[key] = _Flight(self._started, mark, turn)
                flight.task = asyncio.create_task(self._compute(key, flight, slot, make, states))
            if holder not in flight.offers and not flight.turn.done():
                flight.offers[holder] = asyncio.create_task(self._offer_turn(flight, holder))
            if flight.number > arrived or flight.mark == mark:
                return await asyncio.shield(flight.task)
            await asyncio.wait([flight.task])
            states, mark = await self.look(holder)

    async def look(self, holder: str | None = None) -> tuple[States, str]:
        """Observe the regions, together with other callers, and return their states with the mark of all inputs."""
        if self._observing is None or self._observing.done():
            self._looking = self._looking or anyio.CapacityLimiter(1)
            self._observing = asyncio.create_task(anyio.to_thread.run_sync(self._states, limiter=self._looking))
        states = await asyncio.shield(self._observing)
        revision = await self._looks.run(holder, self._revision)
        return states, f"{revision}/{states.revision}"

    async def _offer_turn(self, flight: _Flight, holder: str | None) -> None:
        """Wait for the turn of a client, and spend it on a flight that has not begun."""
        async with self._computing.share(holder):
            if not flight.turn.done():
                del flight.offers[holder]
                flight.turn.set_result(None)
                await asyncio.wait([flight.task])

    async def _compute(
        self, key: Hashable, flight: _Flight, slot: ExitStack, make: Callable[[States], bytes], states: States
    ) -> SharedAnswer:
        """Compute a body in the first turn that a client offers."""
        with slot:
            try:
                self.computed += 1
                await flight.turn
                while flight.offers:
                    flight.offers.popitem()[1].cancel()
                body = await self._computing.work(make, states)
                tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                answer = self._kept[key] = SharedAnswer(body, tag, flight.mark, time.monotonic())
                self._kept.move_to_end(key)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
                return answer
            finally:
                self._flights.pop(key, None)
