"""Recurrence rules: which are accepted, and their limits. Used for rules that a user wrote and for a whole VCALENDAR.

The library evaluates a rule from its start at each query. So costly rules are refused (more than 24 starts a day, none
within sixty years), and a rule that began long ago is evaluated from a later start that gives the same.
"""

import math
from collections.abc import Iterator
from datetime import UTC as ZULU
from datetime import date, datetime, time, timedelta
from itertools import islice

from dateutil.rrule import rrulestr
from icalendar import vRecur

from ipnext.errors import InvalidInput

FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
MOST_A_DAY = 24
MOST_COUNT = 1000
SEARCHED = timedelta(days=60 * 366)
"""Leap days on one weekday are at most 40 years apart."""

_LAST_YEAR = 9999
_CYCLE = timedelta(days=146_097)
"""400 years: the calendar repeats itself, including weekdays and leap years."""

_RANGES = {
    "BYMONTH": 12, "BYMONTHDAY": 31, "BYYEARDAY": 366, "BYWEEKNO": 53, "BYSETPOS": 366, "BYHOUR": 23, "BYMINUTE": 59,
    "BYSECOND": 59,
}  # fmt: skip
"""Largest value of each part; those of days, weeks and positions may count from the end, and none of these is 0."""

_NEAR = timedelta(days=40)
_TIMES = ("BYHOUR", "BYMINUTE", "BYSECOND")
_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

_PARTS = (
    "FREQ", "UNTIL", "COUNT", "INTERVAL", "BYSECOND", "BYMINUTE", "BYHOUR", "BYDAY", "BYMONTHDAY", "BYYEARDAY",
    "BYWEEKNO", "BYMONTH", "BYSETPOS", "WKST",
)  # fmt: skip


def parse_rule(text: str, start: datetime, field: str) -> vRecur:
    """Parse a rule, which must give at least one start at or after `start` (with its zone).

    InvalidInput names the field.
    """
    try:
        rule = vRecur.from_ical(text)
    except ValueError as error:
        raise _rule_error(field, text, f"is no RFC 5545 rule ({error})", "FREQ=WEEKLY;BYDAY=FR") from error
    return check_rule(rule, start, field)


def check_rule(rule: vRecur, start: datetime, field: str) -> vRecur:
    """Check a parsed rule in the same way."""
    text = _text(rule)
    _check_parts(rule, field, text)
    count = int(rule["COUNT"][0]) if "COUNT" in rule else 1
    try:
        starts = tuple(islice(starts_of(rule, start), count))
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
        raise _rule_error(field, text, f"can't be worked out ({error})", "FREQ=WEEKLY;BYDAY=FR") from error
    if len(starts) < count:
        years = SEARCHED.days // 366
        what = f"gives {len(starts)} of its {count} starts" if starts else "never recurs"
        raise _rule_error(field, text, f"{what} within {years} years of {start.isoformat()}", "a rule that matches")
    if "UNTIL" in rule and _until(rule["UNTIL"][0], start) < starts[0].replace(tzinfo=start.tzinfo):
        raise _rule_error(field, text, f"never recurs: UNTIL is before {starts[0].isoformat()}", "a later UNTIL")
    return rule


def starts_of(rule: vRecur, start: datetime) -> Iterator[datetime]:
    """Yield the starts of a rule on the wall clock within the search span, without COUNT and UNTIL.

    Evaluated in the same years of a late cycle of the calendar: the library checks UNTIL only when it finds a start,
    and ends with the year 9999, which is near then.
    """
    later = (_LAST_YEAR - start.year - SEARCHED.days // 365) // 400 * _CYCLE
    shifted = start.replace(tzinfo=None) + later
    bounded = vRecur({key: value for key, value in rule.items() if key not in {"COUNT", "UNTIL"}})
    bounded["UNTIL"] = [shifted + SEARCHED]
    return (found - later for found in rrulestr(_text(bounded), dtstart=shifted))


def fast_forward(rule: vRecur, first: datetime, to: datetime) -> tuple[vRecur, datetime]:
    """Return the same rule from a later start, within about a year before `to`; from there on it gives the same starts.

    Parts that the rule takes from its start are made explicit, and the start moves forward by whole intervals. A rule
    with a COUNT is unchanged.
    """
    if "COUNT" in rule or first >= to - _NEAR:
        return rule, first
    explicit = _make_explicit(rule, first)
    later = next(starts_of(explicit, _shift_start(rule, first, to - _NEAR)), None)
    return (rule, first) if later is None else (explicit, later.replace(tzinfo=first.tzinfo))


def _shift_start(rule: vRecur, first: datetime, to: datetime) -> datetime:
    """Return the start, or the beginning of its month or year, some whole intervals later; not after `to`."""
    interval, local = int(rule.get("INTERVAL", [1])[0]), to.astimezone(first.tzinfo)
    if rule["FREQ"][0] in {"DAILY", "WEEKLY"}:
        days = interval * (7 if rule["FREQ"][0] == "WEEKLY" else 1)
        return first + timedelta(days=(local.date() - first.date()).days // days * days)
    months = interval * (12 if rule["FREQ"][0] == "YEARLY" else 1)
    since = (local.year - first.year) * 12 + local.month - first.month
    month = first.year * 12 + first.month - 1 + since // months * months
    begins = first.replace(year=month // 12, month=month % 12 + 1, day=1)
    return begins.replace(month=1) if rule["FREQ"][0] == "YEARLY" else begins


def _make_explicit(rule: vRecur, first: datetime) -> vRecur:
    """Add the days that the rule takes from its start (RFC 5545, 3.3.10: information missing is that of DTSTART)."""
    if any(part in rule for part in ("BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO")):
        return rule
    missing: dict[str, list[object]] = {}
    if rule["FREQ"][0] == "WEEKLY":
        missing["BYDAY"] = [_WEEKDAYS[first.weekday()]]
    if rule["FREQ"][0] in {"MONTHLY", "YEARLY"}:
        missing["BYMONTHDAY"] = [first.day]
    if rule["FREQ"][0] == "YEARLY" and "BYMONTH" not in rule:
        missing["BYMONTH"] = [first.month]
    return vRecur({**rule, **missing})


def limit_rule(rule: vRecur, first: datetime, stop: datetime) -> vRecur:
    """Return the rule with an end no later than `stop`, so that none is evaluated for ever.

    `first` has the rule's time zone. Its own UNTIL is read as in RFC 5545: UTC, or local if it names no zone; a date
    ends with its day.
    """
    if "COUNT" in rule:
        return rule
    last = stop.astimezone(ZULU)
    if "UNTIL" in rule:
        last = min(last, _until(rule["UNTIL"][0], first))
    return vRecur({**rule, "UNTIL": [last]})


def _text(rule: vRecur) -> str:
    raw: bytes = rule.to_ical()  # type: ignore[no-untyped-call]  # the library leaves it out
    return raw.decode()


def _until(value: date, first: datetime) -> datetime:
    if not isinstance(value, datetime):
        value = datetime.combine(value, time(23, 59, 59))
    return (value.replace(tzinfo=first.tzinfo) if value.tzinfo is None else value).astimezone(ZULU)


def _check_parts(rule: vRecur, field: str, text: str) -> None:
    frequency = str(rule.get("FREQ", [""])[0])
    if frequency not in FREQUENCIES:
        why = "is too costly to walk" if frequency in {"SECONDLY", "MINUTELY", "HOURLY"} else "has no frequency"
        raise _rule_error(field, text, why, f"FREQ of {', '.join(FREQUENCIES)}")
    unknown = [part for part in rule if part not in _PARTS]
    if unknown:
        raise _rule_error(field, text, f"has the unknown part {unknown[0]}", ", ".join(_PARTS))
    for part, most in _RANGES.items():
        if not all(_in_range(part, int(value), most) for value in rule.get(part, ())):
            low = "0" if part in _TIMES else "1" if part == "BYMONTH" else f"-{most} to -1, 1"
            raise _rule_error(field, text, f"has a {part} out of its range", f"{part} of {low} to {most}")
    if int(rule.get("INTERVAL", [1])[0]) < 1:
        raise _rule_error(field, text, "has an INTERVAL below 1", "INTERVAL of 1 or more")
    if "COUNT" in rule and ("UNTIL" in rule or not 1 <= int(rule["COUNT"][0]) <= MOST_COUNT):
        raise _rule_error(field, text, "has a COUNT that can't be taken", f"COUNT of 1 to {MOST_COUNT}, without UNTIL")
    a_day = math.prod(len(rule.get(part, [0])) for part in _TIMES)
    if a_day > MOST_A_DAY:
        raise _rule_error(field, text, f"starts {a_day} times a day", f"at most {MOST_A_DAY} starts a day")


def _in_range(part: str, value: int, most: int) -> bool:
    if part in _TIMES or part == "BYMONTH":
        return (part == "BYMONTH") <= value <= most
    return 1 <= abs(value) <= most


def _rule_error(field: str, text: str, why: str, allowed: str) -> InvalidInput:
    return InvalidInput(f"{field}: {text!r} {why}; allowed: {allowed}", field=field, value=text, allowed=(allowed,))
