"""Composition root of the worker process: `python -m workflows.worker`.

Reads settings and temporal-dev.yaml, opens store, artifacts and infrastructure, and serves both task queues until
SIGTERM or SIGINT; then it finishes what it can in a few seconds and ends. Killed at any point, another one goes on.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog
from temporalio.client import Client
from temporalio.common import WorkerDeploymentVersion
from temporalio.worker import Interceptor, PollerBehaviorAutoscaling, Worker, WorkerDeploymentConfig

from activities.alive import Alive
from activities.candidate import Validator, discovered
from activities.cutting import Cutter, cut_in_process
from activities.deployment import DeploymentActivities
from activities.draining import DrainCheckActivities
from activities.drains import DrainActivities
from activities.failures import TypedFailures
from activities.freezes import FreezeActivities
from activities.holding import HoldingActivities
from activities.metadata import MetadataActivities
from activities.mover import MoverActivities, Submit
from activities.optimization import OptimizationActivities
from activities.planning import PlanningActivities
from activities.planning_policy import PlanningPolicy
from activities.replans import ReplanActivities, Wake
from activities.solving import PLANNER, ProcessSolver, Solver, ThreadSolver
from activities.transition import TransitionActivities
from activities.validation import ValidationActivities
from ipnext import names
from ipnext.artifacts.opening import open_store
from ipnext.artifacts.port import ArtifactStore
from ipnext.devfile import DevFile, TaskQueueGroup, read_devfile
from ipnext.errors import IPnextError, Unavailable
from ipnext.infra.local_process import LocalProcessInfrastructure
from ipnext.infra.port import Infrastructure
from ipnext.model.lifecycle import Change
from ipnext.model.workflow_namespace import WorkflowNamespace
from ipnext.settings import PlatformSettings
from ipnext.store.session import Store
from ipnext.temporal import connect, ensure_schedule, make_current, namespace_of, submit_change, wake_replan
from workflows.drain import DrainWorkflow
from workflows.faults import Faults, fault_of
from workflows.lifecycle import LifecycleWorkflow
from workflows.model import ModelWorkflow
from workflows.neighbours import check_neighbours
from workflows.policies import BUILD_ID
from workflows.replan import ReplanWorkflow, ScheduledReplanWorkflow
from workflows.transition import TransitionWorkflow

WORKFLOWS: Sequence[type] = (
    ModelWorkflow,
    LifecycleWorkflow,
    TransitionWorkflow,
    ReplanWorkflow,
    ScheduledReplanWorkflow,
    DrainWorkflow,
)

STICKY_SECONDS = 1.0
"""After a worker was killed its next workflow task waits this long for it (10 s by default)."""

HEARTBEAT_EVERY_SECONDS = 0.5
"""Heartbeats are sent on at least this often, so that a cancellation is heard soon."""

SHUTDOWN_SECONDS = 8.0
"""What runs may go on for so long after SIGTERM; then it is cancelled and another worker takes it up."""

CONNECT_PAUSE_SECONDS = 1.0
"""Between two tries to reach Temporal at the start."""

Activities = Sequence[Callable[..., Any]]


@dataclass(frozen=True)
class Engine:
    """What activities ask of the workflow engine."""

    submit: Submit
    wake: Wake


def lifecycle_activities(  # noqa: PLR0913 - a composition root
    store: Store,
    artifacts: ArtifactStore,
    infrastructure: Infrastructure,
    engine: Engine,
    *,
    validators: Sequence[Validator] = (),
    pause: Callable[[float], None] = time.sleep,
    cutter: Cutter = cut_in_process,
) -> Activities:
    """The activities of the lifecycle queue. `pause` stands in for sleeping between two looks at what runs."""
    return (
        *MetadataActivities(store, artifacts).all(),
        *ValidationActivities(store, artifacts, validators=validators).all(),
        *OptimizationActivities(store, artifacts, cutter=cutter).all(),
        *FreezeActivities(store).all(),
        *TransitionActivities(store, infrastructure, pause=pause).all(),
        *DeploymentActivities(store, infrastructure).all(),
        *HoldingActivities(store).all(),
        *MoverActivities(store, engine.submit).all(),
        *ReplanActivities(store, engine.wake).all(),
        *DrainActivities(store, infrastructure, engine.wake).all(),
    )


def planner_activities(store: Store, solver: Solver, policy: PlanningPolicy | None = None) -> Activities:
    """The activities of the planner queue."""
    return (*PlanningActivities(store, solver, policy).all(), *DrainCheckActivities(store, solver, policy).all())


def solver_of(group: TaskQueueGroup, settings: PlatformSettings) -> Solver:
    """How a queue's group solves for the whole fleet."""
    if group.executor == "threads":
        return ThreadSolver()
    return ProcessSolver(grace_seconds=settings.solver_grace_seconds, memory_bytes=settings.solver_memory_bytes)


def versioned() -> WorkerDeploymentConfig | None:
    """How Temporal routes runs to this code: by its build where that has an id, else to whoever asks.

    With an id a transition ends on the build that it began on, and entities go over to the current build: decision 0012.
    """
    if BUILD_ID is None:
        return None
    version = WorkerDeploymentVersion(deployment_name=names.WORKER_DEPLOYMENT, build_id=BUILD_ID)
    return WorkerDeploymentConfig(version=version, use_worker_versioning=True)


def worker_of(
    client: Client, group: TaskQueueGroup, activities: Activities, *, interceptors: Sequence[Interceptor] = ()
) -> Worker:
    """A worker for one task queue. Workflows run where the group has slots for them."""
    more: dict[str, Any] = {}
    if group.workflow_slots:
        more = {"max_concurrent_workflow_tasks": group.workflow_slots, "workflows": WORKFLOWS}
        more["workflow_task_poller_behavior"] = PollerBehaviorAutoscaling()
    return Worker(
        client,
        task_queue=group.queue,
        activities=activities,
        activity_executor=ThreadPoolExecutor(group.activity_slots, thread_name_prefix=group.queue),
        max_concurrent_activities=group.activity_slots,
        activity_task_poller_behavior=PollerBehaviorAutoscaling(),
        interceptors=(*interceptors, TypedFailures(), Alive()),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=STICKY_SECONDS),
        max_heartbeat_throttle_interval=timedelta(seconds=HEARTBEAT_EVERY_SECONDS),
        graceful_shutdown_timeout=timedelta(seconds=SHUTDOWN_SECONDS),
        deployment_config=versioned(),
        **more,
    )


def engine_of(client: Client, loop: asyncio.AbstractEventLoop) -> Engine:
    """Asks from an activity's thread through the worker's own client."""

    def submit(change: Change) -> None:
        asyncio.run_coroutine_threadsafe(submit_change(client, change), loop).result()

    def wake() -> None:
        asyncio.run_coroutine_threadsafe(wake_replan(client), loop).result()

    return Engine(submit=submit, wake=wake)


async def serve(settings: PlatformSettings, devfile: DevFile, stopped: asyncio.Event) -> None:
    """Serve both queues until `stopped`. Waits for Temporal and the database as long as it takes."""
    log = structlog.get_logger()
    fault = fault_of(os.environ)
    interceptors = (Faults(fault),) if fault else ()
    with ExitStack() as resources:
        store = resources.enter_context(closing(Store.open(settings.database_url)))
        infrastructure = resources.enter_context(LocalProcessInfrastructure(settings.agents))
        artifacts = open_store(settings.artifacts_uri, endpoint_url=settings.s3_endpoint_url)
        client = await _prepared(store, devfile, stopped)
        if client is None:
            return
        engine = engine_of(client, asyncio.get_running_loop())
        ours = lifecycle_activities(store, artifacts, infrastructure, engine, validators=discovered())
        lifecycle, planner = devfile.group(names.LIFECYCLE_QUEUE), devfile.group(names.PLANNER_QUEUE)
        async with AsyncExitStack() as workers:
            await workers.enter_async_context(worker_of(client, lifecycle, ours, interceptors=interceptors))
            theirs = planner_activities(store, solver_of(planner, settings), PlanningPolicy.of(settings))
            await workers.enter_async_context(worker_of(client, planner, theirs, interceptors=interceptors))
            with _announced(settings.worker_ready_file):
                await _made_current(client, settings, stopped)
                warming = asyncio.create_task(asyncio.to_thread(import_module, PLANNER))
                log.info("worker_ready", queues=[lifecycle.queue, planner.queue], database=store.name)
                await stopped.wait()
            await warming
            log.info("worker_stops")


async def _made_current(client: Client, settings: PlatformSettings, stopped: asyncio.Event) -> None:
    """Make this build the current one, as soon as the server has seen its pollers."""
    if BUILD_ID is None or not settings.worker_makes_current:
        return
    while not stopped.is_set():
        try:
            await make_current(client, BUILD_ID)
        except Unavailable as error:
            structlog.get_logger().info("worker_waits", error=error.message)
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        else:
            return


@contextmanager
def _announced(file: Path | None) -> Iterator[None]:
    """The file lies there while the worker serves."""
    if file is not None:
        file.write_text(f"{os.getpid()}\n", encoding="utf-8")
    try:
        yield
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


async def _prepared(store: Store, devfile: DevFile, stopped: asyncio.Event) -> Client | None:
    """Database migrated, Temporal reached, the record its own, schedule in place. None where it was stopped before.

    Conflict where the record belongs to another namespace, or to a later version of IPnext.
    """
    log = structlog.get_logger()
    while not stopped.is_set():
        try:
            await asyncio.to_thread(store.migrate)
            client = await connect()
            await asyncio.to_thread(_belong, store, await namespace_of(client))
            await ensure_schedule(client, devfile.schedules.replan)
        except Unavailable as error:
            log.warning("worker_waits", error=error.message)
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        else:
            return client
    return None


def _belong(store: Store, namespace: WorkflowNamespace) -> None:
    with store.begin() as repository:
        repository.belong_to(namespace)


def main() -> int:
    """The process. Exit status 0 after a signal, that of the error where it can't start."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        check_neighbours()
        settings = PlatformSettings()
        devfile = read_devfile(settings.devfile)
        asyncio.run(_until_signalled(settings, devfile))
    except IPnextError as error:
        structlog.get_logger().error("worker_can_not_start", code=error.code, error=error.message)
        return error.exit_status
    return 0


async def _until_signalled(settings: PlatformSettings, devfile: DevFile) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await serve(settings, devfile, stopped)


if __name__ == "__main__":
    sys.exit(main())
