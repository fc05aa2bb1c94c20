"""The region's router process: kept running, told by a file, asked which table it follows."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ipnext.errors import Unavailable
from ipnext.infra.atomic_file import replace_file
from ipnext.infra.child_process import ChildProcess
from ipnext.infra.control import Control
from ipnext.infra.ports import LOOPBACK
from ipnext.infra.pulse import Pulse
from ipnext.infra.site import Site
from ipnext.model.deployment import GenerationTraffic, RoutedModel, RouterState, RouterTable

CONFIRM_POLL_SECONDS = 0.02


class RouterProcess:
    """Writes the router's table and follows its state."""

    def __init__(self, site: Site, control: Control, *, on_change: Callable[[], None]) -> None:
        self._site = site
        self._control = control
        self._file = site.directory / "router.json"
        self._table = _read(self._file, site.region)
        self._state: RouterState | None = None
        self._answered_at = 0.0
        self._pulse = Pulse()
        self._on_change = on_change
        self.port = site.ports.port("router")
        """Where it listens. Envoy points there, so another port calls `on_change`."""
        self._child = ChildProcess(
            "router",
            self._command,
            log_file=site.log_file("router"),
            environment=site.environment(),
            settings=site.settings,
            on_change=self._changed,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL of the router."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def revision(self) -> int:
        """Revision of the table that was last put in force."""
        return self._table.revision

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid

    def start(self) -> None:
        """Start the process and begin to follow it."""
        self._write(self._table)
        self._child.start()
        self._task = asyncio.create_task(self._follow(), name="follow the router")

    async def stop(self) -> None:
        """End the process."""
        await self._child.stop(self._site.settings.grace_seconds)
        if self._task:
            self._task.cancel()

    def publish(self, models: tuple[RoutedModel, ...]) -> int:
        """Put this table in force; the revision to wait for. An equal table keeps its revision.

        OSError where the file cannot be written: the former table stays in force.
        """
        if models != self._table.models:
            self._write(self._table.model_copy(update={"revision": self._table.revision + 1, "models": models}))
            self._pulse.strike()
        return self._table.revision

    async def confirmed(self, revision: int) -> None:
        """Return once the router follows this table revision or a later one. Unavailable after `confirm_seconds`."""
        limit = self._site.settings.confirm_seconds
        deadline = time.monotonic() + limit
        while not self.follows(revision):
            if time.monotonic() > deadline:
                msg = (
                    f"the router of region {self._site.region!r} does not follow table revision {revision} "
                    f"within {limit} s ({self._child.message or 'it runs'}); try again"
                )
                raise Unavailable(msg)
            self._pulse.strike()
            await asyncio.sleep(CONFIRM_POLL_SECONDS)

    def follows(self, revision: int) -> bool:
        """Whether the router said so when it was last asked."""
        return self._state is not None and self._state.revision >= revision

    def in_flight(self, model: str, generations: Iterable[int]) -> int:
        """Requests of these generations that the router is working on, as last told; 0 when it does not run."""
        wanted = frozenset(generations)
        traffic = self._state.traffic if self._state else ()
        return sum(count.in_flight for count in traffic if count.model == model and count.generation in wanted)

    def in_flight_at(self, urls: Iterable[str]) -> int:
        """Requests that engines at these URLs have from the router, as last told. It is asked again at once."""
        self._pulse.strike()
        return sum(self._state.engines.get(url, 0) for url in urls) if self._state else 0

    async def traffic(self) -> tuple[GenerationTraffic, ...]:
        """Counts as of now; none while the router is down."""
        await self._ask()
        return self._state.traffic if self._state else ()

    def _changed(self) -> None:
        self._state = None
        self._answered_at = time.monotonic()
        self._pulse.strike()
        self._on_change()

    def _command(self) -> Sequence[str]:
        self.port = self._site.ports.port("router")
        return self._site.router_command(self._file, self.port)

    async def _follow(self) -> None:
        settings = self._site.settings
        while True:
            await self._ask()
            limit = settings.gateway_hung_seconds if self._state else settings.hung_seconds
            if self.pid and time.monotonic() - self._answered_at > limit:
                self._child.signal(signal.SIGKILL)
            settled = self.follows(self._table.revision)
            await self._pulse.wait(settings.idle_poll_seconds if settled else settings.poll_seconds)

    async def _ask(self) -> None:
        pid = self.pid
        if pid is None:
            return
        try:
            state = await self._control.router_state(self.url)
        except Unavailable:
            return
        if pid == self.pid:
            self._state = state
            self._answered_at = time.monotonic()

    def _write(self, table: RouterTable) -> None:
        replace_file(self._file, table.model_dump_json(indent=1).encode())
        self._table = table


def _read(path: Path, region: str) -> RouterTable:
    """The table that the file holds; an empty one where there is none. Its revision never goes back."""
    try:
        return RouterTable.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return RouterTable(revision=1, region=region)
