"""Time limits that depend on the machines: when a silent process counts as dead, and how long one step may take.

The defaults suit a cluster, where processes are throttled and the network is slow at times. `temporal-dev.yaml` has
those of one machine. None of them affects a workflow's decisions: a worker with other limits may replay a run.
"""

from datetime import timedelta

from pydantic import Field

from ipnext.model.value import Value

BUSY = 3.0
"""Factor of the heartbeat limit for a step that occupies the processor."""

BEATS = 4
"""Heartbeats within one limit: some may be late."""


class Timing(Value):
    """The limits of one deployment, in seconds. They are settings of API and workers (`ipnext.settings`)."""

    heartbeat_seconds: float = Field(default=10.0, ge=1, le=600)
    """Heartbeat timeout: an activity whose worker has sent nothing for this long is given to another worker."""
    record_seconds: float = Field(default=60.0, ge=1, le=120)
    """Longest unit of work in the store, with the wait for its turn."""
    workflow_task_seconds: float = Field(default=10.0, ge=1, le=120)
    """A worker that takes longer for one decision of a workflow counts as dead. A run keeps the limit that it was
    started with."""
    sticky_seconds: float = Field(default=10.0, gt=0, le=600)
    """Time for which a decision waits for the worker that has the run in its cache, before any other worker may take
    it."""
    worker_shutdown_seconds: float = Field(default=20.0, ge=0, le=3600)
    """Time for which activities may continue after SIGTERM; then they are cancelled, and another worker retries
    them."""

    agent_answer_seconds: float = Field(default=10.0, gt=0, le=600)
    """An agent that waits for nothing itself and does not answer for this long is unreachable."""

    @property
    def timing(self) -> "Timing":
        """These limits alone, without the fields of a subclass."""
        return Timing(**{name: getattr(self, name) for name in Timing.model_fields})

    @property
    def heartbeat(self) -> timedelta:
        """Heartbeat timeout of an activity."""
        return timedelta(seconds=self.heartbeat_seconds)

    @property
    def busy_heartbeat(self) -> timedelta:
        """The same for an activity that occupies the processor, so that its heartbeats are late."""
        return BUSY * self.heartbeat

    @property
    def beat_seconds(self) -> float:
        """Interval of heartbeats."""
        return self.heartbeat_seconds / BEATS

    @property
    def record(self) -> timedelta:
        """Longest unit of work in the store."""
        return timedelta(seconds=self.record_seconds)

    @property
    def workflow_task(self) -> timedelta:
        """Longest decision of a workflow."""
        return timedelta(seconds=self.workflow_task_seconds)
