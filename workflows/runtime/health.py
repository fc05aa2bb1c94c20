"""The worker's ready file.

Present and fresh while Temporal answers and the worker polls each queue that it has slots for. Called by the worker
process. A probe fails if the file is absent, or older than three times READY_EVERY_SECONDS: a worker that hangs removes
no file.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from temporalio.client import Client
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from ipnext.devfile import TaskQueueGroup
from ipnext.errors import EngineRefused, InvalidInput, Unavailable
from ipnext.platform.polling import POLLED, PolledQueue, pollers

READY_EVERY_SECONDS = 5.0
"""Between two checks whether the worker polls, and between two touches of the ready file."""

LOOK_SECONDS = 5.0
"""Of one check: a server that hangs neither answers a call nor refuses it."""


class ActivityLoad(Interceptor):
    """Counts the activities that one queue's worker runs. If no slot is free, the worker does not poll."""

    def __init__(self, group: TaskQueueGroup) -> None:
        self._slots = group.activity_slots
        self.running = 0

    @property
    def full(self) -> bool:
        """True if no activity slot is free."""
        return self.running >= self._slots

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See Interceptor."""
        return _Counted(next, self)


class _Counted(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, load: ActivityLoad) -> None:
        super().__init__(inner)
        self._load = load

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        self._load.running += 1
        try:
            return await self.next.execute_activity(input)
        finally:
            self._load.running -= 1


async def find_unpolled(client: Client, loads: Mapping[str, ActivityLoad]) -> Sequence[PolledQueue]:
    """Return the queues that this worker should poll but does not; a full one counts as polled.

    Raises EngineRefused, Unavailable.
    """
    return [
        polled
        for polled in POLLED
        if not (polled.work == "activities" and polled.queue in loads and loads[polled.queue].full)
        and client.identity not in {poller.identity for poller in await pollers(client, polled)}
    ]


@contextmanager
def announce_ready(file: Path | None) -> Iterator[None]:
    """Keep the file present while the worker serves; `keep_ready` keeps it fresh."""
    if file is not None:
        try:
            _mark(file, ready=True)
        except OSError as error:
            msg = f"IPNEXT_WORKER_READY_FILE: {file} can't be written: {error.strerror or error}"
            raise InvalidInput(msg, field="IPNEXT_WORKER_READY_FILE", value=str(file)) from error
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


async def keep_ready(
    client: Callable[[], Client], loads: Mapping[str, ActivityLoad], file: Path | None, stopped: asyncio.Event
) -> None:
    """Keep the ready file fresh until `stopped`.

    It is absent while no work can arrive, and the log states the cause.
    """
    while not stopped.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_EVERY_SECONDS):
                await stopped.wait()
        if file is None or stopped.is_set():
            continue
        why = await _why_not(client(), loads)
        if why:
            structlog.get_logger().warning("worker_not_ready", error=why)
        try:
            await asyncio.to_thread(_mark, file, ready=not why)
        except OSError as error:  # a probe sees that the file is old; the worker continues
            structlog.get_logger().warning("ready_file_not_written", file=str(file), error=str(error))


async def _why_not(client: Client, loads: Mapping[str, ActivityLoad]) -> str:
    """Explain why no work can arrive; empty if it can."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            found = await find_unpolled(client, loads)
    except TimeoutError:
        return f"Temporal has not answered within {LOOK_SECONDS:g} s"
    except (EngineRefused, Unavailable) as error:
        return error.message
    return f"not polled by this worker: {'; '.join(map(str, found))}" if found else ""


def _mark(file: Path, *, ready: bool) -> None:
    if ready:
        file.write_text(f"{os.getpid()}\n", encoding="utf-8")
    else:
        file.unlink(missing_ok=True)
