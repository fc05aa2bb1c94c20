"""`kind: Freeze`: times in which changes of some models wait; and the API's answers about them.

Only the shape is checked here, so that a client needs no calendar library. `ipnext.freezes` interprets the rules; the
API checks with it that a freeze has a meaning.
"""

from datetime import date, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from ipnext.model.metadata import Metadata
from ipnext.model.value import Name, Value, WrittenValue

MOST_WINDOWS = 200
"""Windows, exdates or rdates of one freeze."""

MOST_CALENDAR_TEXT = 200_000
"""Characters of a VCALENDAR."""

RESERVED_NAME = "now"
"""The API answers about the present under this name."""

YEARS = (1900, 2200)
"""Range of starts and ends; the last year is excluded."""

FreezableKind = Literal["publish", "apply", "move", "retire"]
"""Kinds of changes that may wait. A rollback never waits."""

Pattern = Annotated[str, StringConstraints(pattern=r"^[-a-z0-9*?\[\]!]{1,63}$")]
"""A name, or a shell pattern: `*` any text, `?` any character, `[ab]` one of them, `[!ab]` none of them."""

ReasonText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
"""The reason, in words for other people: 1 to 500 characters."""


def _written_time(value: object) -> object:
    if isinstance(value, datetime | date | str):
        return value
    msg = f"a local time such as 2026-12-20T00:00, not {value!r}"
    raise ValueError(msg)


def _local_time(value: datetime) -> datetime:
    first, last = YEARS
    if value.tzinfo is not None:
        msg = f"{value.isoformat()} has an offset; write the local time, such as 2026-12-20T00:00, and its timeZone"
        raise ValueError(msg)
    if value.microsecond or not first <= value.year < last:
        msg = f"{value.isoformat()} is not a whole second of the years {first} to {last - 1}"
        raise ValueError(msg)
    return value


LocalTime = Annotated[
    datetime,
    BeforeValidator(_written_time),
    AfterValidator(_local_time),
    WithJsonSchema({"type": "string", "examples": ["2026-12-20T00:00:00"]}),
]
"""Local wall clock time in the window's time zone; a date alone is its midnight."""


def _written_duration(value: object) -> object:
    if isinstance(value, timedelta | str):
        return value
    msg = f"a duration such as P1D or PT6H, not {value!r}"
    raise ValueError(msg)


class FreezeWindow(WrittenValue):
    """One window, or with `rrule` many of the same length on the wall clock. The end is no longer frozen."""

    start: LocalTime
    end: LocalTime | None = None
    duration: Annotated[timedelta, BeforeValidator(_written_duration)] | None = None
    """Instead of `end`, as in ISO 8601: P1D, PT6H. On the wall clock: a day is a day also when clocks are changed."""
    rrule: str | None = Field(default=None, min_length=1, max_length=500)
    """RFC 5545, such as FREQ=WEEKLY;BYDAY=FR. `start` is the first time that may match."""
    exdates: tuple[LocalTime, ...] = Field(default=(), max_length=MOST_WINDOWS)
    """Starts that the rule gives and that are none."""
    rdates: tuple[LocalTime, ...] = Field(default=(), max_length=MOST_WINDOWS)
    """Further starts."""
    time_zone: str | None = Field(default=None, min_length=1, max_length=64)
    """An IANA name such as Europe/Berlin; else that of the freeze."""

    @property
    def length(self) -> timedelta:
        """Time from start to end on the wall clock."""
        return self.duration if self.end is None else self.end - self.start  # type: ignore[return-value]  # one of both is given

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        if (self.end is None) == (self.duration is None):
            msg = "give either end or duration"
            raise ValueError(msg)
        if self.length <= timedelta(0):
            what = f"duration: {self.duration}" if self.end is None else f"end: {self.end.isoformat()}"
            msg = f"{what} must come after start ({self.start.isoformat()})"
            raise ValueError(msg)
        return self


class FreezeScope(WrittenValue):
    """Which models a freeze is for: those that match each list that is not empty; with none, all."""

    models: tuple[Pattern, ...] = ()
    owners: tuple[Pattern, ...] = ()
    regions: tuple[Pattern, ...] = ()
    """A model that has demand, is placed or runs in one of them. Its whole change waits: regions move in lock-step."""


class FreezeSpec(WrittenValue):
    """When, for whom and why."""

    reason: ReasonText
    windows: tuple[FreezeWindow, ...] = Field(default=(), max_length=MOST_WINDOWS)
    ics: str | None = Field(default=None, min_length=1, max_length=MOST_CALENDAR_TEXT)
    """A whole VCALENDAR, whose events are windows."""
    time_zone: str = Field(default="UTC", min_length=1, max_length=64)
    """Of windows that name none, and of events without a zone."""
    scope: FreezeScope = FreezeScope()
    kinds: tuple[FreezableKind, ...] = Field(default=("publish", "apply", "move"), min_length=1)
    """Changes that wait."""

    @model_validator(mode="after")
    def _has_windows(self) -> Self:
        if not self.windows and self.ics is None:
            msg = "windows: give at least one, or a VCALENDAR as ics"
            raise ValueError(msg)
        return self


class FreezeManifest(WrittenValue):
    """`kind: Freeze`: one calendar of windows."""

    api_version: Literal["ipnext/v1"]
    kind: Literal["Freeze"]
    metadata: Metadata
    spec: FreezeSpec

    @model_validator(mode="after")
    def _name_is_free(self) -> Self:
        if self.metadata.name == RESERVED_NAME:
            msg = f"metadata.name: {RESERVED_NAME!r} names what is frozen at present; choose another name"
            raise ValueError(msg)
        return self

    @property
    def name(self) -> str:
        """The freeze's name."""
        return self.metadata.name


class FreezePeriod(Value):
    """Frozen from `start` up to, but not with, `end`; UTC."""

    start: datetime
    end: datetime


class BindingFreeze(Value):
    """A freeze that makes a change wait, and until when this one alone would."""

    name: Name
    reason: str
    until: datetime


class Frozen(Value):
    """A change may not begin before `until`.

    The end of all windows that overlap or follow on each other without a gap.
    """

    until: datetime
    freezes: tuple[BindingFreeze, ...] = Field(min_length=1)
    """Those that bind, the one in force first."""

    @property
    def message(self) -> str:
        """The freeze in words."""
        reasons = "; ".join(f"{each.reason} (freeze {each.name})" for each in self.freezes)
        return f"frozen until {self.until:%Y-%m-%d %H:%M:%S} UTC: {reasons}"


class FreezeAnswer(Value):
    """Answer of `freeze_of`: None if the change may continue."""

    frozen: Frozen | None = None
    message: str = ""


class FreezeView(WrittenValue):
    """A freeze as applied, and when it is in force next."""

    manifest: FreezeManifest
    version: int
    created_at: datetime
    updated_at: datetime
    in_force: FreezePeriod | None = None
    """The window that is open now."""
    next: tuple[FreezePeriod, ...] = ()
    """Windows that open later, the next one first."""
    dry_run: bool = False


class FreezeNow(WrittenValue):
    """Whether a change of a model would wait now."""

    model: Name
    kind: FreezableKind
    at: datetime
    frozen: Frozen | None = None
    next_window: FreezePeriod | None = None
    """The next one that opens for it."""


class OverrideRequest(WrittenValue):
    """Body of an override: lets one change through all freezes, or past a check that refuses it."""

    reason: ReasonText
    check: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """Name of a check of the validation; None: freezes."""


class Override(Value):
    """A change that may pass every freeze, or a check of its validation."""

    change_id: str
    model: Name
    at: datetime
    who: str
    reason: str
    freezes: tuple[Name, ...] = ()
    """Freezes that bound it when the override was given."""
    check: str | None = None
    """The check whose refusals let it pass; None: it passes freezes."""
    again: str | None = None
    """The change that carries it out once more, if the check had refused it."""
