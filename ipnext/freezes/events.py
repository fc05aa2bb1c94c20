"""A freeze's windows as RFC 5545 events: those that a user wrote one by one, and those of a whole VCALENDAR.

Every event has a start and an end in one time zone, so that a date, a time without a zone and a time with one are
evaluated alike. Invalid input is refused with its field.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from icalendar import Calendar, Event, vRecur

from ipnext.errors import InvalidInput
from ipnext.freezes.rules import check_rule, parse_rule, starts_of
from ipnext.model.manifest.freeze import MOST_WINDOWS, YEARS, FreezeSpec, FreezeWindow

LONGEST = timedelta(days=366)
"""Longest recurring window: all that may still be open must be evaluated."""

_ZONES = "an IANA name such as Europe/Berlin or UTC"


def events_of(spec: FreezeSpec) -> tuple[Event, ...]:
    """Return all events of a freeze. InvalidInput names the field, the value and the allowed ones."""
    zone = _zone(spec.time_zone, "spec.timeZone")
    written = [_written(window, zone, number) for number, window in enumerate(spec.windows)]
    return (*written, *(_parse_events(spec.ics, zone) if spec.ics is not None else ()))


def rules_of(event: Event) -> tuple[vRecur, ...]:
    """Return the rules of an event: none, one or several."""
    found: Any = event.get("RRULE", ())
    return (found,) if isinstance(found, vRecur) else tuple(found)


def moment_of(event: Event, name: str) -> datetime:
    """Return a property of an event from `events_of`."""
    moment: datetime = _value(event, name).dt
    return moment


def begin(event: Event, start: datetime, end: datetime) -> None:
    """Give an event another start and end."""
    for name, moment in (("DTSTART", start), ("DTEND", end)):
        event.pop(name, None)
        event.add(name, moment)


def _value(event: Event, name: str) -> Any:
    """Return a property in the library's own type, since its union of all types is not useful."""
    return event[name]


def _written(window: FreezeWindow, default: ZoneInfo, number: int) -> Event:
    field = f"spec.windows.{number}"
    zone = default if window.time_zone is None else _zone(window.time_zone, f"{field}.timeZone")
    event, start = Event(), window.start
    event.add("uid", f"ipnext-window-{number}")
    if window.rrule is not None:
        _check_length(window.length, field)
        rule = parse_rule(window.rrule.removeprefix("RRULE:"), start.replace(tzinfo=zone), f"{field}.rrule")
        start = next(starts_of(rule, start))  # a start that the rule does not give is none of its windows
        event.add("rrule", rule)
    event.add("dtstart", start.replace(tzinfo=zone))
    event.add("dtend", (start + window.length).replace(tzinfo=zone))
    for name, times in (("exdate", window.exdates), ("rdate", window.rdates)):
        if times:
            event.add(name, [moment.replace(tzinfo=zone) for moment in times])
    return event


def _parse_events(text: str, default: ZoneInfo) -> Iterator[Event]:
    try:
        calendar = Calendar.from_ical(text)
        events: list[Any] = calendar.walk("VEVENT")
    except (ValueError, KeyError, IndexError) as error:
        msg = f"spec.ics: is no VCALENDAR ({error}); allowed: one calendar as RFC 5545 has it"
        raise InvalidInput(msg, field="spec.ics", value=text[:200]) from error
    if not 0 < len(events) <= MOST_WINDOWS:
        msg = f"spec.ics: has {len(events)} events; allowed: 1 to {MOST_WINDOWS}"
        raise InvalidInput(msg, field="spec.ics", value=len(events), allowed=(f"1 to {MOST_WINDOWS} events",))
    for number, event in enumerate(events):
        if "UID" not in event:
            event.add("uid", f"ipnext-event-{number}")  # events of one UID would be one
        yield _read(event, default, f"spec.ics: VEVENT {number + 1}")


def _read(event: Event, default: ZoneInfo, field: str) -> Event:
    """Return the event zoned.

    The parser accepts meaningless events, such as one with two starts: they fail when used.
    """
    try:
        return _normalize_zone(event, default, field)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        msg = f"{field}: can't be worked out ({error}); allowed: one event as RFC 5545 has it"
        raise InvalidInput(msg, field="spec.ics") from error


def _normalize_zone(event: Event, default: ZoneInfo, field: str) -> Event:
    """Return the event with its own start and end in one time zone. Checks properties that the parser accepts."""
    for name, problem in event.errors:
        raise _event_error(field, str(name), event.get(name), str(problem))
    if "DTSTART" not in event:
        raise _event_error(field, "DTSTART", None, "is missing")
    for name in ("DTSTART", "DTEND", "RECURRENCE-ID"):
        _check_zone(event, name, field)
    given: date = _value(event, "DTSTART").dt
    start = _moment(given, default)
    if not YEARS[0] <= start.year < YEARS[1]:
        raise _event_error(field, "DTSTART", start.isoformat(), f"is out of the years {YEARS[0]} to {YEARS[1] - 1}")
    end = _end(event, given, start, field)
    if end <= start:
        raise _event_error(field, "DTEND", end.isoformat(), f"must come after DTSTART ({start.isoformat()})")
    for rule in rules_of(event):
        _check_length(end - start, field)
        check_rule(rule, start, f"{field}: RRULE")
    _replace(event, start, end)
    return event


def _end(event: Event, given: date, start: datetime, field: str) -> datetime:
    if "DTEND" in event:
        return _moment(_value(event, "DTEND").dt, start.tzinfo)
    if "DURATION" in event:
        length: timedelta = _value(event, "DURATION").dt
        return start + length
    if not isinstance(given, datetime):
        return start + timedelta(days=1)
    raise _event_error(field, "DTEND", None, "is missing, and there is no DURATION: the event has no length")


def _check_zone(event: Event, name: str, field: str) -> None:
    if name not in event:
        return
    value = _value(event, name)
    zone = value.params.get("TZID")
    if zone and isinstance(value.dt, datetime) and value.dt.tzinfo is None:
        raise _event_error(field, name, zone, f"is in an unknown time zone; allowed: {_ZONES}, or a VTIMEZONE")


def _replace(event: Event, start: datetime, end: datetime) -> None:
    if "RECURRENCE-ID" in event:
        replaced = _moment(_value(event, "RECURRENCE-ID").dt, start.tzinfo)
        del event["RECURRENCE-ID"]
        event.add("recurrence-id", replaced)
    event.pop("DURATION", None)
    begin(event, start, end.astimezone(start.tzinfo))


def _moment(value: date, zone: tzinfo | None) -> datetime:
    """Return a moment: for a date its midnight; for a time without a zone that of `zone`."""
    moment = value if isinstance(value, datetime) else datetime.combine(value, time())
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)


def _check_length(length: timedelta, field: str) -> None:
    if length > LONGEST:
        msg = f"{field}: each window lasts {length.days} days; allowed: at most {LONGEST.days} if it recurs"
        raise InvalidInput(msg, field=field, value=str(length), allowed=(f"at most {LONGEST.days} days",))


def _zone(name: str, field: str) -> ZoneInfo:
    try:
        zone = ZoneInfo(name)
        datetime.now(UTC).astimezone(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        msg = f"{field}: {name!r} is no known time zone; allowed: {_ZONES}"
        raise InvalidInput(msg, field=field, value=name, allowed=(_ZONES,)) from error
    return zone


def _event_error(field: str, name: str, value: object, problem: str) -> InvalidInput:
    shown = "" if value is None else f" {str(value)!r:.100}"
    return InvalidInput(
        f"{field}: {name}{shown} {problem}", field="spec.ics", value=None if value is None else str(value)
    )
