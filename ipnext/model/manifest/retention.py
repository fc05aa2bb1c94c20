"""`spec.retention` of a model: how long the bytes of its snapshots are kept, in place of the platform's settings."""

from datetime import timedelta
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from ipnext.model.manifest.durations import parse_duration
from ipnext.model.value import WrittenValue

SHORTEST: Final = timedelta(hours=1)
LONGEST: Final = timedelta(days=3650)
MOST_KEPT: Final = 100_000
MOST_ROLLBACKS: Final = 1000


def _age(text: str) -> str:
    if not SHORTEST <= parse_duration(text) <= LONGEST:
        msg = f"{text!r} is out of range; allowed: 1h to {LONGEST.days}d"
        raise ValueError(msg)
    return text


class KeptSnapshots(WrittenValue):
    """Snapshots of a part that are kept: the newest `count`, and those younger than `age`."""

    count: int | None = Field(default=None, ge=1, le=MOST_KEPT)
    age: Annotated[str, AfterValidator(_age)] | None = None
    """A whole number and s, m, h or d, such as `30d`."""


class RetentionSpec(WrittenValue):
    """Retention of a model's snapshots."""

    snapshots: KeptSnapshots = KeptSnapshots()
    rollbacks: int | None = Field(default=None, ge=1, le=MOST_ROLLBACKS)
    """The newest generations that have served, whose snapshots are kept for a rollback however old they are."""
