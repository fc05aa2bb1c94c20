"""Hot swaps of a host's engines.

An engine takes another snapshot of its part in the same process, or is restarted if it cannot. `weight_reload` has the
calls to one engine. This module decides which engine swaps to which snapshot, and handles the result.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import IPnextError, LoadFailed
from ipnext.model.deployment.engine_swap import EngineSwap, SwapState
from ipnext.model.deployment.footprint import needed_bytes
from ipnext.model.deployment.host_control import HeldGeneration, HostedSnapshot, HostFailure
from ipnext.model.value import canonical_json
from serving.genai.engine.supervisor import EngineSupervisor
from serving.genai.load_retries import load_with_retries
from serving.genai.weight_reload import ReloadSeconds, check_alike, check_alone, swap_weights
from serving.snapshots.fetch import LocalSnapshot, verify_snapshot
from serving.snapshots.held_snapshots import HeldSnapshots, HoldKey, SnapshotChanges, hold_key

Former = Mapping[EngineSupervisor, HostedSnapshot]
"""The hold of each engine before the desired set changed."""


@dataclass(slots=True)
class _Way:
    """An engine in a hot swap."""

    former: HostedSnapshot
    hold: HostedSnapshot
    fetched: LocalSnapshot | None
    """The snapshot of `hold`, if it was fetched in advance."""
    drain_seconds: float
    heir: HostedSnapshot | None = None
    """The newer target that supersedes `hold`, if any."""


class Swaps:
    """The hot swaps of one host. `arrive` fetches and checks a snapshot, `start` starts a separate engine for one."""

    def __init__(
        self,
        session: HttpSessions,
        held: HeldSnapshots[EngineSupervisor],
        *,
        arrive: Callable[[HostedSnapshot], Awaitable[LocalSnapshot]],
        start: Callable[[HostedSnapshot], Awaitable[None]],
    ) -> None:
        self._session = session
        self._held = held
        self._arrive = arrive
        self._start = start
        self._coming: HeldSnapshots[LocalSnapshot] = HeldSnapshots()
        self._ways: dict[EngineSupervisor, _Way] = {}
        self._told: dict[tuple[str, str, int], EngineSwap] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def prepare(self, coming: Sequence[HostedSnapshot]) -> None:
        """Fetch and check the snapshots of coming swaps; forget earlier ones that are not named."""
        for hold in self._coming.want(coming).load:
            self._run(load_with_retries(self._coming, hold, self._fetch))

    def take(
        self, changes: SnapshotChanges[EngineSupervisor], former: Former, *, drain_seconds: float
    ) -> SnapshotChanges[EngineSupervisor]:
        """Assign engines that are no longer desired to snapshots to load; return the changes that are left.

        `drain_seconds`: how long requests may continue with the weights that they began with.
        """
        load, close = [], list(changes.close)
        for hold in changes.load:
            leaving = next((engine for engine in close if hold.swap and _alike(former[engine], hold)), None)
            if leaving is not None:
                close.remove(leaving)
                self._ways[leaving] = _Way(former[leaving], hold, self._at_hand(hold), drain_seconds)
                self._run(self._hot_swap(leaving))
            elif not self._joins(hold):
                load.append(hold)
        return SnapshotChanges(tuple(load), tuple(close))

    @property
    def engines(self) -> tuple[EngineSupervisor, ...]:
        """The engines in a hot swap."""
        return tuple(self._ways)

    @property
    def fetched_digests(self) -> tuple[str, ...]:
        """Digests of coming snapshots that are fetched."""
        return tuple(hold.digest for hold, _ in self._coming.values)

    @property
    def loading(self) -> tuple[HeldGeneration, ...]:
        """Coming snapshots that are being fetched."""
        return self._coming.loading

    @property
    def failures(self) -> tuple[HostFailure, ...]:
        """Coming snapshots that could not be fetched."""
        return self._coming.failures

    @property
    def last_swaps(self) -> tuple[EngineSwap, ...]:
        """The last hot swap to each snapshot that is loaded or the target of a swap."""
        shown = {(hold.model, hold.part, hold.snapshot) for hold, _ in self._held.values}
        shown |= {(way.hold.model, way.hold.part, way.hold.snapshot) for way in self._ways.values()}
        return tuple(swap for place, swap in sorted(self._told.items()) if place in shown)

    def close(self) -> None:
        """Begin no further swaps; the owner of the engines stops those in a swap too."""
        for task in self._tasks:
            task.cancel()

    def _joins(self, hold: HostedSnapshot) -> bool:
        """Whether an engine in a swap can serve this hold: it is its target, or its target is no longer desired."""
        for way in self._ways.values():
            if hold_key(way.hold) == hold_key(hold):
                way.hold, way.heir = hold, None
                return True
        for way in self._ways.values():
            free = way.heir is None or not self._held.wants(way.heir)
            if hold.swap and free and not self._held.wants(way.hold) and _alike(way.hold, hold):
                way.heir = hold
                return True
        return False

    def _at_hand(self, hold: HostedSnapshot) -> LocalSnapshot | None:
        return next((found for known, found in self._coming.values if hold_key(known) == hold_key(hold)), None)

    def _run(self, steps: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(steps)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, hold: HostedSnapshot) -> None:
        self._coming.note_loaded(hold, await self._arrive(hold))

    async def _hot_swap(self, engine: EngineSupervisor) -> None:
        """Swap an engine until it has the snapshot desired of it."""
        way = self._ways[engine]
        while await self._swap_once(engine, way):
            if self._held.note_loaded(way.hold, engine):
                del self._ways[engine]
                return
            if way.heir is None:
                await engine.retire(way.drain_seconds)
                break
            way.former, way.hold, way.fetched, way.heir = way.hold, way.heir, None, None
        del self._ways[engine]
        for hold in (way.hold, way.heir):
            if hold is not None and self._held.wants(hold):
                await self._start(hold)

    async def _swap_once(self, engine: EngineSupervisor, way: _Way) -> bool:
        """Swap once; return whether the engine has the snapshot now.

        If the swap failed, the engine has been stopped.
        """
        hold, began = way.hold, time.monotonic()
        log = structlog.get_logger().bind(
            model=hold.model, part=hold.part, former=way.former.snapshot, snapshot=hold.snapshot
        )
        self._note(way, "swapping")
        try:
            fetched = way.fetched or await self._arrive(hold)
            told = await self._swap(engine, fetched._replace(is_guarded=hold.is_guarded), way.drain_seconds)
        except IPnextError as error:
            log.warning("engine could not go over, started anew", reason=error.message)
            await engine.stop()
            self._note(way, "started_anew", seconds=time.monotonic() - began, message=error.message)
            return False
        log.info("engine went over", url=engine.url, pause_seconds=told.pause_seconds, seconds=told.seconds)
        self._note(way, "swapped", seconds=time.monotonic() - began)
        return True

    async def _swap(self, engine: EngineSupervisor, new: LocalSnapshot, drain_seconds: float) -> ReloadSeconds:
        spec = engine.spec
        if not spec.swap or spec.checkpoint is None:
            msg = "it was started without the routes that change weights (rollout.refresh was not 'swap' then)"
            raise LoadFailed(msg)
        if not engine.up:
            msg = f"it is not up: {engine.message or 'it starts'}"
            raise LoadFailed(msg)
        if spec.settings.kv_transfer is not None:
            msg = "it hands keys and values over, which have to be of the same weights on both sides"
            raise LoadFailed(msg)
        await asyncio.to_thread(verify_snapshot, new)
        await asyncio.to_thread(check_alike, spec.snapshot, new)
        await check_alone(self._session, engine.url, spec.names)
        told = await swap_weights(
            self._session,
            engine.url,
            spec.model,
            running=spec.checkpoint,
            new=new,
            settings=spec.settings,
            drain_seconds=drain_seconds,
        )
        needed = needed_bytes(new.manifest) + spec.settings.kv_cache_bytes
        engine.spec = replace(spec, snapshot=new, needed_bytes=needed)
        return told

    def _note(self, way: _Way, state: SwapState, *, seconds: float = 0.0, message: str | None = None) -> None:
        hold = way.hold
        self._told[hold.model, hold.part, hold.snapshot] = EngineSwap(
            model=hold.model,
            part=hold.part,
            former=way.former.snapshot,
            snapshot=hold.snapshot,
            state=state,
            seconds=seconds,
            message=message,
        )


def _alike(former: HostedSnapshot, hold: HostedSnapshot) -> bool:
    """Whether an engine of one hold might swap to the other: the same part and settings."""
    return _place(former) == _place(hold)


def _place(hold: HostedSnapshot) -> HoldKey:
    return HoldKey(hold.model, hold.part, 0, "", hold.engine, canonical_json(dict(hold.settings)))
