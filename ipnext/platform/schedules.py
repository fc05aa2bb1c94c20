"""The platform's Temporal schedules: their workflows, the missing ones, and their creation.

`schedules_of` is the whole list: the setup creates it, the checks compare it, workers maintain it. An existing schedule
belongs to the operator: only `reset_schedules` changes it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from temporalio.client import (
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecution,
)
from temporalio.service import RPCError, RPCStatusCode

from ipnext import names
from ipnext.errors import EngineRefused, NotFound, Unavailable
from ipnext.model.access.artifact_use import CollectInput
from ipnext.model.lifecycle.regions.reconciliation import ReconcileInput
from ipnext.model.lifecycle.replans.replan import ScheduledReplan
from ipnext.settings import PlatformSettings
from ipnext.temporal import Connection, reaching

RECONCILER_LOOK = timedelta(minutes=1)
"""Time until a terminated reconciler is started again."""

KEPT_EVERY_SECONDS = 30.0
"""Interval of a worker's checks for deleted schedules."""

HOUR = timedelta(hours=1)

COLLECTION_JITTER = timedelta(minutes=10)


@dataclass(frozen=True)
class PlatformSchedule:
    """A schedule by the settings."""

    name: str
    schedule: Schedule
    keeps: str = ""
    """Type of the workflow that it keeps running, one at a time: started at the schedule's creation, and again if it
    ends."""

    @property
    def every(self) -> timedelta:
        """Its interval."""
        return self.schedule.spec.intervals[0].every


@dataclass(frozen=True)
class FoundSchedule:
    """A schedule in Temporal."""

    intervals: tuple[timedelta, ...]
    """Empty if it is by calendar."""
    paused: bool


def schedules_of(settings: PlatformSettings) -> tuple[PlatformSchedule, ...]:
    """Return all schedules of a platform."""
    replan = Schedule(
        action=ScheduleActionStartWorkflow(
            names.SCHEDULED_REPLAN_WORKFLOW,
            ScheduledReplan(),
            id=f"{names.REPLAN_ID}/schedule",
            task_queue=names.LIFECYCLE_QUEUE,
            task_timeout=settings.timing.workflow_task,
            static_summary="asks for a replan (schedule)",
        ),
        spec=ScheduleSpec(
            intervals=[ScheduleIntervalSpec(every=settings.replan_every_hours * HOUR)],
            jitter=timedelta(minutes=settings.replan_jitter_minutes),
        ),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP),
    )
    reconcile = Schedule(
        action=ScheduleActionStartWorkflow(
            names.RECONCILE_WORKFLOW,
            ReconcileInput(every_seconds=settings.reconcile_every_seconds),
            id=names.RECONCILE_WORKFLOW,
            task_queue=names.LIFECYCLE_QUEUE,
            task_timeout=settings.timing.workflow_task,
            static_summary="compares every region with the store, repairs models that drifted",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=RECONCILER_LOOK)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=RECONCILER_LOOK),
    )
    collect = Schedule(
        action=ScheduleActionStartWorkflow(
            names.COLLECT_WORKFLOW,
            CollectInput(),
            id=names.COLLECT_WORKFLOW,
            task_queue=names.LIFECYCLE_QUEUE,
            task_timeout=settings.timing.workflow_task,
            static_summary="collects what nothing names in the artifact store",
        ),
        spec=ScheduleSpec(
            intervals=[ScheduleIntervalSpec(every=settings.artifact_collection_hours * HOUR)],
            jitter=COLLECTION_JITTER,
        ),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP),
    )
    return (
        PlatformSchedule(names.REPLAN_SCHEDULE, replan),
        PlatformSchedule(names.RECONCILE_SCHEDULE, reconcile, keeps=names.RECONCILE_WORKFLOW),
        PlatformSchedule(names.COLLECT_SCHEDULE, collect),
    )


async def create_missing(client: Connection, wanted: Sequence[PlatformSchedule]) -> tuple[PlatformSchedule, ...]:
    """Create the missing schedules; return them. An operator's changes stay. Raises EngineRefused or Unavailable."""
    return tuple(
        [each for each in wanted if await find_schedule(client, each.name) is None and await _make(client, each)]
    )


async def _make(client: Connection, wanted: PlatformSchedule) -> bool:
    """Create a schedule; False if another process was first.

    Temporal does not link the runs of a deleted schedule to the new one, so a run that the former schedule kept is
    terminated.
    """
    async with reaching(f"the schedule {wanted.name}"):
        query = f"WorkflowType = '{wanted.keeps}' AND ExecutionStatus = 'Running'"
        left = [run async for run in client.list_workflows(query)] if wanted.keeps else []
        try:
            await client.create_schedule(wanted.name, wanted.schedule, trigger_immediately=bool(wanted.keeps))
        except ScheduleAlreadyRunningError:
            return False
        for run in left:
            await _end(
                client, run, f"its schedule {wanted.name} was deleted; the one made after it has started another run"
            )
    return True


async def reset_schedules(client: Connection, wanted: Sequence[PlatformSchedule]) -> None:
    """Reset schedules to the settings, except an operator's pause. Raises NotFound, EngineRefused or Unavailable."""
    for each in wanted:
        async with reaching(f"the schedule {each.name}"):
            try:
                await client.get_schedule_handle(each.name).update(lambda found, to=each: _reset(found, to))  # type: ignore[misc]
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    raise
                msg = f"schedule {each.name!r} does not exist; `ipnext platform setup` creates it"
                raise NotFound(msg) from error


async def find_schedule(client: Connection, name: str) -> FoundSchedule | None:
    """Return a schedule's present state; None if it does not exist. Raises EngineRefused or Unavailable."""
    async with reaching(f"the schedule {name}"):
        try:
            found = (await client.get_schedule_handle(name).describe()).schedule
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise
    return FoundSchedule(tuple(each.every for each in found.spec.intervals), found.state.paused)


@contextlib.asynccontextmanager
async def keeping_schedules(
    client: Callable[[], Connection], wanted: Sequence[PlatformSchedule], *, every_seconds: float = KEPT_EVERY_SECONDS
) -> AsyncIterator[None]:
    """Create schedules again that are deleted while the context is open.

    If Temporal does not answer, the next check does so. `client` returns the client in use: certificates and keys
    change.
    """
    task = asyncio.create_task(_keep(client, wanted, every_seconds), name="schedules")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep(client: Callable[[], Connection], wanted: Sequence[PlatformSchedule], every_seconds: float) -> None:
    log = structlog.get_logger()
    while True:
        await asyncio.sleep(every_seconds)
        try:
            for made in await create_missing(client(), wanted):
                log.warning(
                    "schedule_created_again", schedule=made.name, hint="pause a schedule in place of deleting it"
                )
        except (EngineRefused, Unavailable) as error:
            log.warning("schedules_not_checked", code=error.code, error=error.message)


async def _end(client: Connection, run: WorkflowExecution, why: str) -> None:
    try:
        await client.get_workflow_handle(run.id, run_id=run.run_id).terminate(why)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:  # it has ended by itself
            raise


def describe_interval(every: timedelta) -> str:
    """Return a text such as `every 6 h` or `every 60 s`."""
    hours = every / HOUR
    return f"every {hours:g} h" if hours >= 0.1 else f"every {every.total_seconds():g} s"


def _reset(found: ScheduleUpdateInput, to: PlatformSchedule) -> ScheduleUpdate:
    state = found.description.schedule.state
    return ScheduleUpdate(
        Schedule(action=to.schedule.action, spec=to.schedule.spec, policy=to.schedule.policy, state=state)
    )
