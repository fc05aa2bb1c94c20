"""The place of a failure.

Written down as a change fails, read by `ipnext explain` long after the failed run is gone.
"""

from collections.abc import Mapping
from typing import Any

from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.value import Value
from ipnext.model.wire import decode_plain

STEPS: Mapping[ConditionType, str] = {
    ConditionType.RESOLVED: "resolve snapshots",
    ConditionType.VALIDATED: "validate",
    ConditionType.PLANNED: "plan",
    ConditionType.CAPACITY_READY: "bring up capacity",
    ConditionType.ROUTES_READY: "shift traffic",
}
"""The steps of a run in order, by the condition that each one sets."""

GATE = "check the answers"
"""The step of a wave that sets no condition."""


class Place(Value):
    """The place of a failure, as far as it is known: a host of a part in a region, or less."""

    step: str = ""
    part: str | None = None
    region: str | None = None
    hardware: str | None = None
    host: str | None = None
    log: str | None = None
    """The file with the host's output."""


class Cause(Value):
    """The first cause of a change's failure, with its place."""

    change: str
    reason: Reason
    message: str
    place: Place = Place()

    @property
    def detail(self) -> Mapping[str, Any]:
        """The cause as part of an event's detail."""
        return {"cause": self.model_dump(mode="json", exclude_defaults=True)}


def cause_in(detail: Mapping[str, Any] | None) -> Cause | None:
    """Return the cause in an event's detail; None if it has none."""
    return decode_plain(Cause, detail["cause"]) if detail and "cause" in detail else None
