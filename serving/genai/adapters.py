"""The adapters of one host: each is fetched once and loaded into every engine of its base part while it is desired.

A generation is complete on an engine once all its adapters are loaded there and each has answered a request.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import structlog

from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import ArtifactError, LoadFailed, Unavailable
from ipnext.model.deployment.host_control import HeldGeneration, HostedSnapshot, HostFailure
from ipnext.model.registry.adapter import adapter_in, engine_name
from serving.genai.checkpoint_check import verify_adapter
from serving.genai.engine.probe import EngineProbe
from serving.genai.engine.supervisor import EngineSupervisor
from serving.genai.weight_reload import load_adapter, unload_adapter
from serving.snapshots.fetch import LocalSnapshot, verify_snapshot
from serving.snapshots.held_snapshots import HeldSnapshots

_RETRY_SECONDS = 1.0
"""Wait before the calls to an engine that did not answer are repeated."""


class EngineAdapters:
    """The adapters in one engine, by their names there. Reset at each start of its process."""

    def __init__(self, session: HttpSessions, engine: EngineSupervisor) -> None:
        self.wanted: Mapping[str, LocalSnapshot] = {}
        self.loaded: set[str] = set()
        """Adapters that have answered a request."""
        self.failed: dict[str, str] = {}
        """Name -> cause of a failed load; not retried before the next start."""
        self._session = session
        self._engine = engine
        self._there: set[str] = set()
        """Adapters that the process was requested to load."""
        self._url = ""
        """URL of the process that the state applies to; empty before one is up."""
        self._one_at_a_time = asyncio.Lock()

    async def load_all(self) -> None:
        """Load the desired adapters into a new process, which has none. Unavailable if it does not answer."""
        async with self._one_at_a_time:
            self._url = self._engine.url
            self.loaded, self.failed, self._there = set(), {}, set()
            await self._bring()

    async def follow(self) -> None:
        """Reconcile a running process with the desired adapters. A process that is starting is left to `load_all`."""
        while self._url and self._url == self._engine.url:
            async with self._one_at_a_time:
                try:
                    if self._url == self._engine.url:
                        await self._bring()
                except Unavailable as error:
                    structlog.get_logger().warning("adapters are tried again", reason=error.message)
                else:
                    return
            await asyncio.sleep(_RETRY_SECONDS)

    async def _bring(self) -> None:
        self.failed = {name: why for name, why in self.failed.items() if name in self.wanted}
        for name in sorted(self._there - self.wanted.keys()):
            await self._unload(name)
        for name, fetched in sorted(self.wanted.items()):
            if name not in self.loaded and name not in self.failed:
                await self._load(name, fetched)

    async def _load(self, name: str, fetched: LocalSnapshot) -> None:
        spec, log = self._engine.spec, structlog.get_logger().bind(adapter=name, engine=self._engine.spec.log.engine)
        try:
            directory = await asyncio.to_thread(verify_snapshot, fetched)
            await asyncio.to_thread(verify_adapter, fetched, spec.snapshot.directory, spec.settings)
            again = name in self._there
            self._there.add(name)
            there = adapter_in(name, spec.answers_as)
            await load_adapter(self._session, self._url, there, directory, again=again)
            probe = EngineProbe(self._session, self._url, there)
            await probe.canary(pooling=spec.settings.runner == "pooling", seconds=spec.settings.start_seconds)
        except (ArtifactError, LoadFailed) as error:
            log.error("adapter not loaded", reason=error.message)  # noqa: TRY400 - the reason says all
            self.failed[name] = error.message
            return
        self.loaded.add(name)
        log.info("adapter loaded")

    async def _unload(self, name: str) -> None:
        """Unload an adapter.

        Its running requests continue: vLLM forgets the name, and drops the weights once it needs their slot.
        """
        self.loaded.discard(name)
        try:
            await unload_adapter(self._session, self._url, adapter_in(name, self._engine.spec.answers_as))
        except LoadFailed as error:
            structlog.get_logger().warning("adapter not unloaded", adapter=name, reason=error.message)
        self._there.discard(name)


class Adapters:
    """All adapters that a host must hold, and the engines that have them loaded."""

    def __init__(self, session: HttpSessions) -> None:
        self.held: HeldSnapshots[LocalSnapshot] = HeldSnapshots()
        self._session = session
        self._holds: tuple[HostedSnapshot, ...] = ()
        self._engines: dict[EngineSupervisor, EngineAdapters] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def want(self, holds: Sequence[HostedSnapshot]) -> Sequence[HostedSnapshot]:
        """Replace the desired set; return the adapters to fetch. `follow` reconciles the engines."""
        self._holds = tuple(holds)
        return self.held.want(holds).load

    def attach(self, engine: EngineSupervisor) -> None:
        """Register an engine before it starts, so that each of its processes loads its adapters before it is ready."""
        beside = self._engines[engine] = EngineAdapters(self._session, engine)
        engine.before_ready = beside.load_all

    def follow(self, engines: Sequence[tuple[HostedSnapshot, EngineSupervisor]]) -> None:
        """Load missing adapters into these engines and unload surplus ones, in the background.

        Forget all other engines.
        """
        self._engines = {engine: self._engines[engine] for _, engine in engines if engine in self._engines}
        for hold, engine in engines:
            beside = self._engines.get(engine)
            if beside is None or not hold.adapters:
                continue
            beside.wanted = {
                engine_name(h.part, h.digest): fetched._replace(is_guarded=h.is_guarded)
                for h, fetched in self.held.values
                if _on(h, hold)
            }
            task = asyncio.create_task(beside.follow(), name=f"adapters of {engine.spec.log.engine}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop reconciling."""
        for task in self._tasks:
            task.cancel()

    def complete(self, hold: HostedSnapshot, engine: EngineSupervisor) -> HostedSnapshot:
        """Return an engine's hold, limited to generations whose adapters are all loaded."""
        whole = (g for g in hold.generations if len(self._find_loaded(hold, engine, g)) == hold.adapters)
        return hold.model_copy(update={"generations": tuple(whole)})

    def ready(self, complete: HostedSnapshot) -> Iterator[HeldGeneration]:
        """Yield the adapters of complete generations."""
        for generation in complete.generations:
            yield from (
                _make_held(adapter, generation) for adapter in self._holds if _on(adapter, complete, generation)
            )

    def loading(self, hold: HostedSnapshot, engine: EngineSupervisor) -> Iterator[HeldGeneration]:
        """Yield adapters that are fetched but not yet in the engine. Those being fetched are in `held.loading`."""
        beside = self._engines.get(engine)
        waiting = beside.wanted.keys() - beside.loaded - beside.failed.keys() if beside else ()
        for adapter in self._holds:
            if engine_name(adapter.part, adapter.digest) in waiting and _on(adapter, hold):
                yield from (_make_held(adapter, generation) for generation in adapter.generations)

    def failures(self, hold: HostedSnapshot, engine: EngineSupervisor) -> Iterator[HostFailure]:
        """Yield adapters that the engine failed to load."""
        beside = self._engines.get(engine)
        for adapter in self._holds:
            why = (
                beside.failed.get(engine_name(adapter.part, adapter.digest)) if beside and _on(adapter, hold) else None
            )
            if why is not None:
                yield HostFailure(
                    model=adapter.model,
                    part=adapter.part,
                    snapshot=adapter.snapshot,
                    generations=adapter.generations,
                    code=LoadFailed.code,
                    message=(
                        f"snapshot {adapter.snapshot} of {adapter.model}.{adapter.part} on {hold.part} "
                        f"{hold.snapshot}: {why}"
                    ),
                )

    def _find_loaded(self, hold: HostedSnapshot, engine: EngineSupervisor, generation: int) -> list[HostedSnapshot]:
        beside = self._engines.get(engine)
        names = beside.loaded if beside else set()
        wanted = (adapter for adapter in self._holds if _on(adapter, hold, generation))
        return [adapter for adapter in wanted if engine_name(adapter.part, adapter.digest) in names]


def _on(adapter: HostedSnapshot, base: HostedSnapshot, generation: int | None = None) -> bool:
    """Whether an adapter belongs to a base part, in a generation or in any."""
    both = {*adapter.generations} & {*base.generations}
    same = (adapter.model, adapter.adapter_of) == (base.model, base.part)
    return same and (bool(both) if generation is None else generation in both)


def _make_held(adapter: HostedSnapshot, generation: int) -> HeldGeneration:
    return HeldGeneration(model=adapter.model, part=adapter.part, generation=generation, snapshot=adapter.snapshot)
