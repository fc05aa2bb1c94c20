"""Fetches snapshots into a region's cache before a deployment names them, in a process of its own.

A host that is told to hold one finds it there. What fails is left to the host, which says why. What no deployment names in the end
leaves the cache as any other snapshot does (`ipnext.infra.snapshot_cache`).
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable
from contextlib import suppress

import structlog

from ipnext.infra.site import Site

MOST_WAITING = 256
"""Snapshots that wait for their turn; more are left to the hosts."""

LINE_BYTES = 2**20

FETCH_SECONDS = 3600.0
"""Of one snapshot: one that hangs must not keep the others from coming."""


class Prefetching:
    """One fetch at a time. The process starts with the first one and ends with the agent: its standard input does."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._waiting: asyncio.Queue[str] = asyncio.Queue(MOST_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None

    def begin(self, uris: Iterable[str]) -> None:
        """Fetch these in their turn."""
        for uri in uris:
            with suppress(asyncio.QueueFull):
                self._waiting.put_nowait(uri)
        if self._task is None:
            self._task = asyncio.create_task(self._fetch_all(), name="prefetch")

    async def stop(self) -> None:
        """End the process, whatever it does."""
        if self._task is not None:
            self._task.cancel()
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _fetch_all(self) -> None:
        while True:
            uri = await self._waiting.get()
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    answer = await self._fetch(uri)
            except (OSError, ValueError) as error:  # what it says from now on would be taken for another answer
                answer = str(error) or f"not within {FETCH_SECONDS:g} s"
                await self._end()
            if answer:
                structlog.get_logger().info("not fetched ahead", uri=uri, reason=answer)

    async def _fetch(self, uri: str) -> str:
        """Why it was not fetched; empty where it was."""
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None or process.stdout is None:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES, env=self._site.environment()
            )
        if process.stdin is None or process.stdout is None:
            return "no pipes"
        process.stdin.write(json.dumps({"uri": uri, "directory": str(self._site.cache)}).encode() + b"\n")
        await process.stdin.drain()
        told = json.loads(await process.stdout.readline() or b'{"message": "the process that fetches ended"}')
        return str(told.get("message", ""))

    @property
    def _command(self) -> list[str]:
        endpoint = self._site.settings.s3_endpoint_url
        more = ["--s3-endpoint-url", endpoint] if endpoint else []
        return [sys.executable, "-m", "serving.fetching", "--artifacts", self._site.artifacts, *more]
