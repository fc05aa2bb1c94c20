"""The windows of one freeze in a span of time. recurring-ical-events evaluates the rules.

A window keeps its length on the wall clock, as RFC 5545 defines DTEND: from Friday 18:00 to Monday 06:00 is just that,
also if clocks are changed between them. A time that the clocks skip is read with the offset from before; a time that
occurs twice means the first.
"""

from datetime import UTC, datetime, timedelta

import recurring_ical_events
from icalendar import Calendar, Event

from ipnext.errors import InvalidInput
from ipnext.freezes.events import begin, events_of, moment_of, rules_of
from ipnext.freezes.rules import fast_forward, limit_rule
from ipnext.model.manifest.freeze import FreezeManifest, FreezePeriod

MARGIN = timedelta(days=2)
"""Added around the requested span, so that no offset of a time zone cuts a window off."""

CHECKED = timedelta(days=366)
"""Span that is evaluated before a freeze is accepted."""


class FreezeCalendar:
    """One freeze, ready for queries. Repeated queries are answered from a cache."""

    def __init__(self, manifest: FreezeManifest) -> None:
        """Raise InvalidInput if a rule can't be used; names the field, the value and the allowed ones."""
        self.manifest = manifest
        self._events = events_of(manifest.spec)
        self._asked: dict[tuple[datetime, datetime], tuple[FreezePeriod, ...]] = {}

    def check(self, at: datetime) -> None:
        """Evaluate the windows of a year, once: InvalidInput if that fails."""
        try:
            self.windows(at, at + CHECKED)
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
            msg = f"spec: its windows can't be worked out ({error}); allowed: windows and events as RFC 5545 has them"
            raise InvalidInput(msg, field="spec") from error

    def windows(self, start: datetime, stop: datetime) -> tuple[FreezePeriod, ...]:
        """Return the windows that are open at some time from `start` up to `stop`, by their start; they may overlap."""
        if (start, stop) not in self._asked:
            self._asked[start, stop] = self._find_windows(start, stop)
        return self._asked[start, stop]

    def _find_windows(self, start: datetime, stop: datetime) -> tuple[FreezePeriod, ...]:
        calendar = Calendar()
        for event in self._events:
            calendar.add_component(_bound_rules(event, start - MARGIN, stop + MARGIN))
        query = recurring_ical_events.of(calendar)
        found = query.between(start.astimezone(UTC) - MARGIN, stop.astimezone(UTC) + MARGIN)
        windows = {(_utc(moment_of(each, "DTSTART")), _utc(moment_of(each, "DTEND"))) for each in found}
        return tuple(FreezePeriod(start=a, end=b) for a, b in sorted(windows) if a < b and a < stop and b > start)


def _bound_rules(event: Event, start: datetime, stop: datetime) -> Event:
    """Return the event with its rules ended, and its one rule begun later.

    None is then evaluated far beyond the query.
    """
    rules = rules_of(event)
    if not rules:
        return event
    first = moment_of(event, "DTSTART")
    length = moment_of(event, "DTEND") - first
    bounded = event.copy(recursive=True)
    del bounded["RRULE"]
    if len(rules) == 1:
        rule, later = fast_forward(rules[0], first, start - length)
        rules = (rule,)
        if later != first:
            begin(bounded, later, later + length)
    for rule in rules:
        bounded.add("rrule", limit_rule(rule, first, max(stop, first)))
    return bounded


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
