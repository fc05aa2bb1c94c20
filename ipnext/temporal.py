"""The one Temporal client: submits changes, starts replans and drains. Workflows are started by name.

The API (through its port), the worker and tests call it. Temporal configures the connection: temporal.toml and
TEMPORAL_* name the server.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import quote

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    StartWorkflowUpdateWithStartInput,
    WithStartWorkflowOperation,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
)
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from ipnext import names
from ipnext.errors import Conflict, EngineRefused, InvalidInput, IPnextError, Unavailable
from ipnext.model.lifecycle.changes.change import Change, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlAsked
from ipnext.model.lifecycle.changes.entity import ChangeAccepted, ModelEntityInput
from ipnext.model.lifecycle.regions.drain import DrainInput
from ipnext.model.lifecycle.replans.moves import MoverAsked, ReplanProgress
from ipnext.model.lifecycle.replans.replan import ReplanInput
from ipnext.model.lifecycle.sources import WatchInput
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.network.loopback import check_bind_with_port
from ipnext.payloads import data_converter
from ipnext.temporal_access import TemporalAccess, read_access, temporal_settings
from ipnext.timing import Timing

Connection: TypeAlias = Client
"""The result of `connect`, for callers that may not import temporalio."""

DEFAULT_ADDRESS = "127.0.0.1:7233"

SUBMIT_SECONDS = 10.0
"""Longest wait until an entity accepts a change: without a worker it never does, and the caller submits again later."""

_CLOSED = frozenset(WorkflowExecutionStatus) - {
    WorkflowExecutionStatus.RUNNING,
    WorkflowExecutionStatus.CONTINUED_AS_NEW,
}
"""A run of any other status, also of one that this client does not know, may continue."""

_FIRST = Priority(priority_key=1)
"""Of drains and replans: their workflow tasks, and steps, go first if a queue is full. The default is 3."""

_EARLY = Priority(priority_key=2)
"""Of entities, which take rollbacks, pauses and aborts."""

_MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)


def check_metrics_address(address: str, *, insecure_bind: bool) -> None:
    """Check that a worker may publish its metrics at HOST:PORT. Raises InvalidInput."""
    field, name = "worker_metrics_address", "worker_metrics_address (IPNEXT_WORKER_METRICS_ADDRESS)"
    lacks = ["TLS and authentication"]
    check_bind_with_port(address, field=field, name=name, lacks=lacks, insecure_bind=insecure_bind)


def metrics_runtime(address: str, *, insecure_bind: bool = False) -> Runtime:
    """Return the SDK's runtime with Prometheus metrics at HOST:PORT; one per process.

    InvalidInput if it can't, or may not, listen there.
    """
    check_metrics_address(address, insecure_bind=insecure_bind)
    try:
        return Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=address)))
    except (RuntimeError, ValueError) as error:
        msg = f"worker_metrics_address: {address} can't be listened on: {error}; allowed: HOST:PORT of a free port"
        raise InvalidInput(msg, field="worker_metrics_address", value=address) from error


class TimedStarts(Interceptor):
    """Gives every workflow that a client starts its task timeout, which the run keeps and its children inherit."""

    def __init__(self, workflow_task: timedelta) -> None:
        self._workflow_task = workflow_task

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:  # noqa: A002 - the SDK's signature
        """See Interceptor."""
        return _TimedOutbound(next, self._workflow_task)


class _TimedOutbound(OutboundInterceptor):
    def __init__(self, inner: OutboundInterceptor, workflow_task: timedelta) -> None:
        super().__init__(inner)
        self._workflow_task = workflow_task

    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:  # noqa: A002
        input.task_timeout = self._workflow_task
        return await super().start_workflow(input)

    async def start_update_with_start_workflow(
        self,
        input: StartWorkflowUpdateWithStartInput,  # noqa: A002
    ) -> WorkflowUpdateHandle[Any]:
        input.start_workflow_input.task_timeout = self._workflow_task
        input._on_start_error = _ignore_start_error  # noqa: SLF001 - the SDK offers no other way
        return await super().start_update_with_start_workflow(input)


def _ignore_start_error(error: BaseException) -> None:
    """Set no exception on the future of the started workflow's handle: nothing awaits it, so asyncio would log it.

    The caller gets the same error from the update.
    """


async def connect(
    *,
    address: str | None = None,
    namespace: str | None = None,
    timing: Timing | None = None,
    lazy: bool = False,
    runtime: Runtime | None = None,
    access: TemporalAccess | None = None,
) -> Client:
    """Connect to the server of temporal.toml and TEMPORAL_*, or of `address`. Unavailable if it can't be reached.

    `access` defaults to IPNEXT_TEMPORAL_...; InvalidInput if a file of those is invalid. `timing` has the task timeout
    of the workflows that the client starts. A `lazy` client connects with its first call, so that an API starts before
    the server does.
    """
    starts = TimedStarts((timing or Timing()).workflow_task)
    config = ClientConfig.load_client_connect_config()
    target = address or config.get("target_host") or DEFAULT_ADDRESS
    config["target_host"] = target
    if namespace is not None:
        config["namespace"] = namespace
    access = access or read_access(temporal_settings())
    async with reaching(target):
        return await Client.connect(
            **{**config, **_tls_arguments(access)},
            data_converter=data_converter(access.payload_keys),
            interceptors=[starts],
            lazy=lazy,
            runtime=runtime,
        )


def _tls_arguments(access: TemporalAccess) -> dict[str, Any]:
    """Return the arguments of `Client.connect`; unset ones are left to TEMPORAL_... of the environment."""
    given: dict[str, Any] = {}
    if access.has_tls:
        given["tls"] = TLSConfig(
            server_root_ca_cert=access.authorities,
            domain=access.server_name,
            client_cert=access.certificate,
            client_private_key=access.key,
        )
    if access.api_key is not None:
        given = {"tls": True, **given, "api_key": access.api_key}
    return given


async def namespace_of(client: Client) -> WorkflowNamespace:
    """Return the namespace of a client. Unavailable, also if the server does not know it."""
    address = client.service_client.config.target_host
    async with reaching(f"the namespace {client.namespace} at {address}"):
        asked = DescribeNamespaceRequest(namespace=client.namespace)
        found = await client.workflow_service.describe_namespace(asked)
    return WorkflowNamespace(id=found.namespace_info.id, name=client.namespace, address=address)


async def submit_change(client: Client, change: Change, *, again: str = "") -> ChangeAccepted:
    """Submit a recorded change to its model's entity, which is started if it does not run.

    The same change twice is one. With `again` the entity hears of it once more for each such text, and asks once more
    whether a waiting move may pass.

    InvalidInput or Conflict if the entity's validator refuses the change for good; EngineRefused and Unavailable
    otherwise: submit it again later.
    """
    queued = QueuedChange(
        id=change.id, kind=change.kind, sequence=change.sequence, generation=change.generation, plan_id=change.plan_id
    )
    start = WithStartWorkflowOperation[object, object](**_entity(change.model))
    update_id = f"{change.id}/{again}" if again else change.id
    async with reaching(f"the entity of {change.model}"), asyncio.timeout(SUBMIT_SECONDS):
        accepted: ChangeAccepted = await client.execute_update_with_start_workflow(
            names.SUBMIT_CHANGE, queued, start_workflow_operation=start, id=update_id, result_type=ChangeAccepted
        )
    return accepted


_UPDATES = {
    ControlAction.PAUSE: names.PAUSE_CHANGES,
    ControlAction.RESUME: names.RESUME_CHANGES,
    ControlAction.ABORT: names.ABORT_RUN,
    ControlAction.APPROVE: names.APPROVE_WAVE,
    ControlAction.PROMOTE: names.PROMOTE_RUN,
}


_OF_THE_MODEL = frozenset({ControlAction.PAUSE, ControlAction.RESUME})
"""A pause outlives the entity that accepted it, so these start the entity if it does not run."""


async def control(
    client: Client,
    model: str,
    action: ControlAction,
    asked: ControlAsked,
    *,
    change_id: str | None = None,
    update_id: str | None = None,
) -> ControlAnswer:
    """Send an action to a model's entity, or to the transition of the running change, and wait until it is accepted.

    A missing entity is started for a pause, and for an abort of the running change. The same `update_id` again gets the
    first answer. Conflict if the action does not fit the running change; Unavailable if no server or no worker answers
    in time.
    """
    async with reaching(f"the entity of {model}"), asyncio.timeout(SUBMIT_SECONDS):
        if action in _OF_THE_MODEL or (action is ControlAction.ABORT and change_id is not None):
            answer: ControlAnswer = await client.execute_update_with_start_workflow(
                _UPDATES[action],
                asked,
                start_workflow_operation=WithStartWorkflowOperation[object, object](**_entity(model)),
                id=update_id,
                result_type=ControlAnswer,
            )
            return answer
        of_a_run = action in {ControlAction.APPROVE, ControlAction.PROMOTE} and change_id is not None
        target = names.transition_workflow_id(change_id or "") if of_a_run else names.model_workflow_id(model)
        try:
            heard: ControlAnswer = await client.get_workflow_handle(target).execute_update(
                _UPDATES[action], asked, id=update_id, result_type=ControlAnswer
            )
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            msg = f"nothing of {model} moves now: there is nothing to {action.value}"
            raise Conflict(msg) from error
        return heard


def _entity(model: str) -> dict[str, Any]:
    """Return the options that start a model's entity, unless it runs."""
    return {
        "workflow": names.MODEL_WORKFLOW,
        "arg": ModelEntityInput(model=model),
        "id": names.model_workflow_id(model),
        "task_queue": names.LIFECYCLE_QUEUE,
        "id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING,
        "search_attributes": TypedSearchAttributes([SearchAttributePair(_MODEL, model)]),
        "priority": _EARLY,
        "static_summary": f"orders the changes of {model}",
    }


async def begin_entity(client: Client, model: str) -> None:
    """Start the entity of a model unless it runs; it reads the open changes from the store. Raises Unavailable."""
    async with reaching(f"the entity of {model}"), asyncio.timeout(SUBMIT_SECONDS):
        await client.start_workflow(**_entity(model))


async def look_again(client: Client, model: str) -> None:
    """Signal the entity of a model to read the open changes again; it is started if it does not run.

    Raises Unavailable.
    """
    async with reaching(f"the entity of {model}"), asyncio.timeout(SUBMIT_SECONDS):
        await client.start_workflow(**_entity(model), start_signal=names.LOOK_AGAIN)


async def is_open(client: Client, workflow_id: str) -> bool:
    """Return whether a run of the workflow is open now, by the server's own state. False if there never was one.

    Raises Unavailable.
    """
    async with reaching(f"workflow {workflow_id}"), asyncio.timeout(SUBMIT_SECONDS):
        try:
            found = await client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return False
    return found.status not in _CLOSED


async def wake_replan(client: Client) -> None:
    """Signal the replan workflow that a replan is recorded; it is started if it does not run. Raises Unavailable."""
    async with reaching("the replan"), asyncio.timeout(SUBMIT_SECONDS):
        await client.start_workflow(
            names.REPLAN_WORKFLOW,
            ReplanInput(),
            id=names.REPLAN_ID,
            task_queue=names.LIFECYCLE_QUEUE,
            start_signal=names.REPLAN_ASKED,
            static_summary="plans the whole fleet",
            priority=_FIRST,
        )


async def signal_freeze_change(client: Client, change: Change) -> None:
    """Signal the run of a change that freezes have changed; an ended run needs no signal. Raises Unavailable."""
    run = client.get_workflow_handle(names.lifecycle_workflow_id(change.model, change.id))
    async with reaching(f"the run of {change.id}"), asyncio.timeout(SUBMIT_SECONDS):
        try:
            await run.signal(names.FREEZE_CHANGED)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


async def cancel_replan(client: Client, asked: MoverAsked, *, update_id: str | None = None) -> ReplanProgress:
    """Cancel the running replan. The same `update_id` again gets the first answer.

    Conflict if none runs; Unavailable.
    """
    handle = client.get_workflow_handle(names.REPLAN_ID)
    try:
        async with reaching("the replan"), asyncio.timeout(SUBMIT_SECONDS):
            try:
                progress: ReplanProgress = await handle.execute_update(
                    names.CANCEL_REPLAN, asked, id=update_id, result_type=ReplanProgress
                )
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    msg = "no replan is running, so there is none to cancel; `ipnext get replans` shows them"
                    raise Conflict(msg) from error
                raise
    except InvalidInput as error:
        raise Conflict(error.message) from error
    return progress


async def signal_steering(client: Client) -> None:
    """Signal the running replan that moves were paused or resumed, if one runs. Raises Unavailable."""
    replan = client.get_workflow_handle(names.REPLAN_ID)
    async with reaching("the replan"), asyncio.timeout(SUBMIT_SECONDS):
        try:
            await replan.signal(names.MOVES_STEERED)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise


async def signal_drain(client: Client, region: str) -> None:
    """Signal a region's drain that there is a new request; it is started if it does not run. Raises Unavailable."""
    async with reaching(f"the drain of {region}"), asyncio.timeout(SUBMIT_SECONDS):
        await client.start_workflow(
            names.DRAIN_WORKFLOW,
            DrainInput(region=region),
            id=names.drain_workflow_id(region),
            task_queue=names.LIFECYCLE_QUEUE,
            start_signal=names.DRAIN_CHANGED,
            static_summary=f"takes {region} out of service, or brings it back",
            priority=_FIRST,
        )


LONGEST_SUMMARY = 200
"""Characters of a name in a summary: the server takes 400 bytes."""


async def wake_watch(client: Client, kind: str, upstream: str) -> None:
    """Have an upstream system polled soon; its watch is started if it does not run. Raises Unavailable."""
    async with reaching(f"the watch of {upstream}"), asyncio.timeout(SUBMIT_SECONDS):
        await client.start_workflow(
            names.WATCH_WORKFLOW,
            WatchInput(kind=kind, upstream=upstream),
            id=names.watch_workflow_id(kind, upstream),
            task_queue=names.LIFECYCLE_QUEUE,
            start_signal=names.SOURCE_WOKEN,
            static_summary=f"polls {upstream[:LONGEST_SUMMARY]} for new snapshots",
        )


async def reachable(client: Client) -> bool:
    """Return whether the server answers now. Never raises."""
    try:
        async with asyncio.timeout(2.0):
            return await client.service_client.check_health()
    except (RPCError, RuntimeError, TimeoutError):
        return False


def ui_link(base: str, namespace: str, workflow_id: str, run_id: str | None = None) -> str:
    """Return the page of a run in the Temporal UI at `base`; without a run id, of the workflow's runs."""
    page = f"{base.rstrip('/')}/namespaces/{quote(namespace, safe='')}/workflows/{quote(workflow_id, safe='')}"
    return f"{page}/{quote(run_id, safe='')}" if run_id else page


_ABSENT = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.ABORTED,
    }
)
"""Statuses of a server that is down, busy or restarting; every other one is a refusal."""

_FINAL: Mapping[str, type[IPnextError]] = {kind.code: kind for kind in (InvalidInput, Conflict)}
"""Types of the errors that our own update validators raise: only they mean that a call can never succeed."""


@asynccontextmanager
async def reaching(what: str) -> AsyncIterator[None]:
    """Translate Temporal's errors.

    Raises:
        InvalidInput, Conflict: our own update validator refused the call. It can never succeed.
        EngineRefused: Temporal answers and refuses, the update failed in a worker, or the answer can't be decrypted.
            Worth an alarm; try again.
        Unavailable: the server or a worker did not answer. Try again.
    """
    try:
        yield
    except WorkflowUpdateFailedError as error:
        raise _update_error(what, error) from error
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
        msg = f"{what} did not answer in time; is a worker running? Try again"
        raise Unavailable(msg) from error
    except RPCError as error:
        if error.status in _ABSENT:
            msg = f"{what} can't be reached: {error.message}"
            raise Unavailable(msg) from error
        msg = f"{what}: Temporal refuses the call ({error.status.name}): {error.message}"
        raise EngineRefused(msg) from error
    except InvalidInput as error:  # of the codec: this process lacks a key
        msg = f"{what}: the answer can't be read: {error.message}"
        raise EngineRefused(msg) from error
    except RuntimeError as error:
        msg = f"{what} can't be reached: {error}"
        raise Unavailable(msg) from error
    except ValueError as error:
        msg = f"{what}: the answer of another build can't be read: {error}"
        raise EngineRefused(msg) from error


def _update_error(what: str, error: WorkflowUpdateFailedError) -> IPnextError:
    """Return the error behind a failed update: final only if our own validator raised it."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        final = _FINAL.get(cause.type or "")
        return EngineRefused(f"{what}: the update failed: {cause.message}") if final is None else final(cause.message)
    return EngineRefused(f"{what}: the update failed: {cause or error}")
