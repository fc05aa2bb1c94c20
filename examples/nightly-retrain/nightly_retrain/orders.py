"""Inputs and answers of the workflow and its steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """What one night does."""

    model: str
    part: str
    data: str
    """Directory with a directory of data for each day, complete once it has a file `DONE`."""
    snapshots: str
    """Directory for the trained snapshots."""
    canary_requests: int = 100
    """Answers of the canary that are needed before it is promoted."""
    canary_seconds: float = 3600
    """Longest wait for them."""


@dataclass(frozen=True)
class Night:
    """One day's data on its way to serving. All that it makes is named by the day, so a repeated step makes it once."""

    order: Order
    day: str

    @property
    def change_id(self) -> str:
        """Id of the change that publishes it."""
        return f"nightly-{self.order.model}-{self.day}"

    @property
    def directory(self) -> str:
        """Where its snapshot is."""
        return f"{self.order.snapshots}/{self.day}"


@dataclass(frozen=True)
class Verdict:
    """Whether a canary is promoted, and why."""

    promote: bool
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The end of a night."""

    day: str | None
    """None: there was no new data."""
    state: str
    message: str = ""
