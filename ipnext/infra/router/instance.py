"""One router process of a region, with its restarts after crashes, and its reported state."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ipnext.components.caller_proof import keep_proof, proof_file, read_proof
from ipnext.components.identity import Component
from ipnext.components.sockets import is_socket_url, keep_caller_proof, socket_path
from ipnext.errors import Unavailable
from ipnext.infra.context import RegionContext
from ipnext.infra.control import Control
from ipnext.infra.process.child import ChildProcess, LoggedCommand
from ipnext.infra.process.notes import RouterNote, as_note
from ipnext.infra.process.spawn import Note, StartedProcess
from ipnext.model.access.predictions import KeyUseReport
from ipnext.model.deployment.router_table import RouterState

GATEWAY_PROOF_FILE: Final = "gateway.proof"
"""Proof of the gateway at all routers of the region, beside their table."""


class RouterInstance:
    """A router on one table file. `on_change` is called after each start and each end of its process."""

    def __init__(
        self,
        site: RegionContext,
        control: Control,
        table: Path,
        number: int,
        *,
        on_change: Callable[[], None],
        adopted: tuple[RouterNote, StartedProcess] | None = None,
    ) -> None:
        """Prepare a router whose `number` is unique among the running ones.

        `adopted` is one that a former agent has started.
        """
        self._site = site
        self.number = number
        self.leaving = False
        """Whether another one is replacing it."""
        self._adopted: StartedProcess | None = None
        self._control = control
        self._table = table
        self._on_change = on_change
        self.state: RouterState | None = None
        """As last reported; None while it does not run."""
        self._answered_at = 0.0
        self._let_go_at = 0.0
        self.url = ""
        """The URL of its listener."""
        self.name = f"router.{number}"
        self.child = ChildProcess(
            self.name,
            LoggedCommand(
                self._command,
                log_file=site.log_file("router"),
                environment=site.router_environment,
                log_limit_bytes=site.settings.log_limit_bytes,
                spawn=site.processes.spawn(self.name, self._note),
            ),
            settings=site.settings,
            on_change=self._note_change,
        )
        if adopted is None:
            self.url = self._choose_url()
            return
        note, self._adopted = adopted
        self.url, self.leaving = note.url, note.leaving
        site.places.adopt("router", note.url)

    def start(self) -> None:
        """Start its process, or continue with the adopted one."""
        self._answered_at = time.monotonic()
        self.child.start(self._adopted)

    def leave(self) -> None:
        """Record that another one is replacing it."""
        self.leaving = True
        self._site.processes.note(self.name, self._note())

    @property
    def draining(self) -> bool:
        """Whether it is about to end."""
        return self.state is not None and self.state.draining

    @property
    def gateway_proof(self) -> str | None:
        """Proof of the gateway on its socket; None if it listens on a port."""
        return (
            read_proof(proof_file(Path(socket_path(self.url, Component.GATEWAY)))) if is_socket_url(self.url) else None
        )

    @property
    def is_known(self) -> bool:
        """Whether it has reported its applied table, or does not run, or is silent for too long to wait for it."""
        silent = time.monotonic() - self._answered_at
        return self.state is not None or self.child.pid is None or silent > self._site.settings.unanswered_seconds

    async def ask(self) -> None:
        """Request its state. A router that gives no answer keeps the former state, and is killed after a while."""
        pid = self.child.pid
        if pid is None:
            return
        try:
            state = await self._control.router_state(self.url)
        except Unavailable:
            self._not_answered()
            return
        if pid == self.child.pid:
            self.state = state
            self._answered_at = time.monotonic()

    async def key_uses(self) -> KeyUseReport:
        """Return when it last saw each API key; nothing if it gives no answer."""
        if self.child.pid is not None:
            with suppress(Unavailable):
                return await self._control.key_uses(self.url)
        return KeyUseReport()

    async def release(self) -> None:
        """Drain it: Envoy sends nothing to it any more, so it may end.

        One that gives no answer has nothing to finish.
        """
        self._let_go_at = self._let_go_at or time.monotonic()
        if self.child.pid is not None:
            with suppress(Unavailable):
                await self._control.drain(self.url)

    def overdue(self, drain_seconds: float) -> bool:
        """Return whether it should have ended.

        It was drained, and is idle after the grace time or busy after `drain_seconds`.
        """
        if not self._let_go_at:
            return False
        busy = self.state is not None and (
            any(c.in_flight for c in self.state.traffic) or any(self.state.engines.values())
        )
        seconds = time.monotonic() - self._let_go_at
        return seconds > (drain_seconds if busy else self._site.settings.grace_seconds)

    def _note(self) -> Note:
        return as_note(RouterNote(router=self.number, url=self.url, leaving=self.leaving))

    def _not_answered(self) -> None:
        settings = self._site.settings
        limit = settings.gateway_hung_seconds if self.state else settings.hung_seconds
        if time.monotonic() - self._answered_at > limit:
            self.child.signal(signal.SIGKILL)

    def _note_change(self) -> None:
        self.state = None
        self._answered_at = time.monotonic()
        self._on_change()

    def _command(self) -> Sequence[str]:
        self.url = self._choose_url()
        return self._site.router_command(self._table, self.url)

    def _choose_url(self) -> str:
        url = self._site.places.choose("router", self._site.settings.router_command, sockets=self.name)
        if is_socket_url(url):
            # before Envoy's files name it; and the same as of the former router:
            # Envoy changes rules and addresses one by one
            keep_caller_proof(url, Component.GATEWAY, keep_proof(self._table.with_name(GATEWAY_PROOF_FILE)))
        return url
