"""Fetches snapshots into a region's cache before a deployment names them, in separate processes.

A host that is sent such a snapshot finds it there. If a fetch fails, the host repeats it and reports why. A snapshot
that no deployment names in the end leaves the cache like any other (`ipnext.infra.agent.snapshot_cache`).
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

import structlog

from ipnext.infra.context import RegionContext

MOST_WAITING = 256
"""Most snapshots that wait or are being fetched; hosts fetch the others."""

LINE_BYTES = 2**20

FETCH_SECONDS = 3600.0
"""Time limit of one snapshot. A hanging fetch occupies its lane for this long."""

LANES = 4
"""Most batches that are fetched at the same time, each by a separate process."""

PATIENCE_SECONDS = 2.0
"""A batch that has waited this long gets another lane: most are fetched sooner than a process starts."""


class PrefetchQueue:
    """Batches of snapshots, each of one request.

    A batch that hangs does not block the others unless LANES of them hang. The snapshots of a batch are fetched one
    after the other. One process stays for the next batch. All processes end with the agent, when it closes their
    standard input.
    """

    def __init__(self, site: RegionContext, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._site = site
        self._patience = patience_seconds
        self._waiting: deque[Sequence[str]] = deque()
        self._known: set[str] = set()
        """Snapshots that wait or are being fetched: repeated requests do not fetch them twice."""
        self._lanes: set[asyncio.Task[None]] = set()
        self._idle = False
        """Whether a lane waits for the next batch."""
        self._news = asyncio.Event()

    def begin(self, uris: Iterable[str]) -> None:
        """Fetch these snapshots, one after the other."""
        new = [uri for uri in dict.fromkeys(uris) if uri not in self._known]
        batch = tuple(new[: MOST_WAITING - len(self._known)])
        if not batch:
            return
        self._known.update(batch)
        self._waiting.append(batch)
        if self._idle:
            self._idle = False
            self._news.set()
        elif not self._lanes:
            self._open_lane()
        else:
            asyncio.get_running_loop().call_later(self._patience, self._widen)

    async def stop(self) -> None:
        """End the processes at once."""
        self._waiting.clear()
        lanes = tuple(self._lanes)
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)

    def fetcher(self) -> "PrefetchProcess":
        """Create the fetcher of a lane."""
        return PrefetchProcess(self._site)

    def _widen(self) -> None:
        if self._waiting and len(self._lanes) < LANES:
            self._open_lane()

    def _open_lane(self) -> None:
        lane = asyncio.create_task(self._fetch_batches(self.fetcher()), name="prefetch")
        self._lanes.add(lane)
        lane.add_done_callback(self._lanes.discard)

    async def _fetch_batches(self, fetcher: "PrefetchProcess") -> None:
        """Fetch the waiting batches; then wait for more, unless another lane does."""
        try:
            while True:
                while self._waiting:
                    await self._fetch_batch(fetcher, self._waiting.popleft())
                if self._idle:
                    return
                self._idle = True
                await self._news.wait()
                self._news.clear()
        finally:
            await fetcher.end()

    async def _fetch_batch(self, fetcher: "PrefetchProcess", batch: Sequence[str]) -> None:
        for uri in batch:
            try:
                why = await fetcher.fetch(uri)
            finally:
                self._known.discard(uri)
            if why:
                structlog.get_logger().info("not fetched ahead", uri=uri, reason=why)


class PrefetchProcess:
    """A process that fetches one snapshot at a time. It starts with the first one."""

    def __init__(self, site: RegionContext) -> None:
        self._site = site
        self._process: Process | None = None

    async def fetch(self, uri: str) -> str:
        """Fetch a snapshot; return why that failed, empty if it did not.

        A process that hangs, or sends an invalid answer, is ended.
        """
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await self._ask_process(uri)
        except (OSError, ValueError) as error:  # its next answer would be taken for that of another snapshot
            await self.end()
            return str(error) or f"not within {FETCH_SECONDS:g} s"

    async def end(self) -> None:
        """End the process at once."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask_process(self, uri: str) -> str:
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None or process.stdout is None:
            environment = {**self._site.environment(), **self._site.store_variables}
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES, env=environment
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
        more += self._site.reserve_arguments
        return [sys.executable, "-m", "serving.snapshots.fetch_process", "--artifacts", self._site.artifacts, *more]
