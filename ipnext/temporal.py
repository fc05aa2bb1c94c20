"""The one Temporal client: submits changes, starts replans, keeps the schedule. Workflows are started by name.

Called by the API (through its port), the worker and tests. The connection is Temporal's own matter: temporal.toml and
TEMPORAL_* say where the server is.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeAlias
from urllib.parse import quote

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    WithStartWorkflowOperation,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from ipnext import names
from ipnext.devfile import ReplanSchedule
from ipnext.errors import Conflict, InvalidInput, IPnextError, Unavailable
from ipnext.model.controls import ControlAction, ControlAnswer, ControlAsked
from ipnext.model.drain import DrainInput
from ipnext.model.lifecycle import (
    Change,
    ChangeAccepted,
    ModelEntityInput,
    QueuedChange,
    ReplanInput,
    ScheduledReplan,
)
from ipnext.model.moving import MoverAsked, ReplanProgress
from ipnext.model.workflow_namespace import WorkflowNamespace

Connection: TypeAlias = Client
"""What `connect` gives; for callers that may not import temporalio."""

DEFAULT_ADDRESS = "127.0.0.1:7233"

SUBMIT_SECONDS = 10.0
"""Longest wait until an entity takes a change: without a worker it never does, and the caller submits again later."""

_MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)

_OVERLAP = {"skip": ScheduleOverlapPolicy.SKIP, "buffer_one": ScheduleOverlapPolicy.BUFFER_ONE}


async def connect(*, address: str | None = None, namespace: str | None = None, lazy: bool = False) -> Client:
    """A client for the server of temporal.toml and TEMPORAL_*, or of `address`. Unavailable where it can't be reached.

    A `lazy` client connects with its first call, so that an API starts before the server does.
    """
    config = ClientConfig.load_client_connect_config()
    target = address or config.get("target_host") or DEFAULT_ADDRESS
    config["target_host"] = target
    if namespace is not None:
        config["namespace"] = namespace
    async with _reaching(target):
        return await Client.connect(**config, data_converter=pydantic_data_converter, lazy=lazy)


async def namespace_of(client: Client) -> WorkflowNamespace:
    """The namespace that a client speaks to. Unavailable, also where the server does not know it."""
    address = client.service_client.config.target_host
    async with _reaching(f"the namespace {client.namespace} at {address}"):
        asked = DescribeNamespaceRequest(namespace=client.namespace)
        found = await client.workflow_service.describe_namespace(asked)
    return WorkflowNamespace(id=found.namespace_info.id, name=client.namespace, address=address)


async def submit_change(client: Client, change: Change) -> ChangeAccepted:
    """Give a recorded change to its model's entity, which is started where it does not run. The same change twice is one.

    Unavailable where no server or no worker answers in time: submit again later. InvalidInput where it can never run.
    """
    queued = QueuedChange(
        id=change.id, kind=change.kind, sequence=change.sequence, generation=change.generation, plan_id=change.plan_id
    )
    start = _entity(change.model)
    async with _reaching(f"the entity of {change.model}"), asyncio.timeout(SUBMIT_SECONDS):
        accepted: ChangeAccepted = await client.execute_update_with_start_workflow(
            names.SUBMIT_CHANGE, queued, start_workflow_operation=start, id=change.id, result_type=ChangeAccepted
        )
    return accepted


_UPDATES = {
    ControlAction.PAUSE: names.PAUSE_CHANGES,
    ControlAction.RESUME: names.RESUME_CHANGES,
    ControlAction.ABORT: names.ABORT_RUN,
    ControlAction.APPROVE: names.APPROVE_WAVE,
    ControlAction.PROMOTE: names.PROMOTE_RUN,
}


async def control(
    client: Client, model: str, action: ControlAction, asked: ControlAsked, *, change_id: str | None = None
) -> ControlAnswer:
    """Say something to a model's entity, or to the transition of the change that runs, and wait until it has heard it.

    Conflict where it does not fit what runs; Unavailable where no server or no worker answers in time.
    """
    async with _reaching(f"the entity of {model}"), asyncio.timeout(SUBMIT_SECONDS):
        if action is ControlAction.PAUSE:
            answer: ControlAnswer = await client.execute_update_with_start_workflow(
                names.PAUSE_CHANGES, asked, start_workflow_operation=_entity(model), result_type=ControlAnswer
            )
            return answer
        of_a_run = action in {ControlAction.APPROVE, ControlAction.PROMOTE} and change_id is not None
        target = names.transition_workflow_id(change_id or "") if of_a_run else names.model_workflow_id(model)
        try:
            heard: ControlAnswer = await client.get_workflow_handle(target).execute_update(
                _UPDATES[action], asked, result_type=ControlAnswer
            )
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            msg = f"nothing of {model} moves now: there is nothing to {action.value}"
            raise Conflict(msg) from error
        return heard


def _entity(model: str) -> WithStartWorkflowOperation[object, object]:
    """The entity of a model, started where it does not run."""
    return WithStartWorkflowOperation(
        names.MODEL_WORKFLOW,
        ModelEntityInput(model=model),
        id=names.model_workflow_id(model),
        task_queue=names.LIFECYCLE_QUEUE,
        task_timeout=names.TASK_TIMEOUT,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        search_attributes=TypedSearchAttributes([SearchAttributePair(_MODEL, model)]),
        static_summary=f"orders the changes of {model}",
    )


async def wake_replan(client: Client) -> None:
    """Tell the replan workflow that a replan is recorded; it is started where it does not run. Unavailable."""
    async with _reaching("the replan"), asyncio.timeout(SUBMIT_SECONDS):
        await client.start_workflow(
            names.REPLAN_WORKFLOW,
            ReplanInput(),
            id=names.REPLAN_ID,
            task_queue=names.LIFECYCLE_QUEUE,
            task_timeout=names.TASK_TIMEOUT,
            start_signal=names.REPLAN_ASKED,
            static_summary="plans the whole fleet",
        )


async def tell_freeze_changed(client: Client, change: Change) -> None:
    """Tell the run of a change that freezes have changed; one that has ended has nothing to ask. Unavailable."""
    run = client.get_workflow_handle(names.lifecycle_workflow_id(change.model, change.id))
    async with _reaching(f"the run of {change.id}"), asyncio.timeout(SUBMIT_SECONDS):
        try:
            await run.signal(names.FREEZE_CHANGED)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


async def cancel_replan(client: Client, asked: MoverAsked) -> ReplanProgress:
    """End the replan that runs. Conflict where none runs; Unavailable."""
    handle = client.get_workflow_handle(names.REPLAN_ID)
    try:
        async with _reaching("the replan"), asyncio.timeout(SUBMIT_SECONDS):
            try:
                progress: ReplanProgress = await handle.execute_update(
                    names.CANCEL_REPLAN, asked, result_type=ReplanProgress
                )
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    msg = "no replan is running, so there is none to cancel; `ipnext get replans` shows them"
                    raise Conflict(msg) from error
                raise
    except InvalidInput as error:
        raise Conflict(error.message) from error
    return progress


async def tell_moves_steered(client: Client) -> None:
    """Tell the replan that runs that moves were paused or go on; if none runs, there is nothing to tell. Unavailable."""
    replan = client.get_workflow_handle(names.REPLAN_ID)
    async with _reaching("the replan"), asyncio.timeout(SUBMIT_SECONDS):
        try:
            await replan.signal(names.MOVES_STEERED)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


async def tell_drain(client: Client, region: str) -> None:
    """Tell a region's drain that something is asked of it; it is started where it does not run. Unavailable."""
    async with _reaching(f"the drain of {region}"), asyncio.timeout(SUBMIT_SECONDS):
        await client.start_workflow(
            names.DRAIN_WORKFLOW,
            DrainInput(region=region),
            id=names.drain_workflow_id(region),
            task_queue=names.LIFECYCLE_QUEUE,
            task_timeout=names.TASK_TIMEOUT,
            start_signal=names.DRAIN_CHANGED,
            static_summary=f"takes {region} out of service, or brings it back",
        )


async def ensure_schedule(client: Client, wanted: ReplanSchedule) -> None:
    """Create the replan schedule, or bring it to what is wanted. A pause by hand stays. Unavailable."""
    schedule = _schedule(wanted)
    async with _reaching("the replan schedule"):
        try:
            await client.create_schedule(names.REPLAN_SCHEDULE, schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(names.REPLAN_SCHEDULE).update(
                lambda found: ScheduleUpdate(
                    Schedule(
                        action=schedule.action,
                        spec=schedule.spec,
                        policy=schedule.policy,
                        state=found.description.schedule.state,
                    )
                )
            )


async def make_current(client: Client, build_id: str) -> None:
    """Make a build of the workers the current one: new runs begin on it, and entities go over to it.

    Runs that are pinned to another build end there, as long as its workers run. Unavailable, also while the server has not
    seen a worker of this build: ask again.
    """
    asked = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace,
        deployment_name=names.WORKER_DEPLOYMENT,
        build_id=build_id,
        identity=client.identity,
        ignore_missing_task_queues=True,
    )
    async with _reaching(f"build {build_id}"):
        await client.workflow_service.set_worker_deployment_current_version(asked)


async def reachable(client: Client) -> bool:
    """Whether the server answers now. Never raises."""
    try:
        async with asyncio.timeout(2.0):
            return await client.service_client.check_health()
    except (RPCError, RuntimeError, TimeoutError):
        return False


def ui_link(base: str, namespace: str, workflow_id: str, run_id: str | None = None) -> str:
    """The page of a run in the Temporal UI at `base`; without a run id, of the workflow's runs."""
    page = f"{base.rstrip('/')}/namespaces/{quote(namespace, safe='')}/workflows/{quote(workflow_id, safe='')}"
    return f"{page}/{quote(run_id, safe='')}" if run_id else page


def _schedule(wanted: ReplanSchedule) -> Schedule:
    every = timedelta(hours=wanted.every_hours)
    return Schedule(
        action=ScheduleActionStartWorkflow(
            names.SCHEDULED_REPLAN_WORKFLOW,
            ScheduledReplan(),
            id=f"{names.REPLAN_ID}/schedule",
            task_queue=names.LIFECYCLE_QUEUE,
            task_timeout=names.TASK_TIMEOUT,
            static_summary="asks for a replan (schedule)",
        ),
        spec=ScheduleSpec(
            intervals=[ScheduleIntervalSpec(every=every)], jitter=timedelta(minutes=wanted.jitter_minutes)
        ),
        policy=SchedulePolicy(overlap=_OVERLAP[wanted.overlap]),
        state=ScheduleState(paused=wanted.paused),
    )


@asynccontextmanager
async def _reaching(what: str) -> AsyncIterator[None]:
    """Temporal's errors as ours. A refused update keeps its own code."""
    try:
        yield
    except WorkflowUpdateFailedError as error:
        raise _refused(error) from error
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
        msg = f"{what} did not answer in time; is a worker running? Try again"
        raise Unavailable(msg) from error
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            msg = f"{what}: Temporal refuses this: {error.message}"
            raise InvalidInput(msg) from error
        msg = f"{what} can't be reached: {error.message}"
        raise Unavailable(msg) from error
    except RuntimeError as error:
        msg = f"{what} can't be reached: {error}"
        raise Unavailable(msg) from error


def _refused(error: WorkflowUpdateFailedError) -> IPnextError:
    cause = error.cause
    text = cause.message if isinstance(cause, ApplicationError) else str(cause)
    if isinstance(cause, ApplicationError) and cause.type == Conflict.code:
        return Conflict(text)
    return InvalidInput(text)
