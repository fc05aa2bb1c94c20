"""Reconciles a host's engines with the desired set: fetch, check the checkpoint, check memory, start; drain and stop.

A snapshot is `loaded` as soon as its engine is supervised. It serves once the engine is ready.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import LoadFailed, MemoryExceeded
from ipnext.model.deployment.deployment import STREAM_DRAIN_SECONDS
from ipnext.model.deployment.engine_start import EngineStart, StartStage
from ipnext.model.deployment.engine_swap import EngineSwap
from ipnext.model.deployment.footprint import needed_bytes, weight_bytes
from ipnext.model.deployment.host_control import HeldGeneration, HostedSnapshot, HostFailure, SnapshotMemory
from ipnext.model.registry.adapter import answering_name
from ipnext.model.settings.engine import VllmSettings, vllm_settings
from ipnext.model.settings.engine_allowances import NO_ALLOWANCES, EngineAllowances
from serving.genai.adapters import Adapters
from serving.genai.command_line.vllm_command import with_adapters
from serving.genai.engine.enclosure import Enclosures
from serving.genai.engine.log import EngineLog, EngineLogs, OpenLog
from serving.genai.engine.shared_storage import SharedStorage
from serving.genai.engine.supervisor import EngineSpec, EngineSupervisor, Probes, SupervisorPace
from serving.genai.hot_swap import Swaps
from serving.genai.load_retries import load_with_retries
from serving.snapshots.fetch import LocalSnapshot, fetch_assigned, verify_snapshot
from serving.snapshots.fetch_process import Fetcher
from serving.snapshots.held_snapshots import HeldSnapshots, check_holds
from serving.snapshots.memory_budget import resident_bytes

Check = Callable[[LocalSnapshot, VllmSettings], None]
"""Raises LoadFailed if a checkpoint differs from its declaration, or its settings do not fit it."""


class _Arrival:
    """A snapshot that has no engine yet."""

    def __init__(self, hold: HostedSnapshot) -> None:
        self.hold = hold
        self.enter("fetching")

    def enter(self, stage: StartStage) -> None:
        """Enter a stage of the start."""
        self.stage, self.since = stage, time.monotonic()


class EngineManager:
    """The engines of one host. Its methods run in the event loop; fetching and checking in a thread."""

    def __init__(  # noqa: PLR0913 - the composition root passes each by name
        self,
        store: Fetcher,
        cache: Path,
        probes: Probes,
        *,
        host_id: str,
        check: Check,
        adapters: Adapters,
        session: HttpSessions,
        budget_bytes: int | None = None,
        pace: SupervisorPace | None = None,
        transfer: Path | None = None,
        sockets: Path | None = None,
        allowances: EngineAllowances = NO_ALLOWANCES,
        inherited: tuple[str, ...] = (),
        enclosures: Enclosures | None = None,
        begin_log: OpenLog | None = None,
    ) -> None:
        self.held: HeldSnapshots[EngineSupervisor] = HeldSnapshots()
        self.budget_bytes = budget_bytes
        self._store = store
        self._cache = cache
        self._probes = probes
        self._check = check
        self._adapters = adapters
        self._pace = pace
        self._sockets = sockets
        self._transfer = transfer or transfer_directory(cache)
        self._enclosures = enclosures
        self._logs = EngineLogs(log_directory(cache), host_id)
        self._begin_log = begin_log or self._logs.begin
        self._allowances = allowances
        self._inherited = inherited
        self._weights: dict[str, int] = {}
        self._retiring: dict[asyncio.Task[None], EngineSupervisor] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._arriving: list[_Arrival] = []
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="fetching")
        self._swaps = Swaps(session, self.held, arrive=self._arrive, start=self._load)

    def hold(
        self,
        holds: Sequence[HostedSnapshot],
        coming: Sequence[HostedSnapshot] = (),
        *,
        drain_seconds: float = STREAM_DRAIN_SECONDS,
    ) -> None:
        """Make `holds` the desired set, fetch the `coming` snapshots, and return at once.

        InvalidInput leaves the former set in force. `drain_seconds`: how long requests may continue on snapshots that
        are no longer desired.
        """
        check_holds(holds)
        former = {engine: hold for hold, engine in self.held.values}
        changes = self.held.want([hold for hold in holds if hold.adapter_of is None])
        changes = self._swaps.take(changes, former, drain_seconds=drain_seconds)
        self._swaps.prepare([hold for hold in coming if hold.adapter_of is None])
        for engine in changes.close:
            task = asyncio.create_task(engine.retire(drain_seconds))
            self._retiring[task] = engine
            task.add_done_callback(self._retiring.pop)
        for hold in changes.load:
            self._begin(self._load(hold), hold)
        for hold in self._adapters.want([hold for hold in holds if hold.adapter_of is not None]):
            self._begin(load_with_retries(self._adapters.held, hold, self._fetch_adapter), hold)
        self._adapters.follow(self.held.values)
        for hold, engine in self.held.values:
            engine.guard(is_guarded=hold.is_guarded)

    def _begin(self, loading: Coroutine[None, None, None], hold: HostedSnapshot) -> None:
        load = asyncio.create_task(loading, name=hold.digest)
        self._loads.add(load)
        load.add_done_callback(self._loads.discard)

    async def close(self) -> None:
        """Stop all engines; return when none is left."""
        for load in self._loads:
            load.cancel()
        self._adapters.close()
        self._swaps.close()
        self._fetching.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(engine.stop() for engine in self._all))

    @property
    def ready(self) -> tuple[HeldGeneration, ...]:
        """Generations whose engine answers and has all their adapters, with its URL; and those adapters."""
        whole = [(self._adapters.complete(hold, engine), engine) for hold, engine in self.held.values if engine.ready]
        own = (g for hold, engine in whole for g in _generations(hold, engine.url, engine.spec.answers_as))
        return (*own, *(g for hold, _ in whole for g in self._adapters.ready(hold)))

    @property
    def loading(self) -> tuple[HeldGeneration, ...]:
        """Generations that are being fetched, or whose engine starts for the first time."""
        starting = ((hold, engine) for hold, engine in self.held.values if not engine.ready and not engine.message)
        adapters = (g for hold, engine in self.held.values for g in self._adapters.loading(hold, engine))
        own = (g for hold, _ in starting for g in _generations(hold, None))
        return (*self.held.loading, *self._swaps.loading, *self._adapters.held.loading, *own, *adapters)

    @property
    def failures(self) -> tuple[HostFailure, ...]:
        """Snapshots that failed to load, and engines that died and are not back."""
        adapters = (f for hold, engine in self.held.values for f in self._adapters.failures(hold, engine))
        return (*self.held.failures, *self._swaps.failures, *self._adapters.held.failures, *self._dead(), *adapters)

    @property
    def fetched_digests(self) -> tuple[str, ...]:
        """Digests of coming snapshots that are fetched."""
        return self._swaps.fetched_digests

    @property
    def swaps(self) -> tuple[EngineSwap, ...]:
        """The result of the last hot swap to each snapshot."""
        return self._swaps.last_swaps

    @property
    def starts(self) -> tuple[EngineStart, ...]:
        """Progress of the starts that are not ready yet."""
        return (*self._arrivals(), *self._starting())

    async def in_flight(self) -> int:
        """Return the current requests of all engines, including those that drain."""
        return sum(await asyncio.gather(*(engine.sample() for engine in self._all)))

    @property
    def in_flight_before(self) -> int:
        """Requests of all engines, as last sampled."""
        return sum(engine.in_flight for engine in self._all)

    @property
    def used_bytes(self) -> int:
        """Memory of this process and of all engines, as last measured."""
        return resident_bytes() + sum(engine.resident_bytes for engine in self._all)

    @property
    def snapshots(self) -> tuple[SnapshotMemory, ...]:
        """The loaded snapshots, with the size of their weights."""
        own = ((hold, self._weights.get(hold.digest, 0)) for hold, _ in self.held.values)
        beside = ((hold, weight_bytes(fetched.manifest)) for hold, fetched in self._adapters.held.values)
        return tuple(
            SnapshotMemory(model=h.model, part=h.part, snapshot=h.snapshot, size_bytes=size)
            for h, size in (*own, *beside)
        )

    @property
    def _all(self) -> tuple[EngineSupervisor, ...]:
        return (*(engine for _, engine in self.held.values), *self._swaps.engines, *self._retiring.values())

    def _dead(self) -> Iterator[HostFailure]:
        for hold, engine in self.held.values:
            if not engine.ready and engine.message:
                yield HostFailure(
                    model=hold.model,
                    part=hold.part,
                    snapshot=hold.snapshot,
                    generations=hold.generations,
                    code=LoadFailed.code,
                    message=f"engine of snapshot {hold.snapshot} of {hold.model}.{hold.part}: {engine.message}",
                )

    def _arrivals(self) -> Iterator[EngineStart]:
        for one in self._arriving:
            if self.held.wants(one.hold):
                seconds = time.monotonic() - one.since
                yield EngineStart(part=one.hold.part, snapshot=one.hold.snapshot, stage=one.stage, seconds=seconds)

    def _starting(self) -> Iterator[EngineStart]:
        for hold, engine in self.held.values:
            if engine.start_stage is not None:
                yield EngineStart(
                    part=hold.part,
                    snapshot=hold.snapshot,
                    stage=engine.start_stage,
                    seconds=engine.stage_seconds,
                    output=engine.spec.log.last_line or None,
                )

    async def _load(self, hold: HostedSnapshot) -> None:
        arrival = _Arrival(hold)
        self._arriving.append(arrival)
        try:
            await load_with_retries(self.held, hold, partial(self._start, arrival))
        finally:
            self._arriving.remove(arrival)

    async def _start(self, arrival: _Arrival, hold: HostedSnapshot) -> None:
        settings = _settings(hold, self._allowances)
        arrival.enter("fetching")
        fetched = await self._arrive(hold)
        arrival.enter("waiting")
        needed = needed_bytes(fetched.manifest) + settings.kv_cache_bytes
        await self._room(needed, f"snapshot {hold.snapshot} of {hold.model}.{hold.part}")
        if not self.held.wants(hold):
            return
        await asyncio.get_running_loop().run_in_executor(self._fetching, verify_snapshot, fetched)
        spec = EngineSpec(
            model=hold.model,
            snapshot=fetched,
            settings=settings,
            log=self._log(hold),
            needed_bytes=needed,
            storage=self._storage(hold, settings),
            swap=hold.swap,
            inherited=self._inherited,
            sockets=self._sockets,
            name=answering_name(hold.model, hold.digest, secrets.token_hex(4) if hold.swap else ""),
            enclosure=None if self._enclosures is None else self._enclosures.enclosure(secrets.token_hex(4)),
            cache=self._cache.absolute() if hold.swap or hold.adapters else None,
        )
        engine = EngineSupervisor(spec, self._probes, pace=self._pace)
        if self.held.note_loaded(hold, engine):
            self._adapters.attach(engine)
            self._adapters.follow(self.held.values)
            engine.start()

    async def _fetch_adapter(self, hold: HostedSnapshot) -> None:
        loop = asyncio.get_running_loop()
        fetched = await loop.run_in_executor(self._fetching, fetch_assigned, self._store, hold, self._cache)
        if self._adapters.held.note_loaded(hold, fetched):
            self._adapters.follow(self.held.values)

    def _storage(self, hold: HostedSnapshot, settings: VllmSettings) -> SharedStorage | None:
        """Return the storage shared by engines of the same checkpoint and dtype: the files identify neither."""
        if settings.kv_transfer is None or settings.kv_transfer.connector != "example":
            return None
        return SharedStorage(self._transfer / f"{hold.digest}-{settings.dtype}")

    async def _arrive(self, hold: HostedSnapshot) -> LocalSnapshot:
        loop = asyncio.get_running_loop()
        fetched = await loop.run_in_executor(
            self._fetching, self._fetch_assigned, hold, _settings(hold, self._allowances)
        )
        self._weights[hold.digest] = weight_bytes(fetched.manifest)
        return fetched

    def _fetch_assigned(self, hold: HostedSnapshot, settings: VllmSettings) -> LocalSnapshot:
        fetched = fetch_assigned(self._store, hold, self._cache)
        self._check(fetched, settings)
        return fetched

    async def _room(self, needed: int, subject: str) -> None:
        """Wait for draining engines if only they take up the memory.

        MemoryExceeded if there is too little without them.
        """
        while self._retiring and not self._fits(needed):
            await asyncio.wait(tuple(self._retiring), return_when=asyncio.FIRST_COMPLETED)
        if not self._fits(needed):
            used, budget = self._expected_bytes, self.budget_bytes or 0
            msg = (
                f"{subject} needs about {needed / 1e6:,.0f} MB; {used / 1e6:,.0f} MB of the host's "
                f"{budget / 1e6:,.0f} MB "
                "are in use. Raise memoryBytes, lower kvCacheGib, or refresh by replacing (rollout.refresh)"
            )
            raise MemoryExceeded(msg, needed=needed, used=used, budget=budget)

    def _fits(self, needed: int) -> bool:
        return self.budget_bytes is None or self._expected_bytes + needed <= self.budget_bytes

    @property
    def _expected_bytes(self) -> int:
        """Expected memory of this process and all engines: an engine that starts has not allocated all of it yet."""
        engines = sum(max(engine.resident_bytes, engine.spec.needed_bytes) for engine in self._all)
        return resident_bytes() + engines

    def _log(self, hold: HostedSnapshot) -> EngineLog:
        """Create the engine's log; the name of a second engine of the same snapshot gets a number."""
        taken = {engine.spec.log.name for engine in self._all}
        suffixes = ("", *(f"-{number}" for number in range(2, len(taken) + 3)))
        names = (self._logs.name(hold.digest, suffix) for suffix in suffixes)
        return EngineLog(next(name for name in names if name not in taken), self._begin_log)


def log_directory(cache: Path) -> Path:
    """Return the directory of the engines' logs, next to the cache."""
    return cache.parent / "logs"


def transfer_directory(cache: Path) -> Path:
    """Return the default directory that prefill and decode engines share."""
    return cache.parent / "transfer"


def _settings(hold: HostedSnapshot, allowances: EngineAllowances) -> VllmSettings:
    try:
        settings = vllm_settings(hold.settings)
        allowances.check(settings)
        return with_adapters(settings, hold.adapters)
    except ValueError as error:
        raise LoadFailed(str(error)) from error


def _generations(hold: HostedSnapshot, url: str | None, answers_as: str | None = None) -> Iterator[HeldGeneration]:
    for generation in hold.generations:
        yield HeldGeneration(
            model=hold.model,
            part=hold.part,
            generation=generation,
            snapshot=hold.snapshot,
            url=url,
            answers_as=answers_as,
        )
