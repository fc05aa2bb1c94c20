"""Changes that pass: a repair, or a failover, runs while another change waits or the model is paused.

Part of workflow `model`. A failover is a move away from a lost region; it passes the waits of all other changes, those
of repairs and rollbacks too, and also of a run that itself passes others. A repair passes no emergency. A rollback
needs no such pass: it stops what it meets. Whether a change may pass is decided by the store (activity `may_pass`),
once for each run that is in its way; again if a region was lost since. The run that it passes goes on waiting, and the
entity goes on with it afterwards. The store's fence keeps the two from moving the model at the same time.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.messages import ChangeKind, ModelEntityInput, QueuedChange
    from ipnext.model.lifecycle.takeover import ChangeAsked
    from workflows import policies
    from workflows.entity.change_queue import CAN_PASS, PASSES_PAUSE, can_pass, stops
    from workflows.entity.control import ModelControl
    from workflows.errors import explain_error
    from workflows.policies import perform


class ModelPassing(ModelControl):
    """The part of an entity that decides which change runs next, and which one passes."""

    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - as the workflow names it
        super().__init__(input)
        self._weighed = set[tuple[str, str | None]]()
        """A change, and the one that was in its way; None: the pause."""
        self._waking: asyncio.Task[None] | None = None

    @property
    def _unweighed_change(self) -> QueuedChange | None:
        """The oldest waiting change that may pass what is in its way, if the store was not asked yet."""
        kinds, running = self._passable, self._running
        if not kinds or (running is not None and any(stops(waiting, running) for waiting in self._queue)):
            return None
        in_way = None if running is None else running.id
        found = (waiting for waiting in self._queue if waiting.kind in kinds and not self._is_stopped(waiting))
        return next((waiting for waiting in found if (waiting.id, in_way) not in self._weighed), None)

    def _is_stopped(self, change: QueuedChange) -> bool:
        """Check whether a waiting rollback or retirement would stop the change as soon as it runs."""
        return any(stops(waiting, change) for waiting in self._queue)

    @property
    def _passable(self) -> frozenset[ChangeKind]:
        """Kinds that may pass what is in their way now.

        A run that may wait, a pause, or a repair that would run first.
        """
        if self._running is not None:
            return can_pass(self._running.kind) if self._reachable else frozenset()
        repairs = any(waiting.kind is ChangeKind.REPAIR for waiting in self._queue)
        return CAN_PASS - PASSES_PAUSE if self._held is not None or repairs else frozenset()

    async def _may_pass(self, change: QueuedChange) -> bool:
        """Ask the store once. False, too, if what was in the way has changed meanwhile."""
        running = self._running.id if self._running else None
        self._weighed.add((change.id, running))
        asked = ChangeAsked(model=self._model, change_id=change.id)
        try:
            answer = await perform(policies.MAY_PASS, asked, f"may {change.kind} {change.id} pass?")
        except ActivityError as error:
            workflow.logger.error("whether %s may pass is not known: %s", change.id, explain_error(error).message)
            return False
        if not answer.passes or change not in self._queue:
            return False
        self._passing = (*self._passing, change.id)
        return running == (self._running.id if self._running else None)

    def _weigh_again(self, change: QueuedChange) -> None:
        """Take a move that is submitted again as one that was not weighed, and wake its run.

        A region was lost meanwhile.
        """
        asked = {found for found in self._weighed if found[0] == change.id}
        if change.kind is not ChangeKind.MOVE or not (asked or self._reaches(change)):
            return
        self._weighed -= asked
        if self._reaches(change):
            self._waking = asyncio.create_task(self._wake(change))

    async def _wake(self, change: QueuedChange) -> None:
        """Let a run that waits for a freeze check whether it still has to."""
        try:
            await (self._children.get(change.id) or self._run_of(change)).signal(names.FREEZE_CHANGED)
        except FailureError:
            workflow.logger.info("the run of %s ended before it was woken", change.id)
