"""Port of stages: an object of `Stage` for each, by an entry point of the group `ipnext.stages`.

A stage is an activity or a workflow of Temporal that takes a `StageRequest` and returns a `StageAnswer`:

    @activity.defn(name="stage.fairness-audit")
    def audit(request: StageRequest) -> StageAnswer: ...

    stage = Stage(name="fairness-audit", activity=audit)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from temporalio import activity, workflow

from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.stores.locations import open_store
from ipnext.model.lifecycle.stages import StageAnswer, StageRequest, StageSnapshot, activity_name
from ipnext.settings import platform_settings

__all__ = ["Stage", "StageAnswer", "StageRequest", "StageSnapshot", "activity_name", "open_artifacts"]

LONGEST: Final = timedelta(days=30)
"""Of a stage, with all its attempts."""
MOST_ATTEMPTS: Final = 1000


def accept_settings(settings: Mapping[str, Any]) -> None:
    """Accept any settings."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of another distribution: exactly one of `activity` and `workflow`.

    Each is a function or class that the workers of lifecycles register; or, for a worker of your own on `queue`, in any
    language, the name alone. The name in Temporal is `stage.NAME`.
    """

    name: str
    """As manifests name it: lower case letters, digits and dashes."""
    activity: Callable[..., Any] | str | None = None
    workflow: type | str | None = None
    queue: str | None = None
    """The task queue of a worker of your own; None: the lifecycle workers, which register it."""
    schedule_to_close: timedelta = timedelta(hours=1)
    """All attempts together, with the time that they wait for a worker."""
    start_to_close: timedelta | None = None
    """One attempt of an activity; None: `schedule_to_close`."""
    heartbeat: timedelta | None = None
    """Longest time without a heartbeat of an activity. Lifecycle workers send heartbeats by themselves, and have a
    limit by default; other queues have none."""
    attempts: int = 5
    """Of an activity that raises an error, or whose worker lacks it."""
    check: Callable[[Mapping[str, Any]], None] = accept_settings
    """Checks the settings of a manifest, when it is applied. Raises InvalidInput, or ValueError."""

    def find_fault(self) -> str:
        """Return why it can't be used as a stage; empty if it can."""
        return next(self._faults(), "")

    def _faults(self) -> Iterator[str]:
        if (self.activity is None) == (self.workflow is None):
            yield "a stage has exactly one of activity and workflow"
        if self.queue is None and isinstance(self.target, str):
            yield "without a queue of its own the function, or the class, has to be given, not its name"
        if (found := self._name_in_temporal()) != activity_name(self.name):
            yield f"its {self.runs} has the name {found!r}; needed: {activity_name(self.name)!r}"
        if not timedelta() < self.schedule_to_close <= LONGEST:
            yield f"schedule_to_close is {self.schedule_to_close}; allowed: up to {LONGEST.days} days"
        shorter = [limit for limit in (self.start_to_close, self.heartbeat) if limit is not None]
        if any(not timedelta() < limit <= self.schedule_to_close for limit in shorter):
            yield "start_to_close and heartbeat are above 0 and at most schedule_to_close"
        if not 1 <= self.attempts <= MOST_ATTEMPTS:
            yield f"attempts: {self.attempts}; allowed: 1 to {MOST_ATTEMPTS}"
        if not callable(getattr(self, "check", None)):
            yield "check is called with the settings"

    @property
    def runs(self) -> Literal["activity", "workflow"]:
        """Which of both it is."""
        return "activity" if self.activity is not None else "workflow"

    @property
    def target(self) -> Any:
        """The function, the class, or its name."""
        return self.activity if self.activity is not None else self.workflow

    def _name_in_temporal(self) -> str | None:
        if isinstance(self.target, str):
            return self.target
        found = (
            activity._Definition.from_callable(self.target)  # noqa: SLF001 - the SDK offers no other way
            if self.activity is not None
            else workflow._Definition.from_class(self.target)  # noqa: SLF001
        )
        return None if found is None else found.name


def open_artifacts() -> ArtifactStore:
    """Open the artifact store of this process's settings (`IPNEXT_ARTIFACTS_URI`): that of a lifecycle worker.

    `open_artifacts().fetch(request.snapshots[PART].uri, DIRECTORY)` writes a snapshot's files.
    """
    settings = platform_settings()
    return open_store(
        settings.artifacts_uri, endpoint_url=settings.s3_endpoint_url, reserve_bytes=settings.disk_reserve_bytes
    )
