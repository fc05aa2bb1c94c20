"""Change notices for the files of a directory, from the kernel (inotify).

Following a file costs nothing between changes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from asyncinotify import Inotify, Mask

LOOK_SECONDS: Final = 1.0
"""Longest interval between two notices, for file systems that send none."""
POLL_SECONDS: Final = 0.02
"""Polling interval if the kernel sends no notices: the directory is missing, or the user's inotify instances are used
up."""


async def notices(directory: Path) -> AsyncIterator[None]:
    """Yield once at once, once per file written or renamed in the directory, and once every LOOK_SECONDS.

    Never ends.
    """
    try:
        kernel = Inotify()
    except OSError as error:
        structlog.get_logger().warning(
            "polled, the kernel gives no notices", directory=str(directory), reason=str(error)
        )
        while True:
            yield
            await asyncio.sleep(POLL_SECONDS)
    with kernel:
        watched = False
        while True:
            watched = watched or _watch(kernel, directory)
            yield
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if watched else POLL_SECONDS):
                    watched = Mask.IGNORED not in (await kernel.get()).mask  # the directory itself is gone


def _watch(kernel: Inotify, directory: Path) -> bool:
    try:
        kernel.add_watch(directory, Mask.MOVED_TO | Mask.CLOSE_WRITE)
    except OSError:
        return False
    return True
