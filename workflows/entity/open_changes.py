"""Open changes of the store: the part of workflow `model` that reads which changes it has to carry out.

An entity that begins reads them once. It reads them again after it gave up on a change (its end could not be recorded,
or it could not be marked as superseded), and when the API signals that a change lacks its run. So no acknowledged
change is forgotten while the entity lives.
"""

from collections.abc import Iterable

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.messages import ModelEntityInput, QueuedChange, SupersededChange
    from ipnext.model.lifecycle.takeover import ModelAsked, OpenChange, OpenChanges
    from workflows import policies
    from workflows.entity.change_queue import CAN_PASS, SupersededEntry, enqueue
    from workflows.entity.superseded_marks import SupersededMarks
    from workflows.errors import explain_error
    from workflows.policies import perform

REMEMBERED = 500
"""Ids of handled changes that are remembered, so that one submitted again is not run again."""


class OpenChangeReader(SupersededMarks):
    """The part of an entity that takes up the open changes of the store."""

    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - as the workflow names it
        super().__init__(input)
        self._recent = input.recent
        self._begun = input.begun
        """Changes whose run has begun before: they are awaited, or settled, before any other change begins."""

    @workflow.signal(name=names.LOOK_AGAIN)
    def look_again(self) -> None:
        """Read the open changes again: one of them has no run."""
        self._looks_again = True

    async def _rebuild(self) -> None:
        """Read the changes from the store that were requested before this entity began.

        Later submissions are in the queue.
        """
        found = await self._open_changes()
        self._take_up(found)
        for item in found.changes:
            if not item.begun and item.change.id not in self._recent:
                self._enqueue(item.change)
        if not self._heard_of_hold:
            self._held = found.held
        self._serving = found.serving_generation
        self._rebuilt = True
        self._show()

    async def _look(self) -> QueuedChange | None:
        """Take up the open changes that this entity lost.

        Return the one of them that holds the model's fence, if any.
        """
        self._looks_again = False
        known = self._tracked_ids
        try:
            found = await self._open_changes()
        except ActivityError as error:
            workflow.logger.error("the open changes could not be read: %s", explain_error(error).message)
            self._give_up()
            return None
        self._superseded, self._unmarked = (*self._superseded, *self._unmarked), ()
        known |= self._tracked_ids
        changes = tuple(item for item in found.changes if item.change.id not in known)
        lost = found.model_copy(update={"changes": changes})
        self._take_up(lost)
        for item in lost.changes:
            workflow.logger.warning("change %s was lost, and is taken up again", item.change.id)
            if not item.begun:
                self._enqueue(item.change)
        return next((item.change for item in _in_order(lost.changes) if item.begun and item.moves), None)

    async def _open_changes(self) -> OpenChanges:
        return await perform(
            policies.OPEN_CHANGES, ModelAsked(model=self._model), f"read what is open of {self._model}"
        )

    def _take_up(self, found: OpenChanges) -> None:
        """Await, or settle, the changes that have begun."""
        self._passing = (*self._passing, *(item.change.id for item in found.changes if item.passes))
        begun = tuple(item.change for item in _in_order(found.changes) if item.begun)
        ids = {change.id for change in begun}
        self._begun = (*self._begun, *begun)
        self._queue = tuple(change for change in self._queue if change.id not in ids)
        self._superseded = tuple(item for item in self._superseded if item.change_id not in ids)

    @property
    def _tracked_ids(self) -> frozenset[str]:
        """Ids of the changes that this entity still works on."""
        works_on = (self._running, *self._passed, *self._begun, *self._queue)
        marked = (item.change_id for item in (*self._superseded, *self._unmarked))
        return frozenset((*(change.id for change in works_on if change is not None), *marked))

    def _enqueue(self, change: QueuedChange) -> None:
        self._recent = (*self._recent, change.id)[-REMEMBERED:]
        self._queue, gone = enqueue(self._queue, change)
        self._superseded += tuple(map(_pair, gone))


def _in_order(changes: Iterable[OpenChange]) -> list[OpenChange]:
    """Order changes that have begun: first the one that moves the model, then those that may pass others."""
    return sorted(changes, key=lambda item: (not item.moves, item.change.kind not in CAN_PASS))


def _pair(found: SupersededEntry) -> SupersededChange:
    return SupersededChange(change_id=found.change.id, by=found.by.id)
