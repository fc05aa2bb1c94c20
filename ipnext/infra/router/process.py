"""The region's router: kept running, configured by a file, observed by its state.

A router that is about to end is replaced first.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from ipnext.errors import Unavailable
from ipnext.infra.context import RegionContext
from ipnext.infra.control import Control
from ipnext.infra.process.atomic_file import replace_file
from ipnext.infra.process.notes import RouterNote, find_notes
from ipnext.infra.process.wakeup import Wakeup
from ipnext.infra.router.instance import RouterInstance
from ipnext.model.access.predictions import AccessList, AccessRevision, AccessWithdrawal, KeyUseReport
from ipnext.model.deployment.deployment import STREAM_DRAIN_SECONDS
from ipnext.model.deployment.router_table import GenerationShares, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.shadow import ShadowComparison, merge_comparisons
from ipnext.model.wire import decode

CONFIRM_POLL_SECONDS = 0.02
FIRST_CONFIRM_SECONDS = 0.003
"""First wait before the router's state is read, since a new table is in force within milliseconds. Each further wait
is twice as long."""


class RouterProcess:
    """Writes the router's table and observes its state.

    A router that reports that it is about to end (it got SIGTERM) answers until Envoy points to the next one, and
    finishes its requests in parallel with that.
    """

    def __init__(
        self,
        site: RegionContext,
        control: Control,
        *,
        on_change: Callable[[], None],
        moved: Callable[[], Awaitable[None]],
        followed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change`: the router may have another URL.

        `moved` returns once Envoy points to it; Unavailable if that takes too long. `followed`: it has applied another
        table.
        """
        self._site = site
        self._control = control
        self._file = site.directory / "router.json"
        self._table = _read(self._file, site.region)
        self._pulse = Wakeup()
        self._on_change = on_change
        self._moved = moved
        self._followed = followed
        found = self._find_routers()
        staying = [one for one in found if not one.leaving]
        self._former = [one for one in found if one not in staying[-1:]]
        self._known = {one.number for one in found}
        self._now = staying[-1] if staying else self._next()
        self._asked = self._former[-1] if self._former else self._now
        self.adopted = bool(found)
        """Whether a router of a former agent runs."""
        self._leaving: dict[asyncio.Task[None], RouterInstance] = {}
        self._task: asyncio.Task[None] | None = None
        self._handovers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """URL that Envoy points to. `on_change` is called when it changes."""
        return self._asked.url

    @property
    def gateway_proof(self) -> str | None:
        """Proof that Envoy sends to `url`; None if that is a port."""
        return self._asked.gateway_proof

    @property
    def revision(self) -> int:
        """Revision of the table that was last put in force."""
        return self._table.revision

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._now.child.pid

    @property
    def is_known(self) -> bool:
        """Whether it has reported its applied table, or does not run, or is silent for too long to wait for it."""
        return self._now.is_known

    @property
    def models(self) -> tuple[RoutedModel, ...]:
        """All models of the table in force."""
        return self._table.models

    @property
    def served_generations(self) -> Mapping[str, tuple[ServedGeneration, ...]]:
        """Model -> generations in the table in force."""
        return {model.model: model.served for model in self._table.models}

    def start(self) -> None:
        """Start the process, or adopt the running one, and begin to observe it."""
        if not self.adopted:
            self._write(self._table)
        self._now.start()
        for one in self._former:
            one.start()
            self._watch_exit(one)
        self._task = asyncio.create_task(self._follow(), name="follow the router")

    async def stop(self) -> None:
        """End the process."""
        if self._task:
            self._task.cancel()
        for task in self._handovers:
            task.cancel()
        await asyncio.gather(*(one.release() for one in self._all))
        await asyncio.gather(*(one.child.stop(self._site.settings.grace_seconds) for one in self._all))

    def publish(
        self, models: tuple[RoutedModel, ...], choices: tuple[GenerationShares, ...] = (), *, egress: str = ""
    ) -> int:
        """Put this table in force; return the revision to wait for. An equal table keeps its revision.

        OSError if the file cannot be written: the former table stays in force.
        """
        table = self._table
        if (models, choices, egress) != (table.models, table.choices, table.egress):
            content = {"models": models, "choices": choices, "egress": egress}
            self._write(table.model_copy(update={"revision": table.revision + 1, **content}))
            self._pulse.strike()
        return self._table.revision

    async def confirm(self, revision: int) -> None:
        """Return once the router has applied this table revision or a later one.

        Unavailable after `confirm_seconds`.
        """
        limit = self._site.settings.confirm_seconds
        deadline, pause = time.monotonic() + limit, FIRST_CONFIRM_SECONDS
        while not self.follows(revision):
            if time.monotonic() > deadline:
                msg = (
                    f"the router of region {self._site.region!r} does not follow table revision {revision} "
                    f"within {limit} s ({self._now.child.message or 'it runs'}); try again"
                )
                raise Unavailable(msg)
            self._pulse.strike()
            await asyncio.sleep(pause)
            pause = min(2 * pause, CONFIRM_POLL_SECONDS)

    def follows(self, revision: int) -> bool:
        """Return whether the router has reported this revision or a later one.

        The routers that still finish requests must have reported it, too.
        """
        now = self._now.state
        late = (one.state for one in self._leaving.values() if one.state is not None)
        return now is not None and all(state.revision >= revision for state in (now, *late))

    def in_flight(self, model: str, generations: Iterable[int]) -> int:
        """Return the router's requests under way for these generations, as last reported; 0 while it does not run."""
        wanted = frozenset(generations)
        traffic = (count for one in self._all for count in _traffic(one))
        return sum(count.in_flight for count in traffic if count.model == model and count.generation in wanted)

    def in_flight_at(self, urls: Iterable[str]) -> int:
        """Return the router's requests under way at engines of these URLs, as last reported.

        Its state is read again at once.
        """
        self._pulse.strike()
        told = [one.state.engines for one in self._all if one.state is not None]
        return sum(engines.get(url, 0) for url in urls for engines in told)

    @property
    def access(self) -> AccessRevision:
        """The oldest access list that a router goes by, as last reported; revision 0 while none runs."""
        told = [one.state.access for one in self._all if one.state is not None]
        return min(told, key=lambda access: access.revision, default=AccessRevision(revision=0))

    async def look(self) -> None:
        """Read the state of all routers now."""
        await self._ask()

    async def put_access(self, access: AccessList) -> None:
        """Send all routers an access list. Unavailable if one does not take it."""
        content = access.model_dump_json()
        await asyncio.gather(*(self._control.put_access(one.url, content) for one in self._all))

    async def withdraw_access(self, withdrawal: AccessWithdrawal) -> None:
        """Have routers with an older list refuse requests for all but open models, until they get another.

        Unavailable.
        """
        content = withdrawal.model_dump_json()
        await asyncio.gather(*(self._control.withdraw_access(one.url, content) for one in self._all))

    async def traffic(self) -> tuple[GenerationTraffic, ...]:
        """Return the current counts, with the requests under way in former routers; none while the router is down."""
        await self._ask()
        late = [count for one in self._leaving.values() for count in _traffic(one)]
        return with_under_way(_traffic(self._now), late)

    @property
    def shadows(self) -> tuple[ShadowComparison, ...]:
        """Comparisons of shadows, with those of former routers that still run, as last reported."""
        found = merge_comparisons(shadow for one in self._all if one.state is not None for shadow in one.state.shadows)
        current = {(model.model, model.shadow.generation, model.shadow.seed) for model in self.models if model.shadow}
        return tuple(one for one in found if one.key in current)

    async def key_uses(self) -> KeyUseReport:
        """Return when each API key last requested predictions, in former routers too."""
        return KeyUseReport.newest(await asyncio.gather(*(one.key_uses() for one in self._all)))

    @property
    def _all(self) -> tuple[RouterInstance, ...]:
        return (self._now, *self._leaving.values())

    def _next(self) -> RouterInstance:
        number = max(self._known, default=0) + 1
        self._known.add(number)
        return RouterInstance(self._site, self._control, self._file, number, on_change=self._note_change)

    def _find_routers(self) -> list[RouterInstance]:
        """Return the routers that a former agent has started, the last one last."""
        notes = sorted(find_notes(self._site.processes, RouterNote).values(), key=lambda pair: pair[0].router)
        return [
            RouterInstance(
                self._site, self._control, self._file, n.router, on_change=self._note_change, adopted=(n, running)
            )
            for n, running in notes
        ]

    def _note_change(self) -> None:
        self._pulse.strike()
        self._on_change()

    async def _follow(self) -> None:
        settings, pause = self._site.settings, FIRST_CONFIRM_SECONDS
        while True:
            await self._ask()
            self._relay()
            settled = self.follows(self._table.revision)
            pause = FIRST_CONFIRM_SECONDS if settled else min(2 * pause, settings.poll_seconds)
            await self._pulse.wait(settings.idle_poll_seconds if settled else pause)

    def _relay(self) -> None:
        """Replace a router that is about to end; Envoy points to the next one once that answers."""
        if self._now.draining:
            self._replace()
        if self._asked is not self._now and self._now.state is not None:
            self._asked = self._now
            self._on_change()
            task = asyncio.create_task(self._hand_over(), name="let a router go")
            self._handovers.add(task)
            task.add_done_callback(self._handovers.discard)

    async def _hand_over(self) -> None:
        """Let routers that are about to end do so once requests go to the next one."""
        leaving = tuple(self._leaving.values())
        with suppress(Unavailable, OSError):
            await self._moved()
        await asyncio.gather(*(one.release() for one in leaving))

    def _replace(self) -> None:
        """Start another router on another port. The present one ends once it has finished its requests."""
        leaving, self._now = self._now, self._next()
        structlog.get_logger().info("router is about to end, starting another", pid=leaving.child.pid)
        leaving.leave()
        self._watch_exit(leaving)
        self._now.start()

    def _watch_exit(self, leaving: RouterInstance) -> None:
        task = asyncio.create_task(self._wait_end(leaving), name="see a router off")
        self._leaving[task] = leaving
        task.add_done_callback(self._leaving.pop)

    async def _wait_end(self, leaving: RouterInstance) -> None:
        """Return when it has ended: by the signal that it got, or by this agent's if it only drains."""
        settings = self._site.settings
        gone = asyncio.create_task(leaving.child.release())
        while not gone.done():
            await asyncio.wait([gone], timeout=settings.idle_poll_seconds)
            if not gone.done() and leaving.overdue(max(settings.stray_drain_seconds, self._longest_drain)):
                structlog.get_logger().warning("router drains and does not end, ended", pid=leaving.child.pid)
                await leaving.child.stop(settings.grace_seconds)
        self._asked = self._now
        self._on_change()
        if leaving.url != self._now.url:
            self._site.places.release(leaving.url)

    @property
    def _longest_drain(self) -> float:
        """Longest time of a request: a stream that another region answers passes this router, too."""
        forwarded = STREAM_DRAIN_SECONDS if self._table.choices else 0.0
        return max([forwarded, *(model.drain_seconds for model in self._table.models)])

    async def _ask(self) -> None:
        before = self._applied_revisions
        await asyncio.gather(*(one.ask() for one in self._all))
        if self._applied_revisions != before:
            self._followed()

    @property
    def _applied_revisions(self) -> tuple[int | None, ...]:
        return tuple(one.state.revision if one.state is not None else None for one in self._all)

    def _write(self, table: RouterTable) -> None:
        replace_file(self._file, table.model_dump_json().encode())
        self._table = table


def with_under_way(
    counts: Iterable[GenerationTraffic], others: Iterable[GenerationTraffic]
) -> tuple[GenerationTraffic, ...]:
    """Add the requests under way of others to the counts."""
    found = {(count.model, count.generation): count for count in counts}
    more: Counter[tuple[str, int]] = Counter()
    for other in others:
        more[other.model, other.generation] += other.in_flight
    for (model, generation), in_flight in more.items():
        if in_flight:
            count = found.get((model, generation)) or GenerationTraffic(model=model, generation=generation)
            found[model, generation] = count.model_copy(update={"in_flight": count.in_flight + in_flight})
    return tuple(found.values())


def _traffic(one: RouterInstance) -> tuple[GenerationTraffic, ...]:
    return one.state.traffic if one.state is not None else ()


def _read(path: Path, region: str) -> RouterTable:
    """Read the table of the file; an empty one if there is none. The revision never decreases."""
    try:
        return decode(RouterTable, path.read_bytes())
    except (FileNotFoundError, ValueError):
        return RouterTable(revision=1, region=region)
