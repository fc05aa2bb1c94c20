"""A rule that began long ago gives the same windows as a walk over all of its starts."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from ipnext.freezes.calendar import FreezeCalendar
from ipnext.model.manifest.freeze import FreezeManifest

ZONE = ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)
RULES = (
    "FREQ=DAILY",
    "FREQ=DAILY;BYDAY=MO,TH",
    "FREQ=DAILY;BYHOUR=1,5,22",
    "FREQ=WEEKLY",
    "FREQ=WEEKLY;BYDAY=FR,SU",
    "FREQ=WEEKLY;BYDAY=SU,MO;WKST=SU",
    "FREQ=MONTHLY",
    "FREQ=MONTHLY;BYDAY=-1FR",
    "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-2",
    "FREQ=MONTHLY;BYMONTHDAY=-1,15",
    "FREQ=YEARLY",
    "FREQ=YEARLY;BYMONTH=2,11",
    "FREQ=YEARLY;BYMONTH=11;BYDAY=4FR",
    "FREQ=YEARLY;BYYEARDAY=1,100,366",
    "FREQ=YEARLY;BYWEEKNO=1,53",
)


def freeze(start: datetime, rule: str) -> FreezeCalendar:
    window = {"start": start, "duration": HOUR, "rrule": rule, "timeZone": "Europe/Berlin"}
    spec = {"reason": "because", "windows": [window]}
    document = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "f"}, "spec": spec}
    return FreezeCalendar(FreezeManifest.model_validate(document))


def walked(start: datetime, rule: str, first: datetime, last: datetime) -> list[datetime]:
    """Every start from the first one on, on the wall clock."""
    found = []
    for each in rrulestr(rule, dtstart=start):
        begins = each.replace(tzinfo=ZONE).astimezone(UTC)
        if begins >= last:
            return found
        ends = (each + HOUR).replace(tzinfo=ZONE).astimezone(UTC)
        if begins < ends and ends > first:
            found.append(begins)
    return found


@pytest.mark.parametrize("rule", RULES)
@seed(20260102)
@settings(max_examples=8, deadline=None, phases=(Phase.generate,))
@given(
    start=st.datetimes(datetime.fromisoformat("1991-01-01"), datetime.fromisoformat("2024-12-31")),
    asked=st.datetimes(datetime.fromisoformat("2025-01-01"), datetime.fromisoformat("2031-12-31")),
    interval=st.integers(1, 5),
)
def test_windows_of_a_rule_that_began_long_ago_are_those_of_a_walk_from_its_beginning(rule, start, asked, interval):
    start, rule = start.replace(second=0, microsecond=0), f"{rule};INTERVAL={interval}"
    first = asked.replace(microsecond=0, tzinfo=UTC)
    last = first + timedelta(days=400)
    found = [window.start for window in freeze(start, rule).windows(first, last)]
    assert found == walked(start, rule, first, last)
