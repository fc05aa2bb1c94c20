"""Resubmission: changes that were acknowledged and whose entity does not run any more get an entity again.

Level-triggered beside the outbox, which submits what no entity has taken yet. One query finds the models with a change that
has been open for a while; only their entities are looked up. An entity that begins takes up all that the store has of its
model, by the ids that it has. A submission would not do: the engine answers an update of a known id for a run that has gone.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import structlog

from ipnext.api.lifecycle import Lifecycle
from ipnext.errors import Conflict, IPnextError
from ipnext.model.lifecycle import Change
from ipnext.model.workflow_namespace import WorkflowNamespace
from ipnext.store.session import Store

EVERY_SECONDS = 20.0
"""Between two looks: with `OPEN_SECONDS` and `ANSWER_SECONDS`, a minute at most until an entity is begun again."""

OPEN_SECONDS = 30.0
"""A change that was recorded later than this is not looked for: most end sooner."""

AT_ONCE = 32
"""Entities that are asked side by side."""

ANSWER_SECONDS = 10.0
"""For each of them."""


class Resubmission:
    """Looks at once when it begins to run, and then every `every_seconds`."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        *,
        every_seconds: float = EVERY_SECONDS,
        open_seconds: float = OPEN_SECONDS,
        at_once: int = AT_ONCE,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._every = every_seconds
        self._open = open_seconds
        self._at_once = at_once

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in the background for as long as the context is open."""
        task = asyncio.create_task(self._run(), name="resubmission")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self) -> Sequence[Change]:
        """Begin the entities that are missing; the first open change of each. Nothing of a record of another platform."""
        changes = await asyncio.to_thread(self._long_open)
        if not changes or not await self._belongs():
            return ()
        turns = asyncio.Semaphore(self._at_once)
        again = await asyncio.gather(*(self._looked_at(change, turns) for change in changes))
        return [change for change, submitted in zip(changes, again, strict=True) if submitted]

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - the edge of a background process: log it and go on
                structlog.get_logger().exception("resubmission_failed")
            await asyncio.sleep(self._every)

    async def _looked_at(self, change: Change, turns: asyncio.Semaphore) -> bool:
        log = structlog.get_logger().bind(model=change.model, change_id=change.id, kind=change.kind)
        async with turns:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    if await self._lifecycle.entity_runs(change.model):
                        return False
                    await self._lifecycle.begin_entity(change.model)
            except (TimeoutError, IPnextError) as error:
                log.warning("change_not_submitted_again_yet", error=str(error) or "timed out")
                return False
        log.warning("change_submitted_again", why="the entity of its model did not run")
        return True

    async def _belongs(self) -> bool:
        """Whether the record is this engine's. The outbox says loudly if it is not."""
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

    def _long_open(self) -> Sequence[Change]:
        with self._store.read() as unit:
            return unit.long_open_changes(seconds=self._open)
