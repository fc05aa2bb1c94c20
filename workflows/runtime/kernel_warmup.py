"""Compiles the planner's kernels if a worker lacks them: in a separate process, while the worker serves.

Called by the worker process at its start. Plans that need the kernels wait for them, before their time limit begins.
"""

import asyncio
import contextlib
import os
import sys
import time

import structlog

from ipnext.infra.process.parent_death import tether
from planner import kernel_cache

COMMAND = (sys.executable, "-m", "planner.kernels")

NICENESS = 19
"""Compilation uses the processor time that other processes of the machine leave."""

END_SECONDS = 5.0
"""Longest wait for the process after SIGTERM."""


async def compile_kernels(stopped: asyncio.Event) -> None:
    """Compile the kernels if the cache lacks some; return when that is done, or once `stopped`.

    The log states the result.
    """
    log = structlog.get_logger()
    if await asyncio.to_thread(kernel_cache.is_complete):
        return
    folder = await asyncio.to_thread(kernel_cache.folder)
    if folder is None:
        hint = "set XDG_CACHE_HOME to a directory that the worker can write"
        log.warning("planner_kernels_not_kept", hint=hint)
        return
    log.info("planner_kernels_compile", folder=str(folder), hint="plans of large fleets wait until they are ready")
    began = time.monotonic()
    try:
        status: int | str | None = await _run(stopped)
    except OSError as error:  # the process did not start: plans compile for themselves
        status = error.strerror or str(error)
    took = round(time.monotonic() - began, 1)
    if status == 0:
        log.info("planner_kernels_ready", seconds=took)
    elif status is not None:
        hint = "the first plan of a large fleet compiles them; run `python -m planner.kernels` to see the fault"
        log.error("planner_kernels_not_compiled", status=status, seconds=took, hint=hint)


async def _run(stopped: asyncio.Event) -> int | None:
    """Run the command; return its exit status, None if `stopped` came first. Raises OSError if it does not start."""
    process = await asyncio.create_subprocess_exec(*COMMAND, stdin=asyncio.subprocess.DEVNULL, preexec_fn=tether())
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    try:
        return await _wait_exit(process, stopped)
    finally:
        await _end(process)


async def _wait_exit(process: asyncio.subprocess.Process, stopped: asyncio.Event) -> int | None:
    """Return the exit status; None if `stopped` came first."""
    ways = (asyncio.create_task(process.wait()), asyncio.create_task(stopped.wait()))
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
    return process.returncode


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
