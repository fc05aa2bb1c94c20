"""Calendars that were spoilt on their way are taken or refused; nothing else comes of them."""

import random
import string
from datetime import UTC, datetime, timedelta

import pytest

from ipnext.errors import InvalidInput
from ipnext.freezes.calendar import FreezeCalendar
from ipnext.freezes.evaluation import next_windows
from ipnext.model.manifest.parser import parse_manifest

AT = datetime(2026, 3, 27, 12, tzinfo=UTC)

ICS = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//example//EN
BEGIN:VEVENT
UID:nights
DTSTART;TZID=Europe/Berlin:20260320T180000
DTEND;TZID=Europe/Berlin:20260320T230000
RRULE:FREQ=WEEKLY;BYDAY=FR,SA;UNTIL=20301231T000000Z
EXDATE;TZID=Europe/Berlin:20260328T180000
RDATE;TZID=Europe/Berlin:20260402T180000
END:VEVENT
BEGIN:VEVENT
UID:nights
RECURRENCE-ID;TZID=Europe/Berlin:20260403T180000
DTSTART;TZID=Europe/Berlin:20260403T200000
DURATION:PT1H
END:VEVENT
BEGIN:VEVENT
UID:a-day
DTSTART;VALUE=DATE:20260701
RRULE:FREQ=YEARLY;COUNT=3
END:VEVENT
END:VCALENDAR
"""


def spoilt(rng: random.Random) -> str:
    """Lines lost, doubled or swapped, and letters changed."""
    lines = ICS.splitlines()
    for _ in range(rng.randint(1, 3)):
        place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.choice(("lose", "double", "swap", "letter", "letter", "letter"))
        if kind == "lose" and len(lines) > 1:
            del lines[place]
        elif kind == "double":
            lines.insert(other, lines[place])
        elif kind == "swap":
            lines[place], lines[other] = lines[other], lines[place]
        elif lines[place]:
            at = rng.randrange(len(lines[place]))
            lines[place] = lines[place][:at] + rng.choice(string.printable) + lines[place][at + 1 :]
    return "\n".join(lines)


@pytest.mark.parametrize("number", range(8))
def test_a_spoilt_calendar_is_taken_or_refused_and_breaks_nothing(number):
    rng = random.Random(number)
    for _ in range(40):
        text = spoilt(rng)
        spec = {"reason": "because", "ics": text}
        document = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "f"}, "spec": spec}
        try:
            calendar = FreezeCalendar(parse_manifest(document))
            calendar.check(AT)
        except InvalidInput as refused:
            assert refused.field, text  # noqa: PT017 - both ends are fine, a nameless one is not
            continue
        assert all(window.start < window.end for window in next_windows(calendar, AT, count=3))
        assert all(
            w.end > AT and w.start < AT + timedelta(days=9) for w in calendar.windows(AT, AT + timedelta(days=9))
        )
