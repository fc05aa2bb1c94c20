"""Polls of upstream systems: every new version is recorded in the unit of work that advances the cursor."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any, Final

from temporalio import activity

from activities.runtime.errors import public_text
from activities.runtime.owner_turns import OwnerShares
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.sources import PollResult, WatchedState, WatchInput
from ipnext.model.registry.sources import Listing
from ipnext.settings import PlatformSettings
from ipnext.sources.access import ReadAccess
from ipnext.sources.kinds import SourceKinds
from ipnext.sources.port import Source, StreamRequest
from ipnext.store.records import SourceRecord
from ipnext.store.sources.sources import NOTED_EVERY, PUSHED_SECONDS
from ipnext.store.store import Store
from ipnext.store.unit_of_work import utc_now

LONGEST_BACKOFF_SECONDS: Final = 300.0
"""Longest interval after failed polls, unless the source's own is longer."""
MOST_LISTINGS: Final = 1000
"""Listings of one stream in one poll, while it says that there are more versions."""
AT_ONCE: Final = 16
"""Polls at once in one worker: the others wait, and so take no slots from changes. Systems that only one owner watches
get that owner's share of them (`activities.runtime.owner_turns`): their servers may answer slowly on purpose."""
POLLS: Final = "polls"
"""Name of these turns."""
LONGEST_TEXT: Final = 300
SHOWN: Final = 50
"""Sources that the Web UI shows."""
MOST_DOUBLINGS: Final = 16


@dataclass(frozen=True)
class _Polled:
    """A source after a poll."""

    source: SourceRecord
    text: str
    failures: int = 0


class SourcePollActivities:
    """Activity of the watch of one upstream system."""

    def __init__(self, store: Store, kinds: SourceKinds, settings: PlatformSettings) -> None:
        self._store, self._kinds, self._settings = store, kinds, settings
        self._turns = BoundedSemaphore(AT_ONCE)
        self._shares = OwnerShares({POLLS: AT_ONCE})

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.poll_sources,)

    @activity.defn(name="poll_sources", no_thread_cancel_exception=True)
    def poll_sources(self, asked: WatchInput) -> PollResult:
        """Poll the sources of one upstream system that are not paused, and name the models with something to publish.

        A source that fails stops no other one: the store has its error, and it is polled again after a growing pause.
        Raises Unavailable if this worker has AT_ONCE polls under way, or the owner's share of them.
        """
        with self._store.read() as unit:
            found = unit.watched_sources(asked.kind, asked.upstream)
        if not found:
            return PollResult(over=True)
        owners = {source.owner for source in found if source.paused_at is None}
        with self._shares.hold(owners.pop(), POLLS) if len(owners) == 1 else nullcontext():
            return self._take_turn(asked.kind, found)

    def _take_turn(self, kind: str, found: Sequence[SourceRecord]) -> PollResult:
        if not self._turns.acquire(blocking=False):
            msg = f"{AT_ONCE} polls are under way in this worker; this one waits its turn"
            raise Unavailable(msg)
        began = time.monotonic()
        try:
            result = self._poll_system(kind, found)
        finally:
            self._turns.release()
        took = time.monotonic() - began
        return result.model_copy(update={"next_seconds": max(result.next_seconds, took)})

    def _poll_system(self, kind: str, found: Sequence[SourceRecord]) -> PollResult:
        active = [source for source in found if source.paused_at is None]
        polled = self._poll(kind, active)
        with self._store.read() as unit:
            models = unit.pending_models({source.model for source in active})
        paused = [_Polled(source, _describe_pause(source)) for source in found if source.paused_at is not None]
        states = [WatchedState(model=p.source.model, source=p.source.name, text=p.text) for p in (*polled, *paused)]
        return PollResult(
            models=tuple(sorted(models)),
            next_seconds=min((_pause_after(each) for each in polled), default=PUSHED_SECONDS),
            states=tuple(states[:SHOWN]),
            count=len(found),
        )

    def _poll(self, kind: str, sources: Sequence[SourceRecord]) -> list[_Polled]:
        if not sources:
            return []
        try:
            connected = self._connect(kind, sources)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; each of its sources has the error
            return [self._note_failure(source, error) for source in sources]
        return [self._poll_one(record, source) for record, source in zip(sources, connected, strict=True)]

    def _connect(self, kind: str, sources: Sequence[SourceRecord]) -> Sequence[Source]:
        streams = [
            StreamRequest(source.spec.stream, ReadAccess.of(self._settings, source.owner, source.reach))
            for source in sources
        ]
        connected = tuple(self._kinds.get(kind).connect(streams))
        if len(connected) != len(sources):
            msg = f"the kind {kind!r} connected {len(connected)} of {len(sources)} sources"
            raise TypeError(msg)
        return connected

    def _poll_one(self, record: SourceRecord, source: Source) -> _Polled:
        total, listed = 0, record
        for _ in range(MOST_LISTINGS):
            try:
                listing = _check_listing(source.list_since(listed.cursor))
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; its source has the error
                return self._note_failure(record, error)
            total += self._note_listing(listed, listing)
            if not listing.more or listing.cursor == listed.cursor:
                break
            listed = listed.model_copy(update={"cursor": listing.cursor})
        return _Polled(record, _describe_new(total))

    def _note_listing(self, record: SourceRecord, listing: Listing) -> int:
        """Record a listing in as many units as it takes; return the number of new versions.

        Without news, and soon after a poll that was recorded, there is nothing to write.
        """
        unchanged = not listing.versions and listing.cursor == record.cursor and not record.failures
        if unchanged and record.polled_at is not None and utc_now() - record.polled_at < NOTED_EVERY:
            return 0
        total = 0
        while True:
            with self._store.begin_free(()) as unit:
                new = unit.note_listing(record, listing)
            total += new or 0
            if not new:
                return total

    def _note_failure(self, record: SourceRecord, error: Exception) -> _Polled:
        message = public_text(error)
        with self._store.begin_free(()) as unit:
            failures = unit.note_failed_poll(record, message)
        activity.logger.warning("source %s/%s could not be polled: %s", record.model, record.name, message)
        return _Polled(record, message[:LONGEST_TEXT], failures=max(1, failures))


def _check_listing(found: object) -> Listing:
    """Return what a plug-in gave, if it is a listing: anything else would end the polls of all its sources."""
    if not isinstance(found, Listing):
        msg = f"list_since gave {type(found).__name__}; needed: Listing"
        raise TypeError(msg)
    return found


def _describe_new(count: int) -> str:
    return f"{count} new" if count else "nothing new"


def _describe_pause(source: SourceRecord) -> str:
    return f"paused by {source.paused_by}" + (f": {source.pause_reason}" if source.pause_reason else "")


def _pause_after(polled: _Polled) -> float:
    """Return the seconds until a source's next poll: its interval, doubled for each failed poll in a row."""
    if polled.source.kind == "push":
        return PUSHED_SECONDS
    every = polled.source.spec.every_seconds
    if not polled.failures:
        return every
    grown = every * 2.0 ** min(polled.failures, MOST_DOUBLINGS)
    return max(every, min(grown, LONGEST_BACKOFF_SECONDS))
