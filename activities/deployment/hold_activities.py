"""Pauses of a model's changes (by a user, or until an approval), recorded as the condition `Progressing`."""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from activities.planning.drift import record_repair
from ipnext.errors import NotFound
from ipnext.model.lifecycle.changes.controls import HoldNote
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.store.operations.change_end import block_reason, release_hold
from ipnext.store.store import Store


class HoldingActivities:
    """Pause activities, on the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.note_hold,)

    @activity.defn(name="note_hold", no_thread_cancel_exception=True)
    def note_hold(self, note: HoldNote) -> Done:
        """Record the condition, and an event if there is a text for one. A model that was never applied has neither."""
        with self._store.begin(note.model) as repository:
            try:
                now = block_reason(repository, note.model)
            except NotFound:
                return Done(note="no such model")
            if note.held and note.pause is not None:
                repository.put_pause(note.model, note.pause)
                record_repair(repository, note.model)
            elif note.reason is Reason.PAUSED:
                repository.delete_pause(note.model)
            if note.held:
                repository.set_condition(note.model, ConditionType.PROGRESSING, "False", note.reason, note.message)
            elif now is note.reason:
                release_hold(repository, note.model)
            if note.event:
                repository.add_event(note.model, ConditionType.PROGRESSING.value, note.event)
        return Done(note=note.message)
