"""How old the snapshots of a part may be that answer users."""

from datetime import timedelta
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from ipnext.model.manifest.durations import parse_duration
from ipnext.model.value import WrittenValue

SHORTEST_TARGET: Final = timedelta(seconds=1)
LONGEST_TARGET: Final = timedelta(days=366)


def _target(text: str) -> str:
    if not SHORTEST_TARGET <= parse_duration(text) <= LONGEST_TARGET:
        msg = f"{text!r} is out of range; allowed: 1s to 366d"
        raise ValueError(msg)
    return text


class FreshnessSpec(WrittenValue):
    """The age that a part's serving snapshots keep to, and the share of the time in which they do."""

    target: Annotated[str, AfterValidator(_target)]
    """Largest age, counted from the end of training, in each region of users."""
    objective: float = Field(default=0.99, gt=0.0, le=1.0)
    """Smallest share of the last 24 hours in which the age is within the target."""

    @property
    def target_seconds(self) -> float:
        """The target in seconds."""
        return parse_duration(self.target).total_seconds()
