"""Resubmission: acknowledged changes, drains and replans without a run get a run again.

Level-triggered, in addition to the outbox, which submits those that the engine has not accepted yet. The store
determines the needed runs: the entity of each model with a change that has been open for a while, `drain/REGION` of
each active drain, `replan` if replans were started and have not ended, `watch/KIND/UPSTREAM` of each system that was
not polled for long. Only these runs are looked up. A new run reads
everything from the store by its recorded ids; its workflow id ensures that there is one. A submission would not work
for a change: the engine answers an update of a known id for a run that has gone. If an entity runs but a change of its
model has no run, it is signalled to read its open changes again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from ipnext import names
from ipnext.api.workflow_engine.port import Lifecycle
from ipnext.errors import Conflict, IPnextError
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.store.store import Store

EVERY_SECONDS = 20.0
"""Interval of the checks: with `OPEN_SECONDS` and `ANSWER_SECONDS`, at most a minute until a run is started again."""

OPEN_SECONDS = 30.0
"""Changes that were recorded later than this are not checked: most end sooner."""

LOST_SECONDS = 180.0
"""Changes that are open for this long and have no run are lost by their entity, though it runs."""

LOST_LOOK_EVERY = 6
"""Lost changes are looked for at every sixth check: an entity that can't record the end of one is signalled this
often."""

AT_ONCE = 32
"""Runs that are checked in parallel."""

ANSWER_SECONDS = 10.0
"""Time limit of each check."""


@dataclass(frozen=True)
class NeededRun:
    """A workflow that has to run, and the reason."""

    workflow_id: str
    begin: Callable[[], Awaitable[None]] = field(compare=False)
    """Start it unless it runs."""
    needed_by: Mapping[str, str] = field(compare=False)
    """For the log."""
    event: str = field(default="run_begun_again", compare=False)
    """The log's event."""


Needs = Callable[[], Sequence[NeededRun]]


class Resubmission:
    """Checks at its start, and then every `every_seconds`."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        *,
        every_seconds: float = EVERY_SECONDS,
        open_seconds: float = OPEN_SECONDS,
        lost_seconds: float = LOST_SECONDS,
        at_once: int = AT_ONCE,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._every = every_seconds
        self._open = open_seconds
        self._lost = lost_seconds
        self._lost_every = LOST_LOOK_EVERY * every_seconds
        self._at_once = at_once

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in the background while the context is open. Drains do not wait for the check of many models."""
        tasks = [
            asyncio.create_task(self._run(needs, every), name=f"resubmission of {what}")
            for what, needs, every in (
                ("the fleet's runs", self._fleet_runs, self._every),
                ("entities", self._entities, self._every),
                ("lost changes", self._lost_changes, self._lost_every),
                ("watches of sources", self._watches, self._every),
            )
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> Sequence[str]:
        """Start the missing runs; return their workflow ids. None if the database belongs to another platform."""
        needs = (self._fleet_runs, self._entities, self._watches)
        return [run for each in needs for run in await self._look_at(each)]

    async def recover_lost_changes(self) -> Sequence[str]:
        """Signal the entities of changes without a run; return the workflow ids of the missing runs."""
        return await self._look_at(self._lost_changes)

    async def _run(self, needs: Needs, every_seconds: float) -> None:
        while True:
            try:
                await self._look_at(needs)
            except Exception:  # noqa: BLE001 - the edge of a background process: log it and continue
                structlog.get_logger().exception("resubmission_failed")
            await asyncio.sleep(every_seconds)

    async def _look_at(self, needs: Needs) -> Sequence[str]:
        """Start missing runs.

        They may have ended after the first read, so only those that a second read still needs are started.
        """
        needed = await asyncio.to_thread(needs)
        if not needed or not await self._belongs():
            return ()
        missing = await self._those(needed, self._is_missing)
        if missing:
            still = frozenset(await asyncio.to_thread(needs))
            missing = await self._those([run for run in missing if run in still], self._begin)
        return [run.workflow_id for run in missing]

    async def _those(
        self, runs: Sequence[NeededRun], call: Callable[[NeededRun], Awaitable[bool]]
    ) -> Sequence[NeededRun]:
        """Return the runs for which a call returns true, in their order.

        A failed call is logged, and retried with the next check.
        """
        turns = asyncio.Semaphore(self._at_once)
        found = await asyncio.gather(*(self._call_in_turn(run, call, turns) for run in runs))
        return [run for run, answer in zip(runs, found, strict=True) if answer]

    async def _call_in_turn(
        self, run: NeededRun, call: Callable[[NeededRun], Awaitable[bool]], turns: asyncio.Semaphore
    ) -> bool:
        async with turns:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return await call(run)
            except (TimeoutError, IPnextError) as error:
                log = structlog.get_logger().bind(workflow_id=run.workflow_id, **run.needed_by)
                log.warning("run_not_begun_again_yet", error=str(error) or "timed out")
                return False

    async def _is_missing(self, run: NeededRun) -> bool:
        return not await self._lifecycle.runs(run.workflow_id)

    async def _begin(self, run: NeededRun) -> bool:
        await run.begin()
        log = structlog.get_logger().bind(workflow_id=run.workflow_id, **run.needed_by)
        log.warning(run.event, why="what needs it was acknowledged, and it did not run")
        return True

    async def _belongs(self) -> bool:
        """Return whether the engine owns the database. The outbox reports it if it does not."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                namespace = await self._lifecycle.namespace()
            await asyncio.to_thread(self._belong, namespace)
        except Conflict:
            return False
        except (TimeoutError, IPnextError) as error:
            structlog.get_logger().warning("nothing_submitted_again_yet", error=str(error) or "timed out")
            return False
        return True

    def _belong(self, namespace: WorkflowNamespace) -> None:
        with self._store.read() as unit:
            owner = unit.belongs_to()
        if owner is None or owner.id != namespace.id:
            with self._store.begin() as unit:
                unit.belong_to(namespace)

    def _fleet_runs(self) -> Sequence[NeededRun]:
        """Return the active drains, and the replan if replans were started; lost regions first."""
        with self._store.read() as unit:
            drains, replans = unit.claimed_drains(), unit.claimed_replans()
        found = [
            NeededRun(
                names.drain_workflow_id(drain.region),
                lambda region=drain.region: self._lifecycle.signal_drain(region),  # type: ignore[misc]
                {"drain": drain.id, "state": drain.state.value},
            )
            for drain in sorted(drains, key=lambda drain: (not drain.disaster, drain.region))
        ]
        if replans:
            needed_by = {"replan": replans[0].id, "state": replans[0].state.value}
            found.append(NeededRun(names.REPLAN_ID, self._lifecycle.wake_replan, needed_by))
        return found

    def _watches(self) -> Sequence[NeededRun]:
        """Return the watches of upstream systems that were not polled for long."""
        with self._store.read() as unit:
            upstreams = unit.stale_upstreams()
        return [
            NeededRun(
                names.watch_workflow_id(kind, upstream),
                lambda kind=kind, upstream=upstream: self._lifecycle.wake_watch(kind, upstream),  # type: ignore[misc]
                {"kind": kind, "upstream": upstream},
            )
            for kind, upstream in upstreams
        ]

    def _entities(self) -> Sequence[NeededRun]:
        """Return the entities of models with a change that has been open for long."""
        with self._store.read() as unit:
            changes = unit.long_open_changes(seconds=self._open)
        return [
            NeededRun(
                names.model_workflow_id(change.model),
                lambda model=change.model: self._lifecycle.begin_entity(model),  # type: ignore[misc]
                {"model": change.model, "change_id": change.id, "kind": change.kind.value},
            )
            for change in changes
        ]

    def _lost_changes(self) -> Sequence[NeededRun]:
        """Return the runs of changes that have been open for longer, unless a pause or another change blocks them."""
        with self._store.read() as unit:
            changes = unit.changes_due(seconds=self._lost)
        return [
            NeededRun(
                names.lifecycle_workflow_id(change.model, change.id),
                lambda model=change.model: self._lifecycle.look_again(model),  # type: ignore[misc]
                {"model": change.model, "change_id": change.id, "kind": change.kind.value},
                event="entity_looks_again",
            )
            for change in changes
        ]
