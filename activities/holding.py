"""What holds a model's changes back (a pause, an approval that is waited for): written down as the condition `Progressing`."""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from ipnext.errors import NotFound
from ipnext.model.controls import HoldNote
from ipnext.model.lifecycle import Done
from ipnext.model.status import ConditionType, Reason
from ipnext.store.repository import Repository
from ipnext.store.session import Store


class HoldingActivities:
    """Needs the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything a worker registers."""
        return (self.note_hold,)

    @activity.defn(name="note_hold", no_thread_cancel_exception=True)
    def note_hold(self, note: HoldNote) -> Done:
        """Write the condition, and an event where there is one to tell. A model that was never applied has neither."""
        with self._store.begin(note.model) as repository:
            try:
                now = _held_by(repository, note.model)
            except NotFound:
                return Done(note="no such model")
            if note.held:
                repository.set_condition(note.model, ConditionType.PROGRESSING, "False", note.reason, note.message)
            elif now is note.reason:
                _end(repository, note.model)
            if note.event:
                repository.add_event(note.model, ConditionType.PROGRESSING.value, note.event)
        return Done(note=note.message)


def end_hold(repository: Repository, model: str) -> None:
    """A change has ended: what held it back holds no more. A pause stays: it is the model's, not the change's."""
    if _held_by(repository, model) not in {None, Reason.PAUSED}:
        _end(repository, model)


def _held_by(repository: Repository, model: str) -> Reason | None:
    """The reason that holds now. NotFound for a model that was never applied."""
    held = (
        c.reason for c in repository.conditions(model) if c.type is ConditionType.PROGRESSING and c.status == "False"
    )
    return next(held, None)


def _end(repository: Repository, model: str) -> None:
    repository.set_condition(model, ConditionType.PROGRESSING, "True", Reason.SUCCEEDED)
