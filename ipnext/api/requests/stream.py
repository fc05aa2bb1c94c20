"""The stream of events, as server-sent events: one reader of the store for all subscribers.

While there are subscribers, the store's mark and the regions' revision are checked once in `look_seconds`. New events
of the history are sent with their ordinal as id, so that a client that reconnects with `Last-Event-ID` misses none. A
message `changed` means that other data changed: for a subscriber that does not see all models, that its overview did.
Changes of hidden models send it nothing. A subscriber that reads too slowly is disconnected, and resumes by its id.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import anyio
import structlog
from fastapi.sse import format_sse_event

from ipnext.api.requests.slots import Slots
from ipnext.api.services.region_states import States
from ipnext.errors import IPnextError, RateLimited, Unavailable
from ipnext.model.api.resources import EventView
from ipnext.store.store import Store

MOST_SUBSCRIBERS = 200
"""Open streams of one API process."""

BUFFERED = 256
"""Messages that wait for one subscriber; beyond that it is disconnected."""

HINT = "poll /v1/overview instead, or try again"

RESUMED = 1000
"""Most events for a reconnecting client; `changed` covers the rest."""

LOOK_SECONDS = 1.0
BEAT_SECONDS = 15.0
"""Silence after which a comment is sent: proxies close connections that look dead."""

BEAT = b": beat\n\n"
CHANGED = format_sse_event(data_str="{}", event="changed")


VALID_SECONDS = 3.0
"""Interval of the checks that subscribers are still authorised."""


class StreamListener(Protocol):
    """A listener of a stream."""

    @property
    def holder(self) -> str | None:
        """Holder of the stream in the count of open streams; None: no separate count."""

    def sees(self, owner: str | None) -> bool:
        """Return whether it gets events of a model of this owner; empty: of the whole fleet.

        None: the message `changed`.
        """

    def may_listen(self) -> bool:
        """Return whether it is still authorised. May block for a moment."""

    async def visible(self) -> frozenset[str] | None:
        """Return the owners whose models it sees; None: all."""


Shown = Callable[[frozenset[str], str | None], Awaitable[str]]
"""Returns a mark of what a holder that sees the models of these owners is shown. Raises Unavailable or RateLimited."""


class UnfilteredListener:
    """A listener without restrictions."""

    holder: str | None = None

    def sees(self, owner: str | None) -> bool:  # noqa: ARG002 - of the protocol
        """Return True."""
        return True

    def may_listen(self) -> bool:
        """Return True."""
        return True

    async def visible(self) -> frozenset[str] | None:
        """Return None."""
        return None


class _Told(NamedTuple):
    """A message with the owner of its model: empty for the fleet's own, None if it concerns no model."""

    ordinal: int
    message: bytes
    owner: str | None


@dataclass(eq=False, slots=True)
class _Subscriber:
    listener: "StreamListener"
    waiting: "asyncio.Queue[tuple[int, bytes] | None]" = field(default_factory=lambda: asyncio.Queue(BUFFERED))
    behind: bool = False


class Stream:
    """Subscribers of one process, and the task that checks for events. Use it in one event loop."""

    def __init__(
        self,
        store: Store,
        look: Callable[[], Awaitable[tuple[States, str]]],
        *,
        shown: Shown | None = None,
        most: int = MOST_SUBSCRIBERS,
        look_seconds: float = LOOK_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        """`shown` marks what listeners that do not see all models are shown; None: each change is for all listeners."""
        self._store = store
        self._shown = shown
        self._look = look
        self._slots = Slots(most, "streams")
        self._look_seconds = look_seconds
        self._beat_seconds = beat_seconds
        self._subscribers: set[_Subscriber] = set()
        self._task: asyncio.Task[None] | None = None
        self._ordinal = 0
        self._asked = 0.0
        self._closed = False

    @property
    def subscribers(self) -> int:
        """Open streams."""
        return len(self._subscribers)

    def subscribe(self, after: int | None, listener: StreamListener | None = None) -> AsyncIterator[bytes]:
        """Return the messages from now on, or from after an event on.

        The stream ends when the listener is no longer authorised. `listener` defaults to one without restrictions.

        Raises:
            Unavailable: there are too many subscribers.
            RateLimited: the listener's principal has its share of the streams open.
        """
        if self._closed:
            msg = "this server is about to end; try again"
            raise Unavailable(msg)
        listener = listener or UnfilteredListener()
        self._slots.check(listener.holder, hint=HINT)
        return self._messages(after, listener)

    async def close(self) -> None:
        """End every stream and the task."""
        self._closed = True
        for subscriber in self._subscribers:
            _cut_off(subscriber)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _messages(self, after: int | None, listener: StreamListener) -> AsyncIterator[bytes]:
        """Register first, then read the missed events, so that no event is lost between the two."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._slots.occupy(listener.holder))
            except (Unavailable, RateLimited):  # others were quicker
                return
            if self._closed:
                return
            subscriber = _Subscriber(listener)
            self._subscribers.add(subscriber)
            held.callback(self._subscribers.discard, subscriber)
            await self._begin()
            missed = [] if after is None else await anyio.to_thread.run_sync(self._since, after, RESUMED)
            mark = await self._mark(subscriber)  # before the client reads what it compares later changes with
            yield format_sse_event(data_str="{}", event="changed", retry=2000)
            for told in missed:
                if listener.sees(told.owner):
                    yield told.message
            sent = max([after or 0, *(told.ordinal for told in missed)])
            async for ordinal, message in self._heard(subscriber):
                if message is CHANGED:
                    former, mark = mark, await self._mark(subscriber)
                    if mark is not None and mark == former:
                        continue
                if ordinal > sent or not ordinal:
                    yield message

    async def _mark(self, subscriber: _Subscriber) -> str | None:
        """Return the mark of what a subscriber is shown; None if it sees all models, and if it is cut off."""
        visible = None if self._shown is None else await subscriber.listener.visible()
        if self._shown is None or visible is None:
            return None
        while not subscriber.behind:
            try:
                return await self._shown(visible, subscriber.listener.holder)
            except (Unavailable, RateLimited):
                await asyncio.sleep(self._look_seconds)
        return None

    async def _heard(self, subscriber: _Subscriber) -> AsyncIterator[tuple[int, bytes]]:
        """Yield messages and heartbeats until the subscriber is disconnected; 0 is the ordinal of all except events."""
        while not (subscriber.behind and subscriber.waiting.empty()):
            try:
                async with asyncio.timeout(self._beat_seconds):
                    found = await subscriber.waiting.get()
            except TimeoutError:
                found = (0, BEAT)
            if found is None:
                return
            yield found

    async def _begin(self) -> None:
        """Start the task, which runs while there are subscribers."""
        if self._task is None or self._task.done():
            self._ordinal = await anyio.to_thread.run_sync(self._newest)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run(), name="stream")

    async def _run(self) -> None:
        mark = ""
        while self._subscribers:
            try:
                _, seen = await self._look()
                if seen != mark:
                    found = await anyio.to_thread.run_sync(self._since, self._ordinal, BUFFERED // 2)
                    self._ordinal = max([self._ordinal, *(told.ordinal for told in found)])
                    self._send([*found, _Told(0, CHANGED, None)] if mark else found)
                    mark = seen
                await self._cut_unauthorized()
            except IPnextError as error:
                structlog.get_logger().warning("stream_does_not_look", error=error.message)
            await asyncio.sleep(self._look_seconds)

    async def _cut_unauthorized(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._asked + VALID_SECONDS:
            return
        self._asked = now
        listening = list(self._subscribers)
        may = await anyio.to_thread.run_sync(lambda: [each.listener.may_listen() for each in listening])
        for subscriber, allowed in zip(listening, may, strict=True):
            if not allowed:
                _cut_off(subscriber)

    def _send(self, messages: list[_Told]) -> None:
        for subscriber in self._subscribers:
            for told in messages:
                if not subscriber.listener.sees(told.owner):
                    continue
                try:
                    subscriber.waiting.put_nowait((told.ordinal, told.message))
                except asyncio.QueueFull:
                    subscriber.behind = True
                    break

    def _newest(self) -> int:
        with self._store.read() as unit:
            return unit.newest_event()

    def _since(self, ordinal: int, limit: int) -> list[_Told]:
        with self._store.read() as unit:
            found = unit.events_since(ordinal, limit=limit)
            owners = unit.owners_of({event.model for _, event in found if event.model is not None})
        views = ((each, EventView.model_validate(event, from_attributes=True)) for each, event in found)
        return [_Told(each, _message(each, view), owners.get(view.model or "", "")) for each, view in views]


def _message(ordinal: int, event: EventView) -> bytes:
    return format_sse_event(data_str=event.model_dump_json(exclude={"detail"}), event="event", id=str(ordinal))


def _cut_off(subscriber: _Subscriber) -> None:
    with contextlib.suppress(asyncio.QueueFull):
        subscriber.waiting.put_nowait(None)
    subscriber.behind = True
