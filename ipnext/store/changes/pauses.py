"""Pauses: who paused a model's changes, and why.

A pause lasts until it is resumed, whatever happens to the workflow.
"""

from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.wire import decode
from ipnext.store.tables.changes import PauseRow
from ipnext.store.unit_of_work import UnitOfWork, document


class Pauses(UnitOfWork):
    """At most one pause for each model."""

    def pause(self, model: str) -> ControlAsked | None:
        """Return who paused the model's changes; None if they are not paused."""
        row = self._get(PauseRow, model)
        return None if row is None else decode(ControlAsked, row.asked)

    def put_pause(self, model: str, asked: ControlAsked) -> None:
        """Pause a model, or replace the reason of its pause. Raises NotFound."""
        self._writing_model(model)
        row = self._get(PauseRow, model)
        if row is None:
            row = PauseRow(model=model, asked=document(asked), created_at=self._now())
        else:
            row.asked = document(asked)
        self._add(row)

    def delete_pause(self, model: str) -> None:
        """End a model's pause, if there is one."""
        self._writing(model)
        row = self._get(PauseRow, model)
        if row is not None:
            self._session.delete(row)
            self._session.flush()
