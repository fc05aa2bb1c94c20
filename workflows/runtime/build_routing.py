"""Claim of new runs by a worker that starts: whether its build becomes the current one."""

import asyncio
from collections.abc import Callable

import structlog
from temporalio.client import Client

from ipnext.errors import Conflict, EngineRefused, IPnextError, NotFound, Unavailable
from ipnext.platform.builds import current_build, make_first_current, polled_unversioned, promote
from workflows.policies import BUILD_ID

PAUSE_SECONDS = 1.0
"""Between two attempts to become current at the start."""

LOOK_SECONDS = 15.0
"""Between two looks for workers without a build id."""

LOOKS = 4
"""Looks that must find no worker without a build id: a server that has just started has seen none yet."""


async def claim_runs(
    client: Client, *, makes_current: bool, stopped: asyncio.Event, build_id: str | None = BUILD_ID
) -> bool:
    """Make the worker's build current if `makes_current`, or if no worker has the runs.

    Tries until the server has seen it poll. False if workers without a build id have them: `succeed_unversioned` waits
    for their end. A worker without a build id claims nothing; the log states if another build is current. Raises
    EngineRefused for a worker with one.
    """
    while not stopped.is_set():
        try:
            if build_id is None:
                current = await current_build(client)
            elif makes_current:
                await promote(client, build_id)
                current = build_id
            else:
                current = await make_first_current(client, build_id)
        except (Conflict, NotFound, Unavailable) as error:
            structlog.get_logger().info("worker_waits", error=error.message)
            await asyncio.sleep(PAUSE_SECONDS)
        except EngineRefused as error:
            if build_id is not None:
                raise
            structlog.get_logger().warning("current_build_not_known", error=error.message)
            return True
        else:
            _log_routing(current, build_id)
            return current is not None or build_id is None
    return True


def _log_routing(current: str | None, build_id: str | None) -> None:
    """Log the command that gives this worker the new runs, if another one has them."""
    log = structlog.get_logger().bind(current=current, build=build_id)
    if current is None and build_id is not None:
        log.warning("workers_without_a_build_id_are_current", hint=f"ipnext platform promote {build_id}")
    elif build_id is None and current is not None:
        log.warning("another_build_is_current", hint="ipnext platform promote --unversioned")
    elif current != build_id:
        log.info("another_build_is_current", hint=f"ipnext platform promote {build_id}")


async def succeed_unversioned(client: Callable[[], Client], build_id: str | None = BUILD_ID) -> None:
    """Make the build current after the last worker without a build id has ended, unless an operator promoted another.

    Runs until a build is current.
    """
    if build_id is None:
        return
    absent, current = 0, None
    while current is None:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            absent = 0 if await polled_unversioned(client()) else absent + 1
            if absent >= LOOKS:
                current = await make_first_current(client(), build_id)
        except IPnextError as error:
            absent = 0
            structlog.get_logger().warning("worker_waits", code=error.code, error=error.message)
    _log_routing(current, build_id)
