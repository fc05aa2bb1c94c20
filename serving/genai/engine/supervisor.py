"""Supervision of one engine of one snapshot: start, readiness, health checks, restarts, drain, stop."""

import asyncio
import os
import secrets
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog
from landlockpy import Ruleset

from ipnext.components.private_files import make_private_directory
from ipnext.components.sockets import SUFFIX, socket_url
from ipnext.errors import IPnextError, LoadFailed, Unavailable
from ipnext.model.deployment.engine_start import StartStage
from ipnext.model.registry.checkpoint import Checkpoint
from ipnext.model.settings.engine import VllmSettings
from serving.genai.command_line.vllm_command import engine_command, engine_environment, takes_name, takes_socket
from serving.genai.engine.enclosure import PORTS, Enclosure, engine_ports
from serving.genai.engine.log import EngineLog
from serving.genai.engine.probe import EngineProbe
from serving.genai.engine.process import ReapedProcess, ending, tree_bytes
from serving.genai.engine.shared_storage import SharedStorage
from serving.snapshots.fetch import LocalSnapshot, verify_snapshot

LOOPBACK: Final = "127.0.0.1"
_SOCKETS: Final = "e"
"""Directory of the engines' sockets, within that of the host's. Short: the kernel limits a socket's path to
107 bytes."""

Probes = Callable[[str, str], EngineProbe]
"""Makes the probe of an engine at a URL, for a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Configuration of an engine."""

    model: str
    snapshot: LocalSnapshot
    settings: VllmSettings
    log: EngineLog
    needed_bytes: int = 0
    """Memory that it is expected to take."""
    storage: SharedStorage | None = None
    """Storage shared with the other part, if prefill and decode transfer keys and values by files."""
    swap: bool = False
    """Whether its own socket has the routes that change its weights."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    inherited: tuple[str, ...] = ()
    """Variables that it gets of this environment, in addition to the listed ones."""
    sockets: Path | None = None
    """Directory for its Unix socket; None: it listens on a loopback port."""
    name: str | None = None
    """The `model` that it must write into its answers."""
    enclosure: Enclosure | None = None
    """Its confinement; None: it is not confined."""
    cache: Path | None = None
    """Directory of snapshots that it loads while it runs: other weights, or adapters."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Facts about its checkpoint, if its manifest has them."""
        return self.snapshot.manifest.checkpoint

    @property
    def answers_as(self) -> str | None:
        """The `model` that it writes into its answers; None if its command does not set it."""
        return self.name if takes_name(self.environment) else None

    @property
    def names(self) -> frozenset[str]:
        """All names under which it serves its model."""
        return frozenset({self.model, self.answers_as or self.model})

    def address(self) -> int | Path:
        """Return the address of one start: a socket path in a new directory, or a port if it listens on one."""
        if self.sockets is None or not takes_socket(self.environment):
            return free_port()
        return engine_sockets(self.sockets) / secrets.token_hex(3) / f"e{SUFFIX}"

    def command(self, address: int | Path) -> Sequence[str]:
        """Return the command line of one start."""
        storage = self.storage.directory if self.storage else None
        return engine_command(
            self.model,
            self.snapshot.directory,
            address,
            self.settings,
            environment=self.environment,
            storage=storage,
            answers_as=self.answers_as,
        )

    def ruleset(self, address: int | Path, side_port: int) -> Ruleset | None:
        """Return the ruleset that confines one start; None: unconfined. The caller closes it.

        Errors as `Enclosure.ruleset`.
        """
        if self.enclosure is None:
            return None
        return self.enclosure.ruleset(
            self.environment,
            readable=(self.cache or self.snapshot.directory,),
            writable=(
                *((address.parent,) if isinstance(address, Path) else ()),
                *((self.storage.directory,) if self.storage else ()),
            ),
            ports=engine_ports(self.settings, address, side_port=side_port),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorPace:
    """Intervals of health checks and restarts, in seconds."""

    poll: float = 0.25
    """Between two health checks while it starts, and two samples of its requests while it drains."""
    watch: float = 1.0
    """Between two checks of a serving engine."""
    sample: float = 1.0
    """Longest wait for a count of its requests: below the agent's timeout for a host's state."""
    unanswered: float = 15.0
    """Silence after which an engine is no longer ready."""
    hung: float = 120.0
    """Silence after which an engine is killed."""
    first_pause: float = 1.0
    """Wait before the first restart; doubles with each further one."""
    longest_pause: float = 60.0
    steady: float = 60.0
    """Ready time after which an engine's next restart waits only the first pause again."""


class EngineSupervisor:
    """Keeps one engine running. `ready` from its first good answer until it dies or is retired."""

    def __init__(self, spec: EngineSpec, probes: Probes, *, pace: SupervisorPace | None = None) -> None:
        self.spec = spec
        self.ready = False
        self.retiring = False
        self.message: str | None = None
        """Cause of the last end, with the last lines of its log; None once it is ready."""
        self.restarts = 0
        self.in_flight = 0
        """Requests, as last sampled."""
        self.resident_bytes = 0
        """Memory in RAM of all its processes, as last measured."""
        self.url = ""
        self.start_stage: StartStage | None = None
        """Stage of its start; None before and after."""
        self.before_ready: Callable[[], Awaitable[None]] | None = None
        """Called for each process after its first answer, before it is ready; Unavailable or LoadFailed ends the
        process."""
        self._probes = probes
        self._pace = pace or SupervisorPace()
        self._process: ReapedProcess | None = None
        self._ready_at = self._answered_at = self._stage_at = 0.0
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of its reaper while it runs."""
        return self._process.pid if self._process else None

    @property
    def stage_seconds(self) -> float:
        """Seconds since it entered `start_stage`."""
        return time.monotonic() - self._stage_at

    def guard(self, *, is_guarded: bool) -> None:
        """Set whether restarts hash the files of its snapshot: its model may name signers since its start."""
        if self.spec.snapshot.is_guarded != is_guarded:
            self.spec = replace(self.spec, snapshot=self.spec.snapshot._replace(is_guarded=is_guarded))

    def start(self) -> None:
        """Start supervision."""
        self._task = asyncio.create_task(self._keep_running(), name=f"engine {self.spec.log.engine}")

    async def sample(self) -> int:
        """Return the current number of its requests.

        If it does not report in time it counts as busy, since it may well be.
        """
        if self._process is None or not self._ready_at:
            return self.in_flight
        try:
            async with asyncio.timeout(self._pace.sample):
                self.in_flight = await self._probe.in_flight()
        except (Unavailable, TimeoutError):
            return max(1, self.in_flight)
        return self.in_flight

    @property
    def up(self) -> bool:
        """Whether its process runs and has given a good answer."""
        return self._process is not None and self._ready_at > 0

    async def retire(self, drain_seconds: float) -> None:
        """Become unready, wait up to `drain_seconds` for running requests, then stop."""
        self.retiring, was_ready, self.ready = True, self.ready, False
        deadline = time.monotonic() + drain_seconds
        while was_ready and self._process is not None and time.monotonic() < deadline:
            if await self.sample() == 0:
                break
            await asyncio.sleep(self._pace.poll)
        await self.stop()

    async def stop(self) -> None:
        """Send SIGTERM, then SIGKILL after the grace time; return when none of its processes is left."""
        self._ending.set()
        self.ready = False
        if self._task is not None:
            await asyncio.wait([self._task])

    @property
    def _probe(self) -> EngineProbe:
        return self._probes(self.url, self.spec.answers_as or self.spec.model)

    async def _keep_running(self) -> None:
        try:
            await self._run_forever()
        finally:
            if self.spec.storage is not None:
                await asyncio.to_thread(self.spec.storage.release)
            if self.spec.enclosure is not None:
                await asyncio.to_thread(self.spec.enclosure.remove)
            self.spec.log.close()

    async def _run_forever(self) -> None:
        pause = self._pace.first_pause
        while not self._ending.is_set():
            self._ready_at = 0.0
            reason = await self._run_once()
            if self._ending.is_set():
                return
            lived = time.monotonic() - self._ready_at if self._ready_at else 0.0
            pause = self._pace.first_pause if lived > self._pace.steady else pause
            self.message = f"{reason}; starting it again; last output: {self.spec.log.tail or 'none'}"
            structlog.get_logger().error("engine ended", engine=self.spec.log.engine, reason=reason, pause=pause)
            self.restarts += 1
            await self._rest(pause)
            pause = min(2 * pause, self._pace.longest_pause)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    async def _run_once(self) -> str:
        """Run one process of the engine until it ends; return the reason."""
        address = self.spec.address()
        try:
            self._process = process = await self._spawn(address)
        except (OSError, IPnextError) as error:
            return f"could not be started: {error}"
        self.url = socket_url(address) if isinstance(address, Path) else f"http://{LOOPBACK}:{address}"
        self._answered_at = time.monotonic()
        ended, watch = asyncio.create_task(process.wait_end()), asyncio.create_task(self._watch())
        tasks: list[asyncio.Task[Any]] = [ended, watch, asyncio.create_task(self._ending.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return await self._over(process, ended, watch)
        finally:
            self.ready, self._process, self.in_flight, self.url = False, None, 0, ""
            self.resident_bytes, self.start_stage = 0, None
            for task in tasks:
                task.cancel()
            if isinstance(address, Path):
                shutil.rmtree(address.parent, ignore_errors=True)

    async def _spawn(self, address: int | Path) -> ReapedProcess:
        spec, side_port = self.spec, free_port()
        if self.restarts:  # its manager has just verified the first start
            await asyncio.to_thread(verify_snapshot, spec.snapshot)
        log = spec.log.begin()
        if spec.storage is not None:
            await asyncio.to_thread(spec.storage.take)
        if isinstance(address, Path):
            make_private_directory(address.parent)
        command = spec.command(address)
        environment = engine_environment(
            spec.settings, spec.environment, side_port=side_port, swap=spec.swap, allowed=spec.inherited
        )
        if spec.enclosure is not None:
            await asyncio.to_thread(spec.enclosure.prepare)
            environment = spec.enclosure.environment(environment)
        with await asyncio.to_thread(spec.ruleset, address, side_port) or nullcontext() as ruleset:
            own = None if spec.enclosure is None else spec.enclosure.directory
            return await ReapedProcess.spawn(command, environment, log, ruleset=ruleset, remove=own)

    async def _over(self, process: ReapedProcess, ended: asyncio.Task[int], watch: asyncio.Task[str]) -> str:
        self.ready = False
        if ended.done():
            return ending(ended.result())
        await process.end(self.spec.settings.grace_seconds)
        return watch.result() if watch.done() else "was ended"

    async def _watch(self) -> str:
        """Wait until it is ready, then check it at intervals. Returns the reason why it must be ended."""
        settings = self.spec.settings
        try:
            async with asyncio.timeout(settings.start_seconds):
                self._enter("loading")
                await self._healthy()
                self._enter("canary")
                await self._probe.canary(pooling=settings.runner == "pooling", seconds=settings.start_seconds)
                if self.before_ready is not None:
                    self._enter("adapters")
                    await self.before_ready()
        except TimeoutError:
            return f"was not ready within startSeconds, {settings.start_seconds:g} s"
        except (LoadFailed, Unavailable) as error:
            return error.message
        self._become_ready()
        while (silent := time.monotonic() - self._answered_at) < self._pace.hung:
            self.ready = not self.retiring and silent < self._pace.unanswered
            await self._measure()
            await asyncio.sleep(self._pace.watch)
            await self.sample()
            with suppress(Unavailable):
                status = await self._probe.health()
                if status != 200:
                    return f"/health answered {status}: its engine is dead"
                self._answered_at = time.monotonic()
        return f"did not answer for {silent:.0f} s"

    def _enter(self, stage: StartStage) -> None:
        self.start_stage, self._stage_at = stage, time.monotonic()

    async def _healthy(self) -> None:
        """Return once `/health` answers 200."""
        while True:
            with suppress(Unavailable):  # it does not listen yet
                if await self._probe.health() == 200:
                    return
            await asyncio.sleep(self._pace.poll)

    async def _measure(self) -> None:
        if self._process is not None:
            self.resident_bytes = await asyncio.to_thread(tree_bytes, self._process.pid)

    def _become_ready(self) -> None:
        self._ready_at = self._answered_at = time.monotonic()
        self.message = self.start_stage = None
        self.ready = not self.retiring
        structlog.get_logger().info("engine is ready", engine=self.spec.log.engine, url=self.url)


def engine_sockets(sockets: Path) -> Path:
    """Return the directory of the engines' sockets, with one directory per engine.

    `sockets` has those of their host.
    """
    return sockets / _SOCKETS


def forget_sockets(directory: Path) -> None:
    """Remove the sockets of engines of a former host, and recreate the directory."""
    shutil.rmtree(engine_sockets(directory), ignore_errors=True)
    make_private_directory(engine_sockets(directory))


def free_port() -> int:
    """Return a free loopback port. If another process takes it before its use, the engine is restarted."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return port
