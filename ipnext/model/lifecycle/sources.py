"""Messages of the workflows that poll upstream systems and publish what they find."""

from collections.abc import Mapping

from pydantic import Field

from ipnext.model.value import Name, Value


class WatchInput(Value):
    """Input of workflow `watch` and of activity `poll_sources`: one upstream system."""

    kind: str
    upstream: str


class WatchedState(Value):
    """State of one source after a poll."""

    model: Name
    source: Name
    text: str
    """In words: `paused by ...`, an error, or the number of new versions."""


class PollResult(Value):
    """Answer of activity `poll_sources`."""

    models: tuple[Name, ...] = ()
    """Models with versions to publish."""
    next_seconds: float = Field(default=60.0, gt=0)
    """Until the next poll."""
    over: bool = False
    """No source of the system is left."""
    states: tuple[WatchedState, ...] = ()
    """The first sources, for the Web UI."""
    count: int = 0
    """All sources."""


class PickUpInput(Value):
    """Input of workflow `pick_up` and of its activity: one model."""

    model: Name


class PickUpResult(Value):
    """Answer of activity `pick_up_versions`."""

    pending: int = 0
    """Versions that are still to be published."""
    next_seconds: float = Field(default=5.0, gt=0)
    """Until the next attempt, if versions are pending."""
    published: Mapping[Name, str] = Field(default_factory=dict)
    """Source -> key of the version that was published now."""
    change_id: str | None = None
    message: str = ""
