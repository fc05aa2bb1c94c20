"""One host process and its life cycle: started, sent its holds, probed, drained, ended."""

import asyncio
import time
from contextlib import suppress
from secrets import token_hex

import structlog

from ipnext.components.bounded_http import AnswerRefused
from ipnext.errors import Unavailable
from ipnext.infra.assignment import (
    adapters_of,
    digests,
    endpoints,
    engines_of,
    generations,
    load_failures,
    needs_swap,
    routable,
    with_both,
    without,
)
from ipnext.infra.context import RegionContext
from ipnext.infra.control import Control
from ipnext.infra.error_body import is_retryable
from ipnext.infra.host.departure import finish
from ipnext.infra.host.limit import HostPlace
from ipnext.infra.host.load_watch import rest, tells
from ipnext.infra.host.region_parts import RegionParts
from ipnext.infra.host.repair import FailedLoads, HostRepair
from ipnext.infra.host.runtime import Adopted, HostIdentity
from ipnext.infra.host.swap_progress import SwapProgress
from ipnext.infra.process.child import ChildProcess
from ipnext.infra.process.notes import HostNote
from ipnext.infra.process.spawn import StartedProcess
from ipnext.infra.process.wakeup import Wakeup
from ipnext.model.deployment.host_control import HostHolds, HostState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.router_table import PartEndpoint


class HostReplica:
    """A replica of a deployment."""

    def __init__(
        self,
        identity: HostIdentity,
        *,
        site: RegionContext,
        around: RegionParts,
        adopted: Adopted | None = None,
    ) -> None:
        self._identity = identity
        self.key, self.number, self.name = identity.key, identity.number, identity.name
        self.leaving = False
        self._settings = site.settings
        self._control = Control(site.session, probe_seconds=site.settings.probe_seconds)
        self._around = around
        self._router, self._publish, self._changed = around.router, around.publish, around.changed
        self._engines = site.engine_addresses(identity.engine)
        self._memory_bytes: int | None = None
        self._started_with: int | None = None
        """Memory limit of the running process."""
        self._drain_seconds = site.settings.drain_seconds
        self._wanted = HostHolds(holds=())
        self._told: HostHolds | None = None
        self._stamp = token_hex()
        self._over = SwapProgress()
        self._refusal: str | None = None
        self._unread: str | None = None
        """Why the host's last answer was not read, or is missing for long."""
        self._place = HostPlace(around.room, self.name, patience_seconds=site.settings.load_retry_seconds)
        self._release_revision, self._release_deadline = 0, 0.0
        self._state: HostState | None = None
        self._answered_at = self._loads_told_at = 0.0
        self._routed: tuple[int, ...] = ()
        self._routed_revision = 0
        self._pulse = Wakeup()
        self._hosts = around.hosts
        self._host = around.hosts.program(identity, self._note_start)
        self._child = ChildProcess(self.name, self._host, settings=site.settings, on_change=self._process_changed)
        self._repair, self._failed_loads = HostRepair(site.settings), FailedLoads()
        if adopted is not None:
            self._adopt(*adopted)

    def _adopt(self, note: HostNote, running: StartedProcess) -> None:
        """Continue from the holds that the host was sent last. Its state is requested before anything is decided."""
        self._host.adopt(note)
        self._answered_at = time.monotonic()
        self._stamp = note.stamp or self._stamp
        self._started_with = self._memory_bytes = note.memory_bytes
        self._host.set_memory(note.memory_bytes)
        if note.sent is not None:
            self._told, self._wanted = note.sent, HostHolds(holds=note.sent.holds)
        if note.swapping:
            self._over.begun = object()
        self._place.take(runs_already=True)
        self._child.start(running)

    @property
    def is_known(self) -> bool:
        """Whether its host has reported its state, or does not run, or has been silent for too long to wait for it."""
        silent = time.monotonic() - self._answered_at
        return self._state is not None or self._child.running is None or silent > self._settings.unanswered_seconds

    @property
    def url(self) -> str:
        """URL of its host."""
        return self._host.url

    def _note(self, sent: HostHolds | None = None) -> HostNote:
        """Return the note for its process; `sent` are the holds that it is about to be sent."""
        return HostNote(
            key=self.key,
            number=self.number,
            engine=self._identity.engine,
            url=self.url,
            sent=sent or self._told,
            swapping=self._over.begun is not None,
            stamp=self._stamp,
            memory_bytes=self._started_with,
        )

    def _note_start(self) -> HostNote:
        self._started_with = self._memory_bytes
        return self._note()

    def _keep_note(self, sent: HostHolds | None = None) -> None:
        self._hosts.note(self.name, self._note(sent))

    @property
    def ready(self) -> tuple[int, ...]:
        """Generations that traffic may be sent to, ascending."""
        if self._state is None or self._state.draining or self.leaving:
            return ()
        return routable(self._state.ready, self._wanted)

    @property
    def routed_generations(self) -> tuple[int, ...]:
        """Those of `ready` for which the router knows this host: only then may other regions send here."""
        if self._router.follows(self._routed_revision):
            self._routed = self.ready
        return tuple(number for number in self.ready if number in self._routed)

    @property
    def endpoints(self) -> tuple[PartEndpoint, ...]:
        """Its endpoints for the router; without generations while it is not ready."""
        ready = self._state.ready if self._state else ()
        return endpoints(self._wanted, self.ready, ready, host=self.url)

    def report(self) -> Replica:
        """Return the replica as the port reports it."""
        return Replica(
            id=self.name,
            key=self.key,
            phase=self._phase(),
            url=self.url or None if self._child.running else None,
            pid=self._child.pid,
            ready=self.routed_generations,
            engines=engines_of(self.key.part, self._state.ready if self._state else ()),
            failures=(
                *load_failures(self._failed_loads.all, adapters_of(self._wanted, self._told)),
                *self._place.failures(self._wanted),
            ),
            restarts=self._child.restarts,
            message=self._message,
            coming=self.coming,
            swaps=self._state.swaps if self._state else (),
            starts=self._state.starts if self._state else (),
            log=self._host.log,
        )

    @property
    def digests(self) -> frozenset[str]:
        """Contents of the snapshots that it has or loads, without those of a pending swap."""
        return frozenset(held.content for held in self._wanted.holds)

    @property
    def stays(self) -> bool:
        """Whether its desired snapshots are its present ones: no swap is pending."""
        return self._over.next is None

    @property
    def fetching(self) -> bool:
        """Whether a swap is pending and its snapshots are not fetched yet."""
        return self._over.fetching and not self.leaving

    @property
    def coming(self) -> tuple[int, ...]:
        """Generations of its hot swap for which it is not ready yet.

        While it fetches, another part of the model may already have a later generation: a restarted process begins with
        the desired snapshots. Neither generation is complete then, and requests wait for this replica.
        """
        following = self._over.next or (self._wanted if self._over.begun else None)
        return () if following is None else tuple(sorted(generations(following) - {*self.ready}))

    def want(
        self,
        holds: HostHolds,
        *,
        memory_bytes: int | None = None,
        drain_seconds: float | None = None,
        swap: bool = False,
    ) -> None:
        """Change the desired snapshots. Call `publish` afterwards and pass its revision to `release_after`.

        `memory_bytes` is in force from the next start of its process. With `swap` another snapshot replaces the one in
        its process, which answers until the other one is fetched.
        """
        self._routed = self.routed_generations
        if holds == self._wanted:
            self._over.stay()
        elif swap and self._told is not None and needs_swap(self._told, holds):
            self._over.come(holds)
        else:
            self._over.end()
            self._wanted = holds
        self._memory_bytes = memory_bytes
        self._host.set_memory(memory_bytes)
        self._drain_seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds

    def release_after(self, revision: int) -> None:
        """Allow unloading of undesired snapshots once the router has applied this table revision."""
        self._routed_revision = self._release_revision = revision
        self._release_deadline = time.monotonic() + self._drain_seconds
        self._pulse.strike()

    def leave(self) -> None:
        """Take it out of routing, drain it and end it; `run` returns then."""
        self.leaving = True
        self._pulse.strike()
        self._changed()

    async def run(self) -> None:
        """Run the replica, from start to end."""
        if not self._child.is_started:
            while not self.leaving and not self._place.take():
                self._changed()
                await self._pulse.wait(self._settings.idle_poll_seconds)
            if self.leaving:
                return
            self._child.start()
        while not self.leaving:
            await self._ask()
            await self._tell()
            await rest(self._pulse, self._pause(), self._state, self._control, self.url)
        await self._depart()

    async def end(self) -> None:
        """End it now, when no client calls it any more: the host finishes its requests, within the grace time."""
        self.leaving = True
        if self._child.running is not None:
            with suppress(Unavailable):
                await self._control.drain(self.url)
        await self._child.stop(self._settings.grace_seconds)

    @property
    def _message(self) -> str | None:
        waits = self._host.obstacle if self._child.running is not None else None
        return self._place.refusal or self._refusal or self._unread or waits or self._child.message

    def _process_changed(self) -> None:
        """Reset all observed state: the process has just started or ended."""
        self._state = None
        self._told = None
        self._refusal = self._unread = None
        self._repair.reset()
        self._failed_loads.reset()
        self._wanted = self._over.next or self._wanted
        self._over.end()
        self._answered_at = time.monotonic()
        self._routed, self._routed_revision = (), self._publish()
        self._pulse.strike()
        self._changed()

    def _phase(self) -> ReplicaPhase:
        if self.leaving:
            return ReplicaPhase.DRAINING
        if self._child.running is None:
            return ReplicaPhase.FAILED if self._place.refusal or self._child.message else ReplicaPhase.STARTING
        return ReplicaPhase.RUNNING if self._state else ReplicaPhase.STARTING

    def _pause(self) -> float:
        state = self._state
        loading = state is None or (state.loading and not tells(state))
        changing = loading or self._over.begun or self._told != self._wanted
        return self._settings.poll_seconds if changing else self._settings.idle_poll_seconds

    async def _ask(self) -> None:
        process = self._child.running
        if process is None or not self.url or self._too_large(process):
            return
        try:
            state = await self._control.host_state(self.url)
        except Unavailable as error:
            if process is self._child.running:
                self._not_answered(error)
            return
        self._unread = None
        if process is self._child.running and not self._is_foreign(state):
            self._answered_at = time.monotonic()
            self._see(state)

    def _is_foreign(self, state: HostState) -> bool:
        """End a host that would have the router connect elsewhere: it has been taken over."""
        refusal = self._engines.refusal(state, host=self.url)
        if refusal is not None:
            structlog.get_logger().error("host reports a foreign address, killed", replica=self.name, reason=refusal)
            self._child.kill(refusal)
        return refusal is not None

    def _too_large(self, process: StartedProcess) -> bool:
        """End a host that uses more memory than it may, which other processes of the machine need."""
        excess = self._host.find_excess(process)
        if excess is not None:
            structlog.get_logger().error("host takes too much memory, killed", replica=self.name, reason=excess)
            self._child.kill(excess)
        return excess is not None

    def _see(self, state: HostState | None) -> None:
        """Take over the host's state, and update the router's table at once if its ready generations change."""
        before, self._routed = self.ready, self.routed_generations
        self._state = state
        if state is not None:
            self._failed_loads.see(state, self._wanted.holds, self._over.next.holds if self._over.next else ())
        if self.ready and self._over.begun is not None:
            self._over.begun = None
            self._keep_note()
        if self.ready != before:
            self._routed_revision = self._publish()
            self._hosts.show_serving(self.name, serving=bool(self.ready))
        self._changed()

    def _not_answered(self, error: Unavailable) -> None:
        """Remove a silent host from routing, and kill it if it stays silent for very long."""
        silent = time.monotonic() - self._answered_at
        if isinstance(error, AnswerRefused) or silent > self._settings.unanswered_seconds:
            self._unread = error.message
            self._changed()
        if silent > self._settings.unanswered_seconds:
            self._see(None)
        if silent > self._settings.hung_seconds:
            structlog.get_logger().error("host hangs, killed", replica=self.name, silent_seconds=round(silent))
            self._child.kill(f"killed, as it gave no good answer for {silent:.0f} s: {error.message}")

    async def _tell(self) -> None:
        """Reconcile the host's holds with the desired ones: additions at once, removals when they have left routing."""
        if self._state is None:
            return
        if self._state.draining:
            self._end_stray(self._state)
        elif self._told is not None and self._repair.must_send(self._state, self._told, stamp=self._stamp):
            structlog.get_logger().warning("host does not have what it was sent, sent again", replica=self.name)
            await self._put(self._told)
        else:
            await self._advance(self._state)

    async def _advance(self, state: HostState) -> None:
        if self._told is None:
            await self._put(self._wanted)
            return
        if self._over.next is not None:
            await self._prepare(state, self._over.next)
            return
        if self._told == self._wanted:
            await self._retry_loads(state, self._wanted)
            return
        if self._over.begun:
            await self._hot_swap()
            return
        both = with_both(self._told, self._wanted)
        if both != self._told:
            await self._put(both)
        if self._told != self._wanted and self._may_release(generations(both) - generations(self._wanted)):
            await self._put(self._wanted)

    def _end_stray(self, state: HostState) -> None:
        """End a host that drains without an order; another process replaces it."""
        idle = state.in_flight == 0 and self._router.follows(self._routed_revision)
        if number := self._repair.ending(idle=idle, drain_seconds=self._drain_seconds):
            structlog.get_logger().warning("host drains, replaced", replica=self.name, signal=number.name)
            self._child.signal(number)

    async def _prepare(self, state: HostState, following: HostHolds) -> None:
        """Have the host fetch its next snapshots, then leave routing with all others.

        The present ones answer until then.
        """
        holds = HostHolds(holds=self._wanted.holds, coming=following.holds)
        if self._told != holds:
            await self._put(holds)
        elif not digests(following.holds) <= set(state.fetched):
            await self._retry_loads(state, holds)
        elif self._over.at_hand() and self._around.all_fetched(self.key.model):
            self._wanted = following
            self._over.begin(held.url for held in state.ready if held.url)
            self._keep_note()
            self.release_after(self._publish())

    async def _hot_swap(self) -> None:
        """Send the host its new holds once the router sends it nothing any more, and has no request left there."""
        over, revision = self._over.begun, self._release_revision
        with suppress(Unavailable):
            await self._router.confirm(revision)
        late = time.monotonic() > self._release_deadline
        waiting = not self._router.follows(revision) or (not late and self._router.in_flight_at(self._over.urls))
        if over is self._over.begun and not waiting:
            await self._put(self._wanted)

    async def _retry_loads(self, state: HostState, holds: HostHolds) -> None:
        """Retry failed loads, in two calls: a host does not repeat a load by itself, but a dependency may be back."""
        due = time.monotonic() - self._loads_told_at > self._settings.load_retry_seconds
        failed = {(failure.part, failure.snapshot) for failure in state.failures if is_retryable(failure.code)}
        if due and failed:
            await self._put(without(holds, failed))
            await self._put(holds)

    def _may_release(self, dropped: frozenset[int]) -> bool:
        if not self._router.follows(self._release_revision):
            return False
        late = time.monotonic() > self._release_deadline
        return late or self._router.in_flight(self.key.model, dropped) == 0

    async def _put(self, holds: HostHolds) -> None:
        """Send the holds; on failure they are sent again after the next probe.

        Snapshots being unloaded have the rest of the drain.
        """
        process = self._child.running
        rest = max(0.0, self._release_deadline - time.monotonic())
        self._keep_note(holds)
        more = {"drain_seconds": rest, "ending_seconds": self._drain_seconds, "stamp": self._stamp}
        try:
            await self._hosts.wait_noted(self.name)
            await self._control.put_holds(self.url, holds.model_copy(update=more))
        except Unavailable as error:
            if process is self._child.running:  # if it has ended, only its end matters
                self._refusal = error.message
                self._changed()
            return
        self._refusal = None
        if process is self._child.running:
            if holds != self._told:
                self._pulse.strike()  # to observe at once that it loads
            self._told = holds
            self._loads_told_at = time.monotonic()

    async def _depart(self) -> None:
        """Leave the router's table, accept no new requests, finish the last ones, end the process."""
        revision = self._publish()
        with suppress(Unavailable):  # a router that is down sends nothing either
            await self._router.confirm(revision)
        await asyncio.sleep(self._settings.settle_seconds)
        await finish(self._control, self.url, drain_seconds=self._drain_seconds, settings=self._settings)
        await self._child.stop(self._settings.grace_seconds)
        self._host.forget()
