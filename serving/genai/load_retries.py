"""Retries of a load after retryable errors; any other error makes it fail."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from ipnext.errors import IPnextError
from ipnext.model.deployment.host_control import HostedSnapshot
from serving.snapshots.held_snapshots import HeldSnapshots

_RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits before a load is retried after a retryable error; after the last one the load fails."""


async def load_with_retries(
    held: HeldSnapshots[Any], hold: HostedSnapshot, load: Callable[[HostedSnapshot], Awaitable[None]]
) -> None:
    """Load a snapshot while it is desired; record a final error in `held`."""
    log = structlog.get_logger().bind(model=hold.model, part=hold.part, snapshot=hold.snapshot)
    for wait in (*_RETRY_SECONDS, None):
        if not held.wants(hold):
            return
        try:
            await load(hold)
        except IPnextError as error:
            if error.retryable and wait is not None:
                log.warning("load will be tried again", seconds=wait, code=error.code, reason=error.message)
                await asyncio.sleep(wait)
                continue
            log.error("load failed", reason=error.message)  # noqa: TRY400 - the reason suffices
            held.note_failed(hold, error.code, error.message)
        return
