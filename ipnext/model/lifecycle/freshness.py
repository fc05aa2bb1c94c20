"""Freshness: how long users have been answered by snapshots that are older than their part's target. Pure.

A part is late in a region while the snapshot that serves there is older than the target. The share of the last 24 hours
in which it was not late is summed up by clock hour, so that neither its size nor its cost grows with the history. A
breach is lateness beyond the objective: it begins when a late part has used up what the objective leaves, and ends when
the part is no longer late.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from ipnext.model.value import Name, Value, WrittenValue

WINDOW_HOURS: Final = 24
"""Clock hours of the window: the one under way and those before."""
_HOUR: Final = 3600.0


class HourShare(NamedTuple):
    """Seconds of one clock hour in which a part was observed, and in which it was late."""

    hour: int
    """Hours since 1970, UTC."""
    observed: float
    late: float


Window = tuple[HourShare, ...]
"""At most WINDOW_HOURS hours, oldest first."""


class ServingSnapshot(Value):
    """The snapshot of a part that serves the users of a region: the oldest one that answers any of them."""

    model: str
    part: str
    region: str
    number: int
    trained_at: datetime | None = None
    """None: unknown, and `published_at` counts."""
    published_at: datetime
    since: datetime
    """When it began to serve; the last time, if it did so before."""
    to_serving_seconds: float | None = None
    """From the publication to the first serving, of the last snapshot that began to serve here for the first time."""
    target_seconds: float | None = None
    """None: the manifest asks for no freshness of the part."""
    objective: float = 1.0
    window: Window = ()
    accounted_at: datetime
    """The window covers the time until then."""
    breached_at: datetime | None = None
    """When the breach that lasts was recorded."""

    @property
    def place(self) -> tuple[str, str, str]:
        """Model, part and region."""
        return (self.model, self.part, self.region)

    @property
    def born_at(self) -> datetime:
        """The time from which its age counts."""
        return self.published_at if self.trained_at is None else self.trained_at

    @property
    def late_at(self) -> datetime | None:
        """The time from which it is older than the target; None without a target."""
        if self.target_seconds is None:
            return None
        return self.born_at + timedelta(seconds=self.target_seconds)

    def age_seconds(self, now: datetime) -> float:
        """Return its age."""
        return max(0.0, (now - self.born_at).total_seconds())

    def is_late(self, now: datetime) -> bool:
        """Return whether it is older than the target."""
        return self.late_at is not None and now > self.late_at

    def window_at(self, now: datetime) -> Window:
        """Return the window that ends now."""
        if self.late_at is None:
            return ()
        return extend_window(self.window, self.accounted_at, now, late_from=self.late_at)

    def share_at(self, now: datetime) -> float | None:
        """Return the share of the window in which the part was within the target; None without a target."""
        return None if self.target_seconds is None else fresh_share(self.window_at(now))

    def is_breached(self, now: datetime) -> bool:
        """Return whether it is late, and has been for longer than the objective allows."""
        return self.is_late(now) and fresh_share(self.window_at(now)) < self.objective


class SnapshotServing(Value):
    """A region whose users a snapshot has served, and the first time."""

    region: Name
    serving_at: datetime


class PartFreshness(WrittenValue):
    """The snapshot of a part that serves the users of a region, and how it keeps to the part's target."""

    part: Name
    region: Name
    snapshot: int
    trained_at: datetime | None = None
    """Null: unknown, and `publishedAt` counts."""
    published_at: datetime
    serving_since: datetime
    age_seconds: float
    publish_to_serving_seconds: float | None = None
    target_seconds: float | None = None
    """Null, as the rest: the manifest asks for no freshness of the part."""
    objective: float | None = None
    fresh_share: float | None = None
    """Share of the last 24 hours, or of the shorter time since it is observed, within the target."""
    late: bool | None = None
    breached_since: datetime | None = None


def view_freshness(found: ServingSnapshot, now: datetime) -> PartFreshness:
    """Return a serving snapshot in the form of the API."""
    asked = found.target_seconds is not None
    return PartFreshness(
        part=found.part,
        region=found.region,
        snapshot=found.number,
        trained_at=found.trained_at,
        published_at=found.published_at,
        serving_since=found.since,
        age_seconds=found.age_seconds(now),
        publish_to_serving_seconds=found.to_serving_seconds,
        target_seconds=found.target_seconds,
        objective=found.objective if asked else None,
        fresh_share=found.share_at(now),
        late=found.is_late(now) if asked else None,
        breached_since=found.breached_at,
    )


def extend_window(window: Sequence[HourShare], begin: datetime, end: datetime, *, late_from: datetime) -> Window:
    """Add the time from `begin` to `end` to a window, late from `late_from` on; hours before the window are left."""
    oldest = _hour_of(end) - WINDOW_HOURS + 1
    hours = {each.hour: each for each in window}
    for hour, start, stop in _split(max(begin, _start_of(oldest)), end):
        late = max(0.0, (stop - max(start, late_from)).total_seconds())
        known = hours.get(hour, HourShare(hour=hour, observed=0.0, late=0.0))
        observed = known.observed + (stop - start).total_seconds()
        hours[hour] = HourShare(hour=hour, observed=observed, late=known.late + late)
    return tuple(hours[hour] for hour in sorted(hours) if oldest <= hour)


def fresh_share(window: Sequence[HourShare]) -> float:
    """Return the share of the observed time that was not late; 1 if none was observed."""
    observed = sum(each.observed for each in window)
    late = sum(each.late for each in window)
    return 1.0 if observed <= 0 else max(0.0, 1.0 - late / observed)


def _split(begin: datetime, end: datetime) -> Iterator[tuple[int, datetime, datetime]]:
    """Yield (hour, begin, end) of the pieces of a time within clock hours."""
    while begin < end:
        hour = _hour_of(begin)
        stop = min(end, _start_of(hour + 1))
        yield hour, begin, stop
        begin = stop


def _hour_of(at: datetime) -> int:
    return int(at.timestamp() // _HOUR)


def _start_of(hour: int) -> datetime:
    return datetime.fromtimestamp(hour * _HOUR, UTC)
