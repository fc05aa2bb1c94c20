"""Freezes as a person writes them: what is taken, what is refused and with which words."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.errors import InvalidInput
from ipnext.freezes.calendar import FreezeCalendar
from ipnext.freezes.evaluation import ChangeScope, frozen, next_windows, open_window
from ipnext.model.manifest.parser import parse_manifest

ANYONE = ChangeScope("ranker", "search", ("eu", "us"), "publish")
WEEKENDS = {
    "start": "2026-03-02T18:00",
    "duration": "P2DT12H",
    "rrule": "FREQ=WEEKLY;BYDAY=FR",
    "timeZone": "Europe/Berlin",
}

ICS = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//example//EN
BEGIN:VEVENT
UID:nights
DTSTART;TZID=Europe/Berlin:20260320T180000
DURATION:PT6H
RRULE:FREQ=DAILY;UNTIL=20991231T000000Z
EXDATE;TZID=Europe/Berlin:20260328T180000
END:VEVENT
BEGIN:VEVENT
UID:nights
RECURRENCE-ID;TZID=Europe/Berlin:20260329T180000
DTSTART;TZID=Europe/Berlin:20260329T200000
DURATION:PT1H
END:VEVENT
BEGIN:VEVENT
UID:a-day
DTSTART;VALUE=DATE:20260701
END:VEVENT
END:VCALENDAR
"""


def calendar(*windows: dict, name: str = "f", **spec: object) -> FreezeCalendar:
    spec = {"reason": "why", "windows": list(windows), **spec}
    document = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": name}, "spec": spec}
    return FreezeCalendar(parse_manifest(document))


def once(start: str, end: str, **more: object) -> dict[str, object]:
    return {"start": start, "end": end, **more}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_weekend_keeps_its_wall_clock_where_clocks_change_in_it():
    before, after = next_windows(calendar(WEEKENDS), utc("2026-03-20T20:00"), count=2)
    assert (before.start, before.end) == (utc("2026-03-27T17:00"), utc("2026-03-30T04:00"))
    assert (after.start, after.end) == (utc("2026-04-03T16:00"), utc("2026-04-06T04:00"))


def test_windows_of_several_freezes_that_overlap_or_adjoin_are_one_wait():
    first = calendar(once("2026-12-20T00:00", "2026-12-24T00:00"), name="a")
    second = calendar(
        once("2026-12-23T00:00", "2026-12-26T00:00"), once("2026-12-26T00:00", "2026-12-27T00:00"), name="b"
    )
    gap = calendar(once("2026-12-27T00:01", "2026-12-28T00:00"), name="c")
    found = frozen([first, second, gap], ANYONE, utc("2026-12-21T00:00"))
    assert found.until == utc("2026-12-27T00:00")
    assert [(each.name, each.until) for each in found.freezes] == [
        ("a", utc("2026-12-24T00:00")),
        ("b", utc("2026-12-27T00:00")),
    ]
    assert found.message == "frozen until 2026-12-27 00:00:00 UTC: why (freeze a); why (freeze b)"


def test_two_freezes_with_the_same_window_both_bind():
    window = once("2026-12-20T00:00", "2026-12-24T00:00")
    found = frozen([calendar(window, name="a"), calendar(window, name="b")], ANYONE, utc("2026-12-21T00:00"))
    assert [each.name for each in found.freezes] == ["a", "b"]


def test_the_first_second_is_frozen_and_the_end_is_not():
    freeze = calendar(once("2026-12-20T00:00", "2026-12-21T00:00"))
    second = timedelta(seconds=1)
    start, end = utc("2026-12-20T00:00"), utc("2026-12-21T00:00")
    assert [frozen([freeze], ANYONE, at) is None for at in (start - second, start, end - second, end)] == [
        True,
        False,
        False,
        True,
    ]
    assert open_window(freeze, start).end == end
    assert open_window(freeze, end) is None


def test_windows_without_a_gap_are_followed_for_a_year():
    freeze = calendar({"start": "2020-01-01", "duration": "P1D", "rrule": "FREQ=DAILY"})
    at = utc("2026-06-01T12:00")
    assert frozen([freeze], ANYONE, at).until == at + timedelta(days=366)


@pytest.mark.parametrize(
    ("scope", "binds"),
    [
        ({}, True),
        ({"models": ["rank*"]}, True),
        ({"models": ["other", "rank?"]}, False),
        ({"owners": ["search"]}, True),
        ({"owners": ["ads"]}, False),
        ({"regions": ["us"]}, True),
        ({"regions": ["asia-*"]}, False),
        ({"models": ["ranker"], "regions": ["asia-*"]}, False),
    ],
)
def test_a_scope_binds_what_matches_each_of_its_lists(scope, binds):
    freeze = calendar(once("2026-12-20", "2026-12-21"), scope=scope)
    assert (frozen([freeze], ANYONE, utc("2026-12-20T12:00")) is not None) == binds


def test_only_the_kinds_that_it_names_wait_and_a_rollback_never_does():
    usual = calendar(once("2026-12-20", "2026-12-21"))
    strict = calendar(once("2026-12-20", "2026-12-21"), kinds=["retire"])
    at = utc("2026-12-20T12:00")
    waits = {
        kind: [frozen([each], ANYONE._replace(kind=kind), at) is not None for each in (usual, strict)]
        for kind in ("publish", "apply", "move", "retire", "rollback")
    }
    assert waits == {
        "publish": [True, False],
        "apply": [True, False],
        "move": [True, False],
        "retire": [False, True],
        "rollback": [False, False],
    }


def test_a_whole_calendar_is_read_with_its_exceptions_and_dates_in_the_freezes_zone():
    freeze = calendar(ics=ICS, timeZone="Asia/Tokyo")
    found = [(w.start, w.end) for w in next_windows(freeze, utc("2026-03-27T12:00"), count=3)]
    assert found == [
        (utc("2026-03-27T17:00"), utc("2026-03-27T23:00")),
        (utc("2026-03-29T18:00"), utc("2026-03-29T19:00")),
        (utc("2026-03-30T16:00"), utc("2026-03-30T22:00")),
    ]
    assert open_window(freeze, utc("2026-07-01T10:00")).end == utc("2026-07-01T15:00"), "midnight in Tokyo"


@pytest.mark.parametrize(
    ("until", "last"),
    [
        ("20260328", "2026-03-29T04:00"),
        ("20260327T120000", "2026-03-28T04:00"),
        ("20260328T035959Z", "2026-03-28T04:00"),
    ],
)
def test_an_until_without_a_zone_is_local_and_a_date_ends_with_its_day(until, last):
    window = {
        "start": "2026-03-20",
        "duration": "P1D",
        "rrule": f"FREQ=DAILY;UNTIL={until}",
        "timeZone": "America/New_York",
    }
    assert frozen([calendar(window)], ANYONE, utc("2026-03-27T12:00")).until == utc(last)


RULE = {"start": "2026-03-20", "duration": "P1D"}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"windows": [RULE | {"rrule": "FREQ=SECONDLY"}]}, "spec.windows.0.rrule", "too costly.*DAILY, WEEKLY"),
        ({"windows": [RULE | {"rrule": "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"}]}, "spec.windows.0.rrule", "never recurs"),
        ({"windows": [RULE | {"rrule": "FREQ=DAILY;UNTIL=20200101"}]}, "spec.windows.0.rrule", "UNTIL is before"),
        ({"windows": [RULE | {"rrule": "FREQ=DAILY;INTERVAL=0"}]}, "spec.windows.0.rrule", "INTERVAL of 1 or more"),
        ({"windows": [RULE | {"rrule": "FREQ=DAILY;BYMONTH=13"}]}, "spec.windows.0.rrule", "BYMONTH of 1 to 12"),
        ({"windows": [RULE | {"rrule": "FREQ=DAILY;BYHOUR=24"}]}, "spec.windows.0.rrule", "BYHOUR of 0 to 23"),
        (
            {"windows": [RULE | {"rrule": "FREQ=MONTHLY;BYMONTHDAY=0"}]},
            "spec.windows.0.rrule",
            "BYMONTHDAY of -31 to -1, 1 to 31",
        ),
        ({"windows": [RULE | {"rrule": "FREQ=DAILY;COUNT=9999"}]}, "spec.windows.0.rrule", "COUNT of 1 to 1000"),
        ({"windows": [RULE | {"rrule": "EVERY FRIDAY"}]}, "spec.windows.0.rrule", "has no frequency"),
        ({"windows": [RULE | {"rrule": "FREQ=WEEKLY;BYDAY=XX"}]}, "spec.windows.0.rrule", "no RFC 5545 rule"),
        ({"windows": [RULE | {"rrule": "FREQ=DAILY;LATER=1"}]}, "spec.windows.0.rrule", "unknown part LATER"),
        (
            {"windows": [RULE | {"rrule": f"FREQ=DAILY;BYMINUTE={','.join(map(str, range(60)))}"}]},
            "spec.windows.0.rrule",
            "60 times a day",
        ),
        (
            {"windows": [RULE | {"timeZone": "Mars/Olympus"}]},
            "spec.windows.0.timeZone",
            "no known time zone.*Europe/Berlin",
        ),
        ({"timeZone": "nowhere", "windows": [RULE]}, "spec.timeZone", "no known time zone"),
        ({"windows": [once("2026-03-20", "2026-03-19")]}, "spec.windows.0", "must come after start"),
        ({"windows": [once("2026-03-20T00:00Z", "2026-03-21")]}, "spec.windows.0.start", "has an offset"),
        ({"windows": [once(5, "2026-03-21")]}, "spec.windows.0.start", "a local time such as"),
        ({"windows": [RULE | {"end": "2026-03-21"}]}, "spec.windows.0", "either end or duration"),
        ({"windows": [RULE | {"duration": "P400D", "rrule": "FREQ=YEARLY"}]}, "spec.windows.0", "allowed: at most 366"),
        ({"windows": []}, "spec", "windows: give at least one"),
        ({"windows": [RULE], "reason": " "}, "spec.reason", "at least 1 character"),
        ({"windows": [RULE], "kinds": ["rollback"]}, "spec.kinds.0", "'publish', 'apply', 'move' or 'retire'"),
        ({"windows": [RULE], "scope": {"models": ["a b"]}}, "spec.scope.models.0", "match pattern"),
        ({"ics": "hello"}, "spec.ics", "no VCALENDAR"),
        ({"ics": "BEGIN:VCALENDAR\nEND:VCALENDAR"}, "spec.ics", "has 0 events"),
        ({"ics": ICS.replace("FREQ=DAILY", "FREQ=HOURLY")}, "spec.ics: VEVENT 1: RRULE", "too costly"),
        ({"ics": ICS.replace("Berlin:20260320", "Nowhere:20260320")}, "spec.ics", "unknown time zone"),
        ({"ics": ICS.replace("DURATION:PT6H\n", "")}, "spec.ics", "has no length"),
        ({"ics": ICS.replace("FREQ=DAILY", "FREQ=OFTEN")}, "spec.ics", "Expected frequency"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field_with_what_is_allowed(spec, field, words):
    with pytest.raises(InvalidInput, match=words) as refused:
        calendar(**({"windows": []} | spec))
    assert refused.value.field == field


def test_a_freeze_may_not_have_the_name_of_the_present():
    with pytest.raises(InvalidInput, match="'now' names what is frozen at present"):
        calendar(RULE, name="now")
