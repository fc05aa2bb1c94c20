"""One router process of a region, with those that take its place when it crashes, and what it says of itself."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ipnext.errors import Unavailable
from ipnext.infra.child_process import ChildProcess
from ipnext.infra.control import Control
from ipnext.infra.ports import LOOPBACK
from ipnext.infra.site import Site
from ipnext.model.deployment import RouterState


class RouterInstance:
    """Follows one table file. `on_change` is called after each start and each end of its process."""

    def __init__(self, site: Site, control: Control, table: Path, *, on_change: Callable[[], None]) -> None:
        self._site = site
        self._control = control
        self._table = table
        self._on_change = on_change
        self.state: RouterState | None = None
        """As last told; None while it does not run."""
        self._answered_at = 0.0
        self.port = site.ports.port("router")
        """Where it listens."""
        self.child = ChildProcess(
            "router",
            self._command,
            log_file=site.log_file("router"),
            environment=site.environment(),
            settings=site.settings,
            on_change=self._changed,
            spawn=site.spawn,
        )

    @property
    def draining(self) -> bool:
        """Whether it is about to end."""
        return self.state is not None and self.state.draining

    async def ask(self) -> None:
        """Have it tell its state. One that gives no answer keeps the former one, and is killed after a while."""
        pid = self.child.pid
        if pid is None:
            return
        try:
            state = await self._control.router_state(f"http://{LOOPBACK}:{self.port}")
        except Unavailable:
            self._not_answered()
            return
        if pid == self.child.pid:
            self.state = state
            self._answered_at = time.monotonic()

    async def let_go(self) -> None:
        """Say that nothing is sent to it any more: it may end. One that gives no answer has nothing to finish."""
        if self.child.pid is not None:
            with suppress(Unavailable):
                await self._control.drain(f"http://{LOOPBACK}:{self.port}")

    def _not_answered(self) -> None:
        settings = self._site.settings
        limit = settings.gateway_hung_seconds if self.state else settings.hung_seconds
        if time.monotonic() - self._answered_at > limit:
            self.child.signal(signal.SIGKILL)

    def _changed(self) -> None:
        self.state = None
        self._answered_at = time.monotonic()
        self._on_change()

    def _command(self) -> Sequence[str]:
        self.port = self._site.ports.port("router")
        return self._site.router_command(self._table, self.port)
