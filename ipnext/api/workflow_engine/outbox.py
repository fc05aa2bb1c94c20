"""The outbox: every recorded change and replan reaches the workflow engine, even if components are down for a while.

An endpoint records a change in one unit of work and wakes the outbox; only this loop submits. A change stays RECORDED
until the engine has accepted it, so after a crash at any point it is just submitted again, which is one change there
too. Models are independent of each other; the changes of one model are submitted in their order. Replans are one more
such line, drains another: the outbox signals the engine that some are recorded, and the engine claims them from the
store itself. The outbox also signals changed freezes to the runs that wait for them. Nothing is submitted if the
database belongs to another platform (`ipnext.store.changes.ownership`).

Only our own entity's validator ends a change here (InvalidInput, Conflict). For any other answer of Temporal or a
worker, the change stays RECORDED and is retried with growing pauses, and an alarm is raised: a log event, `stuck`, the
change's message.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

import structlog

from ipnext.api.workflow_engine.attempts import NOT_SUBMITTED, Attempts, FailedSubmission
from ipnext.api.workflow_engine.port import Lifecycle
from ipnext.errors import Conflict, InvalidInput, IPnextError
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.regions.drain import Drain
from ipnext.model.lifecycle.replans.replan import Replan
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.store.operations.change_end import refuse_change
from ipnext.store.store import Store

FREEZES = "/"
"""The line of the runs that get signals of changed freezes."""

REPLANS = ""
"""The line of the replans among those of the models; no model has an empty name."""

DRAINS = " "
"""The line of the drains; no model has this name either."""


MOST_AT_ONCE = 32
"""Submissions under way at a time: after an outage of Temporal thousands of models may be due together."""

READ_AT_ONCE = 1000
"""Changes that are read and under way at a time, at most. Models that wait for another attempt take none of these
places."""


class Outbox:
    """Submits recorded changes every `interval_seconds`, at once if woken, less often while the engine is down."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        *,
        interval_seconds: float = 1.0,
        max_backoff_seconds: float = 5.0,
        submit_timeout_seconds: float = 10.0,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._interval = interval_seconds
        self._max_backoff = max_backoff_seconds
        self._submit_timeout = submit_timeout_seconds
        self._in_flight: dict[str, asyncio.Task[bool]] = {}
        self._drain_attempts = Attempts(first_seconds=interval_seconds, most_seconds=max_backoff_seconds)
        self._replan_attempts = Attempts(first_seconds=interval_seconds, most_seconds=max_backoff_seconds)
        self._attempts = Attempts(first_seconds=interval_seconds, most_seconds=max_backoff_seconds)
        self._room = asyncio.Semaphore(MOST_AT_ONCE)
        self.foreign = False
        """Whether the database belongs to another platform, so that nothing is submitted."""
        self._ours = False
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._freezes_changed = True  # this process may have died before it signalled the waiting runs

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in the background while the context is open."""
        self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(self._run(), name="outbox")
        try:
            yield
        finally:
            self._loop = None
            tasks = [task, *self._in_flight.values()]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Submit soon. May be called from any thread; without a running loop the next start submits."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._woken.set)

    @property
    def stuck(self) -> Sequence[FailedSubmission]:
        """Recorded changes, drains and replans that are not accepted, for a reason that an operator should look at."""
        return (*self._drain_attempts.stuck(), *self._replan_attempts.stuck(), *self._attempts.stuck())

    @property
    def refusals(self) -> int:
        """Submissions that Temporal refused since this process began, although the change may be valid."""
        return self._attempts.refused + self._drain_attempts.refused + self._replan_attempts.refused

    def freezes_changed(self) -> None:
        """Signal every run that waits for a freeze to check again, until the engine has accepted it.

        From any thread.
        """
        self._freezes_changed = True
        self.wake()

    async def submit_pending(self) -> bool:
        """Submit the recorded changes, waiting no longer than `interval_seconds`. False if anything failed.

        The first time, the engine's namespace is read, for at most `submit_timeout_seconds`.
        """
        tried = frozenset(self._attempts.lines)
        resting = {model for model in tried if not self._attempts.due(model)}
        busy = resting.union(self._in_flight)
        room = max(READ_AT_ONCE - len(self._in_flight), 0)
        pending, replans, drains = await asyncio.to_thread(self._pending, busy, room)
        any_due = pending or replans or drains or self._freezes_changed
        if any_due and not self._ours and not await self._belongs():
            return False
        unsubmitted = await asyncio.to_thread(self._find_unsubmitted, tried)
        self._attempts.keep(unsubmitted | (self._attempts.lines - tried))
        if DRAINS not in self._in_flight:
            self._drain_attempts.keep({drain.region for drain in drains})
        if not replans and REPLANS not in self._in_flight:
            self._replan_attempts.keep(frozenset())
        for model, changes in pending.items():
            self._in_flight[model] = asyncio.create_task(self._submit_in_order(changes))
        if room and sum(map(len, pending.values())) == room:
            self._woken.set()  # more are recorded
        if replans and REPLANS not in self._in_flight:
            self._in_flight[REPLANS] = asyncio.create_task(self._wake_replan(replans))
        if self._freezes_changed and FREEZES not in self._in_flight:
            self._freezes_changed = False
            self._in_flight[FREEZES] = asyncio.create_task(self._signal_frozen())
        if drains and DRAINS not in self._in_flight:
            self._in_flight[DRAINS] = asyncio.create_task(self._signal_drains(drains))
        if not self._in_flight:
            return True
        done, _ = await asyncio.wait(self._in_flight.values(), timeout=self._interval)
        self._in_flight = {model: task for model, task in self._in_flight.items() if task not in done}
        return not [task for task in done if not task.result()]

    async def _run(self) -> None:
        delay = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):  # wait_for of Python 3.11 may swallow a cancellation
                    await self._woken.wait()
            self._woken.clear()
            try:
                submitted = await self.submit_pending()
            except Exception:  # noqa: BLE001 - the edge of a background process: log it and continue
                structlog.get_logger().exception("outbox_failed")
                submitted = False
            delay = self._interval if submitted else min(max(delay, self._interval) * 2, self._max_backoff)

    async def _belongs(self) -> bool:
        """Read the engine's namespace, and return whether it owns the database."""
        log = structlog.get_logger()
        try:
            async with asyncio.timeout(self._submit_timeout):
                namespace = await self._lifecycle.namespace()
            await asyncio.to_thread(self._belong, namespace)
        except Conflict as error:
            self.foreign = True
            log.error("nothing_is_submitted", code=error.code, error=error.message)  # noqa: TRY400 - no fault of the code
            return False
        except (TimeoutError, IPnextError) as error:
            log.warning("nothing_submitted_yet", error=str(error) or "timed out")
            return False
        self.foreign, self._ours = False, True
        return True

    def _belong(self, namespace: WorkflowNamespace) -> None:
        with self._store.begin() as unit:
            unit.belong_to(namespace)

    async def _submit_in_order(self, changes: Sequence[Change]) -> bool:
        """Submit a model's changes one by one.

        False at the first that is not accepted: the later ones wait behind it.
        """
        for change in changes:
            try:
                async with self._room, asyncio.timeout(self._submit_timeout):
                    await self._lifecycle.submit(change)
                await asyncio.to_thread(self._mark_queued, change)
            except (InvalidInput, Conflict) as error:
                structlog.get_logger().exception("change_refused", **_log_fields(change), code=error.code)
                await asyncio.to_thread(self._mark_refused, change, error.message)
            except IPnextError as error:
                return await self._not_taken(change, error)
            except TimeoutError:
                return await self._not_taken(change, None)
            self._attempts.done(change.model)
        return True

    async def _not_taken(self, change: Change, error: IPnextError | None) -> bool:
        """Raise the alarm for a change that stays recorded. Always False."""
        attempt = self._attempts.note_failure(change.model, change.id, error)
        log = structlog.get_logger().bind(**_log_fields(change), tries=attempt.tries, error=attempt.error)
        if attempt.refused:
            log.error("change_stuck", hint="ipnext platform check")
        else:
            log.warning("change_stuck" if attempt.stuck else "change_not_submitted_yet")
        if self._attempts.worth_writing(change.model):
            try:
                await asyncio.to_thread(self._mark_stuck, change, attempt.message)
            except IPnextError as failure:
                log.warning("alarm_not_written", code=failure.code)
        return False

    async def _wake_replan(self, replans: Sequence[Replan]) -> bool:
        ids = [replan.id for replan in replans]
        try:
            async with asyncio.timeout(self._submit_timeout):
                await self._lifecycle.wake_replan()
            await asyncio.to_thread(self._mark_replans_queued, ids)
        except IPnextError as error:
            return self._not_woken(ids, error)
        except TimeoutError:
            return self._not_woken(ids, None)
        self._replan_attempts.done(REPLANS)
        return True

    def _not_woken(self, ids: Sequence[str], error: IPnextError | None) -> bool:
        """Raise the alarm for replans that stay recorded. Always False."""
        attempt = self._replan_attempts.note_failure(REPLANS, ids[0], error)
        log = structlog.get_logger().bind(replans=ids, tries=attempt.tries, error=attempt.error)
        log.warning("replan_stuck" if attempt.stuck else "replan_not_asked_yet", hint="ipnext platform check")
        return False

    async def _signal_frozen(self) -> bool:
        """Signal the runs that wait for a freeze.

        A needless signal causes one more check; without one a run checks within hours.
        """
        try:
            for change in await asyncio.to_thread(self._frozen):
                async with asyncio.timeout(self._submit_timeout):
                    await self._lifecycle.signal_freeze_change(change)
        except (TimeoutError, IPnextError) as error:
            structlog.get_logger().warning("frozen_runs_not_told_yet", error=str(error) or "timed out")
            self._freezes_changed = True
            return False
        return True

    def _frozen(self) -> Sequence[Change]:
        with self._store.read() as unit:
            return unit.frozen_changes()

    async def _signal_drains(self, drains: Sequence[Drain]) -> bool:
        """Signal all of them, each by itself. False if one is not accepted."""
        return all(await asyncio.gather(*map(self._signal_drain, drains)))

    async def _signal_drain(self, drain: Drain) -> bool:
        try:
            async with asyncio.timeout(self._submit_timeout):
                await self._lifecycle.signal_drain(drain.region)
            await asyncio.to_thread(self._mark_submitted, drain)
        except IPnextError as error:
            return await self._not_signalled(drain, error)
        except TimeoutError:
            return await self._not_signalled(drain, None)
        self._drain_attempts.done(drain.region)
        return True

    async def _not_signalled(self, drain: Drain, error: IPnextError | None) -> bool:
        """Raise the alarm for a drain that stays recorded. Always False."""
        attempt = self._drain_attempts.note_failure(drain.region, drain.id, error)
        log = structlog.get_logger().bind(region=drain.region, tries=attempt.tries, error=attempt.error)
        log.warning("drain_stuck" if attempt.stuck else "drain_not_told_yet", hint="ipnext platform check")
        if self._drain_attempts.worth_writing(drain.region):
            try:
                await asyncio.to_thread(self._mark_drain_stuck, drain, attempt.message)
            except IPnextError as failure:
                log.warning("alarm_not_written", code=failure.code)
        return False

    def _pending(
        self, busy: Collection[str], limit: int
    ) -> tuple[Mapping[str, Sequence[Change]], Sequence[Replan], Sequence[Drain]]:
        with self._store.read() as unit:
            changes = unit.unsubmitted_changes(limit=limit, but=busy)
            replans, drains = unit.due_replans(), unit.unsubmitted_drains()
        pending: dict[str, list[Change]] = defaultdict(list)
        for change in sorted(changes, key=lambda c: c.sequence):
            pending[change.model].append(change)
        return pending, replans, drains

    def _find_unsubmitted(self, models: Collection[str]) -> frozenset[str]:
        if not models:
            return frozenset()
        with self._store.read() as unit:
            return unit.models_unsubmitted(models)

    def _mark_submitted(self, drain: Drain) -> None:
        with self._store.begin() as unit:
            unit.mark_submitted([drain])
            known = unit.drain(drain.region)
            if known is not None and known.message.startswith(NOT_SUBMITTED):
                unit.update_drain(known.id, message="")

    def _mark_drain_stuck(self, drain: Drain, message: str) -> None:
        with self._store.begin() as unit:
            unit.update_drain(drain.id, message=message)

    def _mark_replans_queued(self, ids: Sequence[str]) -> None:
        with self._store.begin() as unit:
            unit.queue_replans(ids)

    def _mark_queued(self, change: Change) -> None:
        with self._store.begin(change.model) as unit:
            unit.update_change(change.id, state=ChangeState.QUEUED, message="")

    def _mark_stuck(self, change: Change, message: str) -> None:
        with self._store.begin(change.model) as unit:
            unit.update_change(change.id, state=ChangeState.RECORDED, message=message)

    def _mark_refused(self, change: Change, message: str) -> None:
        """End a change that the entity will never accept, with a reason for users, so that it does not wait forever."""
        with self._store.begin(change.model) as unit:
            refuse_change(unit, change, message)


def _log_fields(change: Change) -> Mapping[str, str]:
    return {"model": change.model, "change_id": change.id, "kind": change.kind.value}
