"""Notices that a file was put into a directory, from the kernel: what follows a file so costs nothing while nothing changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from asyncinotify import Inotify, Mask

LOOK_SECONDS: Final = 1.0
"""How often at least, for file systems that give no notice."""
POLL_SECONDS: Final = 0.02
"""How often where there are no notices: the directory is missing, or the user's inotify instances are used up."""


async def notices(directory: Path) -> AsyncIterator[None]:
    """One item at once, then one for each file that was written or renamed in it, and one every LOOK_SECONDS. Without end."""
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
