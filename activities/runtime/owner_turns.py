"""Turns of the owners at what a worker has little of, so that no owner takes all of it.

`OwnerShares` bounds the slots of a task queue that one owner's long work holds; beyond its share an attempt ends, and
its retry policy gives the pause, during which no slot is taken. `OwnerPlaces` lets work that has begun wait in its slot
for one of a few places, by turns of the owners.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Lock
from typing import Final

from temporalio import activity

from ipnext.errors import Unavailable

OWNERS: Final = 4
"""An owner's share of a queue's slots is one of this many, and at least one slot."""
POLL_SECONDS: Final = 0.1
"""Between two heartbeats of work that waits for a place: the delay after which a cancelled one ends."""


class ShareTaken(Unavailable):
    """An owner's work holds its share of a queue's slots; a further try may find one free."""


class OwnerShares:
    """Counts the slots of each queue that each owner's work holds in this worker.

    `slots`: of each task queue; other queues are not bounded. An owner has a slot at least, so that its work goes on.
    """

    def __init__(self, slots: Mapping[str, int] | None = None) -> None:
        self._shares = {queue: max(1, number // OWNERS) for queue, number in (slots or {}).items()}
        self._lock = Lock()
        self._held = Counter[tuple[str, str]]()

    @contextmanager
    def hold(self, owner: str, queue: str | None = None) -> Iterator[None]:
        """Hold the slot of this activity, or of another queue, for work of an owner. Raises ShareTaken."""
        queue = queue or activity.info().task_queue
        key = (queue, owner)
        self._take(key, self._shares.get(queue))
        try:
            yield
        finally:
            self._leave(key)

    def _take(self, key: tuple[str, str], share: int | None) -> None:
        with self._lock:
            if share is not None and self._held[key] >= share:
                msg = f"other work of owner {key[1]!r} takes its share of a worker, {share} at once; it waits its turn"
                raise ShareTaken(msg)
            self._held[key] += 1

    def _leave(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]


class OwnerPlaces:
    """So many places in this worker, at most one of them an owner's, given by turns of the owners."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._lock = Lock()
        self._waiting = OrderedDict[str, deque[Event]]()
        """By owner; the owner whose turn is next stands first."""
        self._inside = set[str]()

    @contextmanager
    def take(self, owner: str, beat: Callable[[str], None], what: str) -> Iterator[None]:
        """Wait for a place and hold it.

        `beat` is called with `what` until then; an error that it raises ends the wait.
        """
        called = Event()
        with self._lock:
            self._waiting.setdefault(owner, deque()).append(called)
            self._call_next()
        try:
            while not called.wait(POLL_SECONDS):
                beat(what)
            yield
        finally:
            self._give_back(owner, called)

    def _give_back(self, owner: str, called: Event) -> None:
        with self._lock:
            if called.is_set():
                self._inside.discard(owner)
                self._free += 1
            else:
                self._drop(owner, called)
            self._call_next()

    def _drop(self, owner: str, called: Event) -> None:
        self._waiting[owner].remove(called)
        if not self._waiting[owner]:
            del self._waiting[owner]

    def _call_next(self) -> None:
        """Call the owners whose turn it is, as long as places are free."""
        for owner in [each for each in self._waiting if each not in self._inside][: self._free]:
            called = self._waiting[owner].popleft()
            if self._waiting[owner]:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            self._inside.add(owner)
            self._free -= 1
            called.set()
