"""Whether a change has to wait, until when, and for which freezes. Pure: the time is given."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import NamedTuple

from ipnext.freezes.calendar import FreezeCalendar
from ipnext.model.manifest.freeze import BindingFreeze, FreezePeriod, Frozen

LOOKS_AHEAD = timedelta(days=366)
"""Adjacent windows without a gap are joined this far ahead; then the caller asks again."""

FIRST_SPAN = timedelta(days=8)

SEARCHES_AHEAD = timedelta(days=5 * 366)
"""Span ahead in which later windows are searched."""


class ChangeScope(NamedTuple):
    """A change, as far as the scope of a freeze needs it: its owner, and the regions that it may touch."""

    model: str
    owner: str
    regions: Collection[str]
    kind: str


def frozen(freezes: Iterable[FreezeCalendar], asked: ChangeScope, at: datetime) -> Frozen | None:
    """Return the freezes that bind a change at a time; None if it may proceed."""
    bound = [each for each in freezes if _covers(each, asked)]
    span = FIRST_SPAN
    while True:
        until, binding = _union(bound, at, at + span)
        if until < at + span or span >= LOOKS_AHEAD:
            break
        span = min(span * 4, LOOKS_AHEAD)
    return Frozen(until=until, freezes=binding) if binding else None


def next_windows(freeze: FreezeCalendar, at: datetime, *, count: int = 1) -> tuple[FreezePeriod, ...]:
    """Return the next windows that open after `at`, at most `count`, up to five years ahead."""
    span = FIRST_SPAN
    while True:
        later = [window for window in freeze.windows(at, at + span) if window.start > at]
        if len(later) >= count or span >= SEARCHES_AHEAD:
            return tuple(later[:count])
        span = min(span * 4, SEARCHES_AHEAD)


def next_window(freezes: Iterable[FreezeCalendar], asked: ChangeScope, at: datetime) -> FreezePeriod | None:
    """Return the next window that opens for such a change after `at`."""
    bound = [each for each in freezes if _covers(each, asked)]
    later = [window for each in bound for window in next_windows(each, at)]
    return min(later, key=lambda window: window.start, default=None)


def open_window(freeze: FreezeCalendar, at: datetime) -> FreezePeriod | None:
    """Return the window of a freeze that is open at a time; of several the one that closes last."""
    found = [window for window in freeze.windows(at, at + timedelta(seconds=1)) if window.start <= at < window.end]
    return max(found, key=lambda window: window.end, default=None)


def _union(
    freezes: Sequence[FreezeCalendar], at: datetime, stop: datetime
) -> tuple[datetime, tuple[BindingFreeze, ...]]:
    """Return the end of the windows from `at` on that leave no gap, and their freezes."""
    windows = sorted(
        ((window.start, window.end, each) for each in freezes for window in each.windows(at, stop)),
        key=lambda found: found[:2],
    )
    until, latest = at, at + LOOKS_AHEAD
    ends: dict[str, BindingFreeze] = {}
    for start, end, freeze in windows:
        if start > until:
            break
        known = ends.get(freeze.manifest.name)
        last = min(end if known is None else max(end, known.until), latest)
        ends[freeze.manifest.name] = BindingFreeze(
            name=freeze.manifest.name, reason=freeze.manifest.spec.reason, until=last
        )
        until = min(max(until, end), latest)
    return until, tuple(ends.values())


def _covers(freeze: FreezeCalendar, asked: ChangeScope) -> bool:
    spec = freeze.manifest.spec
    scope = spec.scope
    return (
        asked.kind in spec.kinds
        and _matches(scope.models, (asked.model,))
        and _matches(scope.owners, (asked.owner,))
        and _matches(scope.regions, asked.regions)
    )


def _matches(patterns: Sequence[str], names: Collection[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
