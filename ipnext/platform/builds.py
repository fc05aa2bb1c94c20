"""Builds of the workers: the current one, the ramping one, and the open runs on the others.

A build is a version of the Worker Deployment `ipnext`. Every change of the routing carries the conflict token of the
state that was read, so that two operators, or an operator and a starting worker, never overwrite each other.
If no build is current, new runs begin on the workers without a build id.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from temporalio.api.enums.v1 import VersionDrainageStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    DescribeWorkerDeploymentResponse,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
)
from temporalio.service import RPCError, RPCStatusCode

from ipnext import names
from ipnext.errors import Conflict, NotFound, Unavailable
from ipnext.model.value import Value
from ipnext.platform.namespace import retention_of
from ipnext.platform.polling import POLLED, PolledQueue, pollers
from ipnext.temporal import Connection, reaching

WHAT = f"the worker deployment {names.WORKER_DEPLOYMENT}"

UNVERSIONED = ""
"""Temporal's build id of all workers that have none."""

_DRAINAGE: dict[int, Literal["draining", "drained"]] = {
    VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINING: "draining",
    VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINED: "drained",
}


class Build(Value):
    """One build of the workers, with Temporal's routing of runs to it."""

    build_id: str
    state: Literal["current", "ramping", "draining", "drained", "inactive"]
    """draining: pinned runs are open on it, so its workers must stay; inactive: no run has ever been routed to it."""
    ramp_percent: float = 0.0
    """Share of new runs that begin on it while it ramps."""
    open_runs: int = 0
    """Open runs on it, both pinned ones and those that will move to the current build."""


async def builds(client: Connection) -> tuple[Build, ...]:
    """Return all builds, the newest first; none if no worker with a build id ever ran.

    Raises NotFound if the namespace does not exist, Unavailable, EngineRefused.
    """
    found = await _describe_deployment(client)
    if found is None:
        await _check_namespace(client)
        return ()
    info, routing = found.worker_deployment_info, found.worker_deployment_info.routing_config
    listed = []
    for summary in sorted(info.version_summaries, key=lambda s: s.create_time.seconds, reverse=True):
        build_id = summary.deployment_version.build_id
        ramping = build_id == routing.ramping_deployment_version.build_id
        listed.append(
            Build(
                build_id=build_id,
                state="current"
                if build_id == routing.current_deployment_version.build_id
                else "ramping"
                if ramping
                else _DRAINAGE.get(summary.drainage_status, "inactive"),
                ramp_percent=routing.ramping_version_percentage if ramping else 0.0,
                open_runs=await _open_runs(client, build_id),
            )
        )
    return tuple(listed)


async def promote(client: Connection, build_id: str, *, ramp_percent: float | None = None) -> None:
    """Make a build current, which ends any ramp, or give it `ramp_percent` of the new runs. Its workers must run.

    Raises:
        NotFound: no worker of this build has polled yet; the message names the builds that have.
            Or there is no such namespace.
        Conflict: the routing was changed by another writer; read it again.
        Unavailable, EngineRefused: Temporal does not answer, or refuses.
    """
    found = await _describe_deployment(client)
    known = (
        [] if found is None else [s.deployment_version.build_id for s in found.worker_deployment_info.version_summaries]
    )
    if found is None:
        await _check_namespace(client)
    if found is None or build_id not in known:
        msg = f"build: no worker of build {build_id!r} has polled; known: {', '.join(sorted(known)) or 'none'}"
        raise NotFound(msg)
    if ramp_percent is None:
        await _set_only(client, build_id, found)
    else:
        await _set_ramping(client, build_id, percent=ramp_percent, token=found.conflict_token)


async def promote_unversioned(client: Connection) -> None:
    """Make the workers without a build id current, which ends any ramp. They must already run.

    Raises:
        NotFound: no worker without a build id has polled each queue recently, or there is no such namespace.
        Conflict: the routing was changed by another writer; read it again.
        Unavailable, EngineRefused: Temporal does not answer, or refuses.
    """
    found = await _describe_deployment(client)
    if found is None:
        await _check_namespace(client)
    polled = await polled_unversioned(client)
    missing = [str(each) for each in POLLED if each not in polled]
    if missing:
        msg = f"build: no worker without a build id polls {'; '.join(missing)}: start such workers first"
        raise NotFound(msg)
    if found is not None:
        await _set_only(client, UNVERSIONED, found)


async def make_first_current(client: Connection, build_id: str) -> str | None:
    """Make a build current if none has ever been and no worker without a build id polls. Return the current one.

    So a build that starts takes the runs of no other worker. None if workers without a build id are current.

    Raises Unavailable, also while the server has not seen a worker of this build: try again.
    """
    found = await _describe_deployment(client)
    if found is None:
        msg = f"{WHAT}: the server has not seen a worker of build {build_id} yet"
        raise _not_yet(msg)
    routing = found.worker_deployment_info.routing_config
    current = routing.current_deployment_version.build_id
    if current:
        return current
    if routing.HasField("current_version_changed_time") or await polled_unversioned(client):
        return None
    try:
        await _set_current(client, build_id, token=found.conflict_token)
    except (Conflict, NotFound) as error:  # another worker was first, or this one is not seen yet: try again
        raise _not_yet(error.message) from error
    return build_id


async def current_build(client: Connection) -> str | None:
    """Return the current build; None if new runs begin on workers without a build id.

    Raises EngineRefused, Unavailable.
    """
    found = await _describe_deployment(client)
    routing = None if found is None else found.worker_deployment_info.routing_config
    return None if routing is None else routing.current_deployment_version.build_id or None


async def polled_unversioned(client: Connection) -> frozenset[PolledQueue]:
    """Return the queues that workers without a build id poll. Raises EngineRefused, Unavailable."""
    found = [(polled, await pollers(client, polled)) for polled in POLLED]
    return frozenset(polled for polled, those in found if any(poller.build_id is None for poller in those))


def _not_yet(message: str) -> Unavailable:
    return Unavailable(f"{message}; try again")


async def _describe_deployment(client: Connection) -> DescribeWorkerDeploymentResponse | None:
    asked = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=names.WORKER_DEPLOYMENT)
    async with reaching(WHAT):
        try:
            return await client.workflow_service.describe_worker_deployment(asked)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise


async def _check_namespace(client: Connection) -> None:
    """Raise NotFound if the namespace is missing: Temporal answers the same for a missing deployment."""
    if await retention_of(client) is None:
        msg = (
            f"namespace: Temporal has no namespace {client.namespace!r}; correct TEMPORAL_NAMESPACE, "
            "or run `ipnext platform setup`"
        )
        raise NotFound(msg)


async def _set_only(client: Connection, build_id: str, found: DescribeWorkerDeploymentResponse) -> None:
    """Make a build current and end the ramp of another one: a new current build leaves that as it is."""
    routing, token = found.worker_deployment_info.routing_config, found.conflict_token
    if routing.ramping_deployment_version.build_id not in {UNVERSIONED, build_id}:
        token = await _set_ramping(client, UNVERSIONED, percent=0, token=token)
    await _set_current(client, build_id, token=token)


async def _set_current(client: Connection, build_id: str, *, token: bytes) -> None:
    asked = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace,
        deployment_name=names.WORKER_DEPLOYMENT,
        build_id=build_id,
        conflict_token=token,
        identity=client.identity,
        ignore_missing_task_queues=True,
    )
    async with reaching(WHAT), _changing(build_id):
        await client.workflow_service.set_worker_deployment_current_version(asked)


async def _set_ramping(client: Connection, build_id: str, *, percent: float, token: bytes) -> bytes:
    """Return the token of the new routing."""
    asked = SetWorkerDeploymentRampingVersionRequest(
        namespace=client.namespace,
        deployment_name=names.WORKER_DEPLOYMENT,
        build_id=build_id,
        percentage=percent,
        conflict_token=token,
        identity=client.identity,
        ignore_missing_task_queues=True,
    )
    async with reaching(WHAT), _changing(build_id):
        return (await client.workflow_service.set_worker_deployment_ramping_version(asked)).conflict_token


@asynccontextmanager
async def _changing(build_id: str) -> AsyncIterator[None]:
    """Translate an outdated token to Conflict, and a build that the server does not know to NotFound."""
    try:
        yield
    except RPCError as error:
        if error.status in {RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.ABORTED}:
            to = f"build {build_id}" if build_id else "workers without a build id"
            msg = f"{WHAT} was not changed to {to}: {error.message}"
            raise Conflict(msg) from error
        if error.status is RPCStatusCode.NOT_FOUND:
            msg = f"build: {build_id!r} is not known to Temporal: {error.message}"
            raise NotFound(msg) from error
        raise


async def _open_runs(client: Connection, build_id: str) -> int:
    """Count the open runs by visibility, which may be some seconds late."""
    version = f"{names.WORKER_DEPLOYMENT}:{build_id}".replace("'", "''")
    async with reaching("the visibility of runs"):
        query = f"TemporalWorkerDeploymentVersion = '{version}' AND ExecutionStatus = 'Running'"
        return (await client.count_workflows(query)).count
