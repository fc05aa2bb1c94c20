"""Windows against an oracle that walks every minute and knows no calendar library, around changes of the clocks."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from ipnext.freezes.calendar import FreezeCalendar
from ipnext.freezes.evaluation import ChangeScope, frozen, next_window
from ipnext.model.manifest.freeze import FreezeManifest

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
CHANGES_OF_THE_CLOCK = {
    "Europe/Berlin": ("2026-03-29", "2026-10-25"),
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "Australia/Lord_Howe": ("2026-04-05", "2026-10-04"),  # half an hour
    "Africa/Cairo": ("2026-04-24", "2026-10-30"),  # at midnight
    "UTC": ("2026-03-29",),
}
WALKED_DAYS = 12


@dataclass(frozen=True)
class Drawn:
    """One window as it is written, and what the oracle knows of it."""

    zone: str
    start: datetime
    minutes: int
    every: int
    weekdays: frozenset[str]
    count: int | None
    without: frozenset[int]
    """Occurrences, by their number, that are taken out."""

    def rule(self) -> str | None:
        if not self.every:
            return None
        days = f"WEEKLY;BYDAY={','.join(sorted(self.weekdays, key=WEEKDAYS.index))}" if self.weekdays else "DAILY"
        return f"FREQ={days};INTERVAL={self.every}" + (f";COUNT={self.count}" if self.count else "")

    def starts(self) -> list[datetime]:
        """Starts on the wall clock of some weeks, each day looked at by itself."""
        if not self.every:
            return [self.start]
        found = []
        monday = self.start.date() - timedelta(days=self.start.weekday())
        for number in range(60):
            day = self.start + number * DAY
            if self.weekdays:
                matches = WEEKDAYS[day.weekday()] in self.weekdays and (day.date() - monday).days // 7 % self.every == 0
            else:
                matches = number % self.every == 0
            if matches and (self.count is None or len(found) < self.count):
                found.append(day)
        return found

    def windows(self) -> list[tuple[datetime, datetime]]:
        zone = ZoneInfo(self.zone)
        ends = [(s, s + self.minutes * MINUTE) for n, s in enumerate(self.starts()) if n not in self.without]
        return [(a.replace(tzinfo=zone).astimezone(UTC), b.replace(tzinfo=zone).astimezone(UTC)) for a, b in ends]

    def written(self) -> dict[str, object]:
        exdates = [start.isoformat() for n, start in enumerate(self.starts()) if n in self.without]
        length = f"PT{self.minutes}M"
        return {
            "start": self.start.isoformat(),
            "duration": length,
            "rrule": self.rule(),
            "exdates": exdates,
            "timeZone": self.zone,
        }


@st.composite
def drawn_windows(draw: st.DrawFn) -> Drawn:
    zone = draw(st.sampled_from(sorted(CHANGES_OF_THE_CLOCK)))
    change = datetime.fromisoformat(draw(st.sampled_from(CHANGES_OF_THE_CLOCK[zone])))
    start = change + draw(st.integers(-6, 1)) * DAY + draw(st.integers(0, 95)) * 15 * MINUTE
    minutes = draw(st.integers(1, 8).map(lambda n: 15 * n) | st.sampled_from((60 * 24, 60 * 30, 60 * 60)))
    every = draw(st.sampled_from((0, 1, 1, 2)))
    weekdays = draw(st.just(frozenset()) | st.frozensets(st.sampled_from(WEEKDAYS), max_size=3))
    count = draw(st.none() | st.integers(1, 4))
    without = draw(st.frozensets(st.integers(0, 5), max_size=2)) if every else frozenset()
    return Drawn(zone, start, minutes, every, weekdays, count, without)


def freezes_of(drawn: list[list[Drawn]]) -> list[FreezeCalendar]:
    return [
        FreezeCalendar(
            FreezeManifest.model_validate(
                {
                    "apiVersion": "ipnext/v1",
                    "kind": "Freeze",
                    "metadata": {"name": f"freeze-{number}"},
                    "spec": {"reason": "because", "windows": [window.written() for window in windows]},
                }
            )
        )
        for number, windows in enumerate(drawn)
    ]


def minutes_of(windows: list[tuple[datetime, datetime]], first: datetime, last: datetime) -> set[datetime]:
    """Every frozen minute, one by one."""
    found = set()
    minute = first
    while minute < last:
        if any(start <= minute < end for start, end in windows):
            found.add(minute)
        minute += MINUTE
    return found


@seed(20261220)
@settings(max_examples=60, deadline=None, phases=(Phase.generate,))  # to make a failure small takes minutes
@given(
    drawn=st.lists(st.lists(drawn_windows(), min_size=1, max_size=2), min_size=1, max_size=3),
    offsets=st.lists(st.integers(0, 60 * 24 * 5), min_size=1, max_size=4),
)
def test_frozen_and_until_when_are_what_a_walk_over_every_minute_finds(drawn, offsets):
    windows = [window for each in drawn for one in each for window in one.windows()]
    first = min((start for start, _ in windows), default=datetime(2026, 3, 1, tzinfo=UTC)) - timedelta(hours=3)
    last = first + WALKED_DAYS * DAY
    walked = minutes_of(windows, first, last)
    freezes = freezes_of(drawn)
    asked = ChangeScope("m", "o", (), "publish")
    for at in (first + offset * MINUTE for offset in offsets):
        found = frozen(freezes, asked, at)
        assert (found is not None) == (at in walked), at
        if found is not None:
            until = at
            while until in walked:
                until += MINUTE
            assert found.until == until or until >= last, at
        later = [(start, end) for start, end in windows if start > at and end > start]
        following = next_window(freezes, asked, at)
        assert (following and following.start) == min((start for start, _ in later), default=None), at
