"""Workers that poll the platform's task queues, by Temporal's own list."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from temporalio.api.enums.v1 import TaskQueueType, WorkerVersioningMode
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

from ipnext import names
from ipnext.temporal import Connection, reaching

POLLED_WITHIN = timedelta(minutes=2)
"""An idle worker polls at least once a minute."""

Work = Literal["workflows", "activities"]

_TYPES: Mapping[Work, TaskQueueType.ValueType] = {
    "workflows": TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    "activities": TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
}


@dataclass(frozen=True)
class PolledQueue:
    """One kind of work of one task queue."""

    queue: str
    work: Work

    def __str__(self) -> str:
        return f"task queue {self.queue}, {self.work}"


@dataclass(frozen=True)
class Poller:
    """A worker that polls. Temporal routes a task to the workers of one build."""

    identity: str
    build_id: str | None
    """None: the worker has no build id."""


POLLED = (
    PolledQueue(names.LIFECYCLE_QUEUE, "workflows"),
    PolledQueue(names.LIFECYCLE_QUEUE, "activities"),
    PolledQueue(names.URGENT_QUEUE, "activities"),
    PolledQueue(names.PLANNER_QUEUE, "activities"),
)
"""All task queues that the workers of a platform poll."""


async def pollers(client: Connection, polled: PolledQueue, *, within: timedelta = POLLED_WITHIN) -> frozenset[Poller]:
    """Return the workers that polled for this work recently, also those that have ended since.

    Raises EngineRefused, Unavailable.
    """
    asked = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=polled.queue),
        task_queue_type=_TYPES[polled.work],
    )
    async with reaching(f"the task queue {polled.queue}"):
        found = await client.workflow_service.describe_task_queue(asked)
    since = datetime.now(UTC) - within
    return frozenset(
        Poller(p.identity, _build_of(p)) for p in found.pollers if p.last_access_time.ToDatetime(UTC) > since
    )


def _build_of(found: PollerInfo) -> str | None:
    options = found.deployment_options
    versioned = options.worker_versioning_mode == WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED
    return options.build_id if versioned else None
