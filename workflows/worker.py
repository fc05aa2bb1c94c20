"""Composition root of the worker process: `python -m workflows.worker`.

Reads settings, opens store, artifacts and infrastructure, and serves all task queues until SIGTERM or SIGINT; then it
finishes as much as it can in a few seconds and ends. If it is killed at any point, another worker continues.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ipnext.process.garbage_collection import collect_after_imports, collect_rarely

with collect_after_imports():
    import structlog
    import uvloop
    from temporalio.client import Client
    from temporalio.common import WorkerDeploymentVersion
    from temporalio.runtime import Runtime
    from temporalio.worker import (
        Interceptor,
        PollerBehaviorAutoscaling,
        Worker,
        WorkerDeploymentConfig,
    )

    from activities.deployment.activities import DeploymentActivities
    from activities.deployment.freeze_activities import FreezeActivities
    from activities.deployment.hold_activities import HoldingActivities
    from activities.metadata.activities import MetadataActivities
    from activities.metadata.collection import CollectingActivities
    from activities.metadata.freshness import FreshnessActivities
    from activities.metadata.prefetch import SnapshotPrefetcher
    from activities.metadata.source_pick_up import SourcePickUpActivities
    from activities.metadata.source_poll import SourcePollActivities
    from activities.optimization.activities import OptimizationActivities
    from activities.optimization.split_process import Cutter, cut_in_process
    from activities.optimization.step_process import Deriver, derive_in_process
    from activities.planning.activities import PlanningActivities
    from activities.planning.move_window import MoverActivities, Submit
    from activities.planning.policy import PlanningPolicy
    from activities.planning.replan_activities import ReplanActivities, Wake
    from activities.planning.solver import LaterSolver, ProcessSolver, Solver, ThreadSolver
    from activities.planning.solver_process import PLANNER
    from activities.preparation import PreparationActivities
    from activities.regions.activities import DrainActivities
    from activities.regions.drain_check import DrainCheckActivities
    from activities.regions.reconciliation import ReconciliationActivities
    from activities.runtime.errors import TypedFailures
    from activities.runtime.heartbeat import Alive
    from activities.runtime.lease import SENT_LATE_SECONDS
    from activities.runtime.owner_turns import OwnerShares
    from activities.runtime.stage_places import StagePlaces
    from activities.stages.activities import StageActivities
    from activities.stages.shadow import ShadowActivities
    from activities.transition.activities import TransitionActivities
    from activities.transition.live.timing import LiveTimingActivities
    from activities.transition.takeover import IsOpen, TakeoverActivities
    from activities.validation.activities import ValidationActivities
    from activities.validation.validator import Validator, discover_validators
    from ipnext import names
    from ipnext.artifacts.native_code import LibrarySigner, library_signer, read_native_signers
    from ipnext.artifacts.port import ArtifactStore
    from ipnext.artifacts.stores.locations import open_store
    from ipnext.components.private_files import keep_new_files_private
    from ipnext.devfile import TaskQueueGroup
    from ipnext.errors import InvalidInput, IPnextError, Unavailable
    from ipnext.infra.local_agents import LocalProcessInfrastructure
    from ipnext.infra.port import Infrastructure
    from ipnext.model.lifecycle.changes.change import Change
    from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
    from ipnext.platform.access.lists import AccessPublisher
    from ipnext.platform.collection import DEFAULT_RETENTION, Retention
    from ipnext.platform.publication import Publisher
    from ipnext.platform.schedules import create_missing, keeping_schedules, schedules_of
    from ipnext.platform.setup import warn_of_missing
    from ipnext.plugins import Plugins
    from ipnext.process.end import end_process
    from ipnext.process.settings_only import read_no_arguments
    from ipnext.settings import PlatformSettings, platform_settings
    from ipnext.sources.kinds import SourceKinds
    from ipnext.stages.kinds import StageKinds
    from ipnext.store.store import Store
    from ipnext.temporal import connect, is_open, metrics_runtime, namespace_of, submit_change, wake_replan
    from ipnext.temporal_access import read_access
    from ipnext.timing import Timing
    from planner import kernel_cache
    from serving.confinement.landlock import Confinement
    from workflows.collect import CollectWorkflow
    from workflows.drain import DrainWorkflow
    from workflows.lifecycle import LifecycleWorkflow
    from workflows.model import ModelWorkflow
    from workflows.pick_up import PickUpWorkflow
    from workflows.policies import BUILD_ID, ONE_RUN
    from workflows.reconcile import ReconcileWorkflow
    from workflows.replan import ReplanWorkflow, ScheduledReplanWorkflow
    from workflows.runtime.build_routing import claim_runs, succeed_unversioned
    from workflows.runtime.credential_renewal import CurrentClient
    from workflows.runtime.fault_injection import FaultInjector, fault_of
    from workflows.runtime.health import ActivityLoad, announce_ready, keep_ready
    from workflows.runtime.package_check import check_neighbours
    from workflows.runtime.sealed_reasons import runner_of
    from workflows.time_limits import TimeLimitInterceptor
    from workflows.transition import TransitionWorkflow
    from workflows.watch import WatchWorkflow

WORKFLOWS: Sequence[type] = (
    ModelWorkflow,
    LifecycleWorkflow,
    TransitionWorkflow,
    ReplanWorkflow,
    ScheduledReplanWorkflow,
    DrainWorkflow,
    ReconcileWorkflow,
    CollectWorkflow,
    WatchWorkflow,
    PickUpWorkflow,
)

UNVERSIONED = "unversioned"
"""Build id of workers that have none. The SDK would derive one from the code of every module that is loaded: a second
of processor time."""
CONNECT_PAUSE_SECONDS = 1.0
"""Between two attempts to reach Temporal at the start."""

Activities = Sequence[Callable[..., Any]]


@dataclass(frozen=True)
class WorkflowEngine:
    """Functions of the workflow engine that activities call."""

    submit: Submit
    wake: Wake
    is_open: IsOpen


def lifecycle_activities(  # noqa: PLR0913 - a composition root
    store: Store,
    artifacts: ArtifactStore,
    infrastructure: Infrastructure,
    engine: WorkflowEngine,
    *,
    validators: Sequence[Validator] = (),
    pause: Callable[[float], None] = time.sleep,
    cutter: Cutter = cut_in_process,
    deriver: Deriver = derive_in_process,
    confinement: Confinement = Confinement.AVAILABLE,
    native_library_keys_file: Path | None = None,
    library_signer: LibrarySigner | None = None,
    solver: Solver | None = None,
    policy: PlanningPolicy | None = None,
    retention: Retention = DEFAULT_RETENTION,
    shares: OwnerShares | None = None,
    stages: StageKinds | None = None,
) -> Activities:
    """Return the activities of the lifecycle and of the urgent queue.

    `pause` replaces `time.sleep` between two polls of regions. `confinement`: of processes that run programs of
    snapshots, besides those of `cutter` and `deriver`. `solver`: for replans of the fleet; default: threads. `shares`:
    of the slots that one owner's work holds; default: any. `stages`: of other distributions.
    """
    known = stages or StageKinds()
    metadata, freezes = MetadataActivities(store, artifacts, known), FreezeActivities(store)
    validation = ValidationActivities(
        store,
        artifacts,
        validators=validators,
        native_library_keys_file=native_library_keys_file,
        confinement=confinement,
        shares=shares,
    )
    transition = TransitionActivities(store, infrastructure, pause=pause)
    placing = PlanningActivities(store, LaterSolver(), policy)  # large models are placed on the planner queue
    prefetching = SnapshotPrefetcher(store, infrastructure)
    return (
        *metadata.all(),
        *validation.all(),
        *OptimizationActivities(
            store, artifacts, cutter=cutter, deriver=deriver, signer=library_signer, shares=shares
        ).all(),
        *StageActivities(store).all(),
        *ShadowActivities(store, infrastructure).all(),
        *known.activities,
        *freezes.all(),
        *transition.all(),
        *LiveTimingActivities(store, infrastructure, artifacts).all(),
        *PreparationActivities(metadata, validation, freezes, placing, transition, prefetching).all(),
        *DeploymentActivities(store, infrastructure).all(),
        *HoldingActivities(store).all(),
        *TakeoverActivities(store, engine.is_open).all(),
        *MoverActivities(store, engine.submit).all(),
        *ReplanActivities(store, engine.wake).all(),
        PlanningActivities(store, solver or ThreadSolver(), policy).replan_fleet,
        *DrainActivities(store, infrastructure, engine.wake, engine.submit).all(),
        *ReconciliationActivities(store, infrastructure).all(),
        *FreshnessActivities(store).all(),
        *CollectingActivities(store, artifacts, retention).all(),
    )


def source_activities(
    store: Store,
    artifacts: ArtifactStore,
    settings: PlatformSettings,
    *,
    kinds: SourceKinds | None = None,
    plugins: Plugins | None = None,
    shares: OwnerShares | None = None,
) -> Activities:
    """Return the activities of sources, of the lifecycle queue."""
    known = kinds or SourceKinds()
    publisher = Publisher(store, artifacts, plugins or Plugins(), owner_bytes=settings.artifact_bytes)
    return (
        *SourcePollActivities(store, known, settings).all(),
        *SourcePickUpActivities(store, artifacts, known, publisher, settings, shares).all(),
    )


def planner_activities(
    store: Store, solver: Solver, policy: PlanningPolicy | None = None, *, shares: OwnerShares | None = None
) -> Activities:
    """Return the activities of the planner queue. Replans of the fleet do not wait for its slots."""
    placing = PlanningActivities(store, solver, policy, shares=shares)
    checks = DrainCheckActivities(store, solver, policy)
    return (placing.place_model, *checks.all())


def queue_groups(settings: PlatformSettings) -> tuple[TaskQueueGroup, TaskQueueGroup, TaskQueueGroup]:
    """Return the groups of the lifecycle, of the urgent and of the planner queue."""
    lifecycle = TaskQueueGroup(
        queue=names.LIFECYCLE_QUEUE,
        activity_slots=settings.lifecycle_activity_slots,
        workflow_slots=settings.lifecycle_workflow_slots,
    )
    urgent = TaskQueueGroup(queue=names.URGENT_QUEUE, activity_slots=settings.urgent_activity_slots)
    planner = TaskQueueGroup(
        queue=names.PLANNER_QUEUE, executor=settings.planner_executor, activity_slots=settings.planner_activity_slots
    )
    return lifecycle, urgent, planner


def solver_of(group: TaskQueueGroup, settings: PlatformSettings) -> Solver:
    """Return the solver of a queue's group for the whole fleet."""
    if group.executor == "threads":
        return ThreadSolver()
    return ProcessSolver(grace_seconds=settings.solver_grace_seconds, memory_bytes=settings.solver_memory_bytes)


def build_versioning() -> WorkerDeploymentConfig | None:
    """Return the routing of runs to this code: by its build if that has an id, else to any worker that polls.

    With an id a transition ends on the build that it began on, and entities move to the current build: decision 0012.
    """
    if BUILD_ID is None:
        return None
    version = WorkerDeploymentVersion(deployment_name=names.WORKER_DEPLOYMENT, build_id=BUILD_ID)
    return WorkerDeploymentConfig(
        version=version,
        use_worker_versioning=True,
        default_versioning_behavior=ONE_RUN,  # of stages of other distributions
    )


def worker_of(
    client: Client,
    group: TaskQueueGroup,
    activities: Activities,
    timing: Timing,
    *,
    interceptors: Sequence[Interceptor] = (),
    workflows: Sequence[type] = (),
) -> Worker:
    """Build a worker for one task queue.

    Workflows run if the group has slots for them, also those of other distributions (`workflows`).
    """
    deployment = build_versioning()
    more: dict[str, Any] = {} if deployment else {"build_id": UNVERSIONED}
    if group.workflow_slots:
        more |= {"max_concurrent_workflow_tasks": group.workflow_slots, "workflows": (*WORKFLOWS, *workflows)}
        more["workflow_runner"] = runner_of(client.config()["data_converter"])
        more["workflow_task_poller_behavior"] = PollerBehaviorAutoscaling()
    return Worker(
        client,
        task_queue=group.queue,
        activities=activities,
        activity_executor=ThreadPoolExecutor(group.activity_slots, thread_name_prefix=group.queue),
        max_concurrent_activities=group.activity_slots,
        activity_task_poller_behavior=PollerBehaviorAutoscaling(),
        interceptors=(
            *interceptors,
            StagePlaces(group.activity_slots),
            TypedFailures(),
            Alive(timing.beat_seconds),
            TimeLimitInterceptor(timing),
        ),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=timing.sticky_seconds),
        max_heartbeat_throttle_interval=timedelta(seconds=SENT_LATE_SECONDS),
        graceful_shutdown_timeout=timedelta(seconds=timing.worker_shutdown_seconds),
        deployment_config=deployment,
        **more,
    )


def engine_of(client: Callable[[], Client], loop: asyncio.AbstractEventLoop) -> WorkflowEngine:
    """Call Temporal from an activity's thread through the worker's current client."""

    def submit(change: Change, again: str = "") -> None:
        asyncio.run_coroutine_threadsafe(submit_change(client(), change, again=again), loop).result()

    def wake() -> None:
        asyncio.run_coroutine_threadsafe(wake_replan(client()), loop).result()

    def open_now(workflow_id: str) -> bool:
        return asyncio.run_coroutine_threadsafe(is_open(client(), workflow_id), loop).result()

    return WorkflowEngine(submit=submit, wake=wake, is_open=open_now)


async def serve(settings: PlatformSettings, stopped: asyncio.Event) -> None:
    """Serve all queues until `stopped`. Waits for Temporal and the database as long as it takes.

    Raises InvalidInput without agents: each change would fail because there is no region.
    """
    log = structlog.get_logger()
    if not settings.agents:
        msg = 'agents (IPNEXT_AGENTS) names no region; a worker needs the URL of each agent: {"us-east": "http://HOST:PORT"}'
        raise InvalidInput(msg, field="agents", value="{}")
    fault = fault_of(os.environ)
    interceptors = (FaultInjector(fault),) if fault else ()
    with ExitStack() as resources:
        store = resources.enter_context(closing(Store.open(settings.database_url)))
        infrastructure = resources.enter_context(
            LocalProcessInfrastructure(
                settings.agents, answer_seconds=settings.agent_answer_seconds, components=settings
            )
        )
        artifacts = open_store(
            settings.artifacts_uri, endpoint_url=settings.s3_endpoint_url, reserve_bytes=settings.disk_reserve_bytes
        )
        address, insecure_bind = settings.worker_metrics_address, settings.insecure_bind
        runtime = None if address is None else metrics_runtime(address, insecure_bind=insecure_bind)
        client = await _prepare(store, settings, runtime, stopped)
        if client is None:
            return
        resources.enter_context(AccessPublisher(store, infrastructure).running())
        current = CurrentClient(client, settings)
        engine = engine_of(current.get, asyncio.get_running_loop())
        groups, timing = queue_groups(settings), settings.timing
        solver = solver_of(groups[-1], settings)
        shares = OwnerShares({group.queue: group.activity_slots for group in groups})
        stages = StageKinds(settings.lifecycle)
        stages.log_refused()
        ours = lifecycle_activities(
            store,
            artifacts,
            infrastructure,
            engine,
            validators=discover_validators(),
            cutter=partial(cut_in_process, confinement=Confinement(settings.worker_confinement)),
            deriver=partial(derive_in_process, confinement=Confinement(settings.worker_confinement)),
            confinement=Confinement(settings.worker_confinement),
            native_library_keys_file=settings.native_library_keys_file,
            library_signer=_library_signer(settings),
            solver=solver,
            policy=PlanningPolicy.of(settings),
            retention=Retention.of(settings),
            shares=shares,
            stages=stages,
        )
        ours = (*ours, *source_activities(store, artifacts, settings, shares=shares))
        loads = {group.queue: ActivityLoad(group) for group in groups}
        theirs = planner_activities(store, solver, PlanningPolicy.of(settings), shares=shares)
        async with AsyncExitStack() as workers:
            started = []
            for group, activities in zip(groups, (ours, ours, theirs), strict=True):
                more = (*interceptors, loads[group.queue])
                started.append(
                    worker_of(client, group, activities, timing, interceptors=more, workflows=stages.workflows)
                )
                await workers.enter_async_context(started[-1])
            await workers.enter_async_context(keeping_schedules(current.get, schedules_of(settings)))
            with announce_ready(settings.worker_ready_file):
                waits = not await claim_runs(client, makes_current=settings.worker_makes_current, stopped=stopped)
                warming = asyncio.create_task(asyncio.to_thread(_warm_up))
                log.info("worker_ready", queues=[group.queue for group in groups], database=store.name)
                following = asyncio.create_task(current.follow(started, partial(_connect, settings, runtime)))
                succeeding = asyncio.create_task(succeed_unversioned(current.get)) if waits else None
                await keep_ready(current.get, loads, settings.worker_ready_file, stopped)
                following.cancel()
                if succeeding is not None:
                    succeeding.cancel()
            await warming
            log.info("worker_stops")


def _warm_up() -> None:
    """Import the modules that the first plan would wait for, then exempt all imports from garbage collection."""
    import_module(PLANNER)
    if kernel_cache.folder() is None:
        hint = "set XDG_CACHE_HOME to a directory that the worker can write"
        structlog.get_logger().warning("planner_kernels_not_kept", hint=hint)
    collect_rarely()


def _connect(settings: PlatformSettings, runtime: Runtime | None) -> Awaitable[Client]:
    return connect(runtime=runtime, timing=settings.timing, access=read_access(settings))


async def _prepare(
    store: Store, settings: PlatformSettings, runtime: Runtime | None, stopped: asyncio.Event
) -> Client | None:
    """Migrate the database, connect to Temporal, claim the database, create schedules. None if it was stopped before.

    Raises Conflict if the database belongs to another namespace, or to a later version of IPnext.
    """
    log = structlog.get_logger()
    while not stopped.is_set():
        try:
            await asyncio.to_thread(store.migrate)
            client = await _connect(settings, runtime)
            await asyncio.to_thread(_belong, store, await namespace_of(client))
            await warn_of_missing(client)
            await create_missing(client, schedules_of(settings))
        except Unavailable as error:
            log.warning("worker_waits", error=error.message)
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        else:
            return client
    return None


def _belong(store: Store, namespace: WorkflowNamespace) -> None:
    with store.begin() as repository:
        repository.belong_to(namespace)


def _library_signer(settings: PlatformSettings) -> LibrarySigner | None:
    return library_signer(settings.native_library_signing_key_file, settings.native_library_keys_file)


def main() -> int:
    """Run the process. Exit status 0 after a signal, that of the error if it can't start."""
    read_no_arguments("workflows.worker", "Serve the task queues of IPnext's workflows until SIGTERM or SIGINT.")
    keep_new_files_private()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        check_neighbours()
        settings = platform_settings()
        read_native_signers(settings.native_library_keys_file)  # now, and not at the first validation
        _library_signer(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_signalled(settings))
    except IPnextError as error:
        structlog.get_logger().error("worker_can_not_start", code=error.code, error=error.message)
        return error.exit_status
    return 0


async def _until_signalled(settings: PlatformSettings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await serve(settings, stopped)


if __name__ == "__main__":
    end_process(main())
