"""Writes of which only the last one counts: one at a time for each name, repeated until it succeeds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from ipnext.errors import Unavailable

LONGEST_PAUSES: Final = 32
"""The longest pause, in first ones."""
Write = Callable[[], Awaitable[None]]


class LatestWrites:
    """A newer write of a name replaces the one that waits."""

    def __init__(self, *, retry_seconds: float) -> None:
        self._retry_seconds = retry_seconds
        self._waiting: dict[str, Write] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._message: dict[str, str] = {}

    def put(self, name: str, write: Write) -> None:
        """Make this the last write of a name. It is repeated while it raises Unavailable."""
        self._waiting[name] = write
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(self._run(name), name=f"write {name}")

    async def wait_written(self, name: str, *, seconds: float) -> None:
        """Return once the last write of a name is done. Unavailable."""
        task = self._tasks.get(name)
        if task is None:
            return
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            task.result()
        else:
            msg = f"not written within {seconds:g} s: {self._message.get(name, 'no answer')}"
            raise Unavailable(msg)

    async def stop(self) -> None:
        """Drop what waits."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _note_failure(self, name: str, message: str) -> None:
        if self._message.get(name) != message:
            structlog.get_logger().warning("not written, tried again", name=name, reason=message)
        self._message[name] = message

    async def _run(self, name: str) -> None:
        pause = self._retry_seconds
        try:
            while write := self._waiting.pop(name, None):
                try:
                    await write()
                except Unavailable as error:
                    self._note_failure(name, error.message)
                    self._waiting.setdefault(name, write)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSES * self._retry_seconds)
        finally:
            self._tasks.pop(name, None)
            self._message.pop(name, None)
