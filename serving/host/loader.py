"""Reconciles a host's loaded snapshots with the desired set: fetch, check, load, warm up, in the background.

One thread fetches, another loads and closes, one snapshot at a time.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from ipnext.errors import IPnextError, LoadFailed
from ipnext.model.deployment.host_control import HostedSnapshot
from serving.engines.base import Engine, LoadedPart
from serving.host.delta_loader import Chain, fetch_chain
from serving.host.served_part import ServedPart, batch_limits
from serving.snapshots.fetch import LocalSnapshot, fetch_assigned
from serving.snapshots.fetch_process import Fetcher
from serving.snapshots.held_snapshots import HeldSnapshots, Lease
from serving.snapshots.memory_budget import HostMemory

LOAD_SECONDS: Final = 600.0
"""Time limit of loading and warming up a snapshot, once it is fetched; beyond it the load fails."""
_RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits before a load is retried after a retryable error; after the last one the load fails."""


class Loader:
    """Loads the snapshots that `HeldSnapshots` lacks. Its methods run in the event loop, the work in two threads.

    `before_serving` is called once, after the first load and before its snapshot is ready.
    """

    def __init__(
        self,
        held: HeldSnapshots[ServedPart],
        open_store: Callable[[], Fetcher],
        cache: Path,
        find_engine: Callable[[str], Engine],
        *,
        memory: HostMemory | None = None,
        before_serving: Callable[[], None] = lambda: None,
    ) -> None:
        self.load_seconds = LOAD_SECONDS
        """Time limit of a load."""
        self._turn = asyncio.Lock()
        self.memory = memory or HostMemory()
        self._before_serving = before_serving
        self._served_before = False
        self._held = held
        self._open_store = open_store
        self._cache = cache
        self._find_engine = find_engine
        self._engines: dict[str, Engine] = {}
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="fetching")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self._tasks: set[asyncio.Task[None]] = set()
        """Each is named by the digest that it loads."""

    def hold(self, holds: Sequence[HostedSnapshot]) -> None:
        """Make `holds` the desired set and return at once. InvalidInput leaves the former set in force."""
        changes = self._held.want(holds)
        for part in changes.close:
            self.dispose(part)
        for hold in changes.load:
            task = asyncio.create_task(self._load(hold), name=hold.digest)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def dispose(self, part: ServedPart) -> None:
        """Close a part, outside the event loop."""
        self._loading.submit(self._close_now, part)

    def close(self) -> None:
        """Stop loading."""
        for task in self._tasks:
            task.cancel()
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._loading.shutdown(wait=False, cancel_futures=True)

    async def _load(self, hold: HostedSnapshot) -> None:
        log = structlog.get_logger().bind(model=hold.model, part=hold.part, snapshot=hold.snapshot)
        for wait in (*_RETRY_SECONDS, None):
            if not self._held.wants(hold):
                return
            try:
                part = await self._fetch_and_load(hold)
            except IPnextError as error:
                if error.retryable and wait is not None:
                    log.warning("load will be tried again", seconds=wait, code=error.code, reason=error.message)
                    await asyncio.sleep(wait)
                    continue
                self._note_failure(hold, error)
            else:
                log.info("loaded", size_bytes=part.size_bytes)
                if not self._held.note_loaded(hold, part):
                    self.dispose(part)
            return

    def _note_failure(self, hold: HostedSnapshot, error: IPnextError) -> None:
        structlog.get_logger().error("load failed", part=hold.part, snapshot=hold.snapshot, reason=error.message)
        self._held.note_failed(hold, error.code, error.message)

    async def _fetch_and_load(self, hold: HostedSnapshot) -> ServedPart:
        loop = asyncio.get_running_loop()
        try:
            fetched = await loop.run_in_executor(self._fetching, self._fetch_now, hold)
            if fetched.manifest.is_delta:
                return await self._delta_loaded(hold, fetched)
            chain = Chain(hold.digest, fetched)
            return await self._in_time(hold, chain, {})
        except IPnextError:
            raise
        except Exception as error:
            msg = f"snapshot {hold.snapshot} of {hold.model}.{hold.part}: {type(error).__name__}: {error}"
            raise LoadFailed(msg) from error

    async def _delta_loaded(self, hold: HostedSnapshot, fetched: LocalSnapshot) -> ServedPart:
        """Load from the parent if it is loaded; if the parent is being loaded, wait for it."""
        loop = asyncio.get_running_loop()
        parents = [task for task in self._tasks if task.get_name() == fetched.manifest.parent]
        if parents:
            await asyncio.wait(parents)
        leases = self._held.relatives(hold)
        held = {lease.digest: lease.value.part for lease in leases}
        give_back = partial(self._give_back, leases)
        try:
            chain = await loop.run_in_executor(self._fetching, self._fetch_chain_now, hold, fetched, held)
        except BaseException:
            give_back()
            raise
        part = await self._in_time(hold, chain, held, ended=give_back)
        structlog.get_logger().info("delta", part=hold.part, snapshot=hold.snapshot, made_from=chain.made_from)
        return part

    def _give_back(self, leases: Sequence[Lease[ServedPart]]) -> None:
        for lease in leases:
            unused = self._held.release(lease)
            if unused is not None:
                self.dispose(unused)

    async def _in_time(
        self,
        hold: HostedSnapshot,
        chain: Chain,
        held: Mapping[str, LoadedPart],
        *,
        ended: Callable[[], None] = lambda: None,
    ) -> ServedPart:
        """Load in the loading thread, one snapshot at a time. LoadFailed after `load_seconds`.

        A thread cannot be stopped: after a timeout it is abandoned, later loads use a new thread, and a part that it
        still returns is closed. `ended` is called once the thread has finished.
        """
        async with self._turn:
            thread = self._loading
            work = asyncio.get_running_loop().run_in_executor(thread, self._load_now, hold, chain, held)
            work.add_done_callback(lambda _: ended())
            done, _ = await asyncio.wait([work], timeout=self.load_seconds)
            if done:
                return work.result()
            self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
            thread.shutdown(wait=False)
            work.add_done_callback(self._drop_late)
        msg = (
            f"snapshot {hold.snapshot} of {hold.model}.{hold.part} was not loaded within {self.load_seconds:g} s "
            "(--load-seconds, IPNEXT_AGENT_LOAD_SECONDS)"
        )
        raise LoadFailed(msg)

    def _drop_late(self, work: asyncio.Future[ServedPart]) -> None:
        if not work.cancelled() and work.exception() is None:
            self.dispose(work.result())

    def _fetch_chain_now(self, hold: HostedSnapshot, fetched: LocalSnapshot, held: Mapping[str, LoadedPart]) -> Chain:
        return fetch_chain(self._open_store(), hold.uri, self._cache, fetched, held)

    def _fetch_now(self, hold: HostedSnapshot) -> LocalSnapshot:
        return fetch_assigned(self._open_store(), hold, self._cache)

    def _load_now(self, hold: HostedSnapshot, chain: Chain, held: Mapping[str, LoadedPart]) -> ServedPart:
        limits = batch_limits(hold.settings)
        engine = self._engine(hold.engine)
        self.memory.check(chain.needed_bytes, f"snapshot {hold.snapshot} of {hold.model}.{hold.part}")
        part = chain.load(engine, hold.settings, held)
        part.warm_up()
        self.memory.note_loaded(part.size_bytes, shares=bool(chain.deltas))
        if not self._served_before:
            self._before_serving()
            self._served_before = True
        return ServedPart(part, limits)

    def _close_now(self, served: ServedPart) -> None:
        size = served.size_bytes
        served.close()
        self.memory.note_closed(size)

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            self._engines[name] = self._find_engine(name)
        return self._engines[name]
