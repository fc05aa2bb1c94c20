"""Conditions and the history of events, for users."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from sqlalchemy import Boolean, and_, bindparam, case, delete, insert, update
from sqlalchemy import select as sa_select
from sqlmodel import col, select

from ipnext.model.lifecycle.status import Condition, ConditionType, Reason, with_ready
from ipnext.store.records import Event
from ipnext.store.tables.changes import ConditionRow, EventRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import MODELS, UnitOfWork, batches, document, plain, rows

CONDITIONS = METADATA.tables[ConditionRow.__tablename__]

_EVENT = insert(METADATA.tables[EventRow.__tablename__])
_SAME = (CONDITIONS.c.model == bindparam("of_model")) & (CONDITIONS.c.type == bindparam("of_type"))
_SINCE = CONDITIONS.c.last_transition_time
_CONDITION_IS = (
    update(CONDITIONS)
    .where(_SAME)
    .values(
        last_transition_time=case(
            (CONDITIONS.c.status == bindparam("stays"), _SINCE), else_=bindparam("now", type_=_SINCE.type)
        )
    )
)
_NEW_CONDITION = insert(CONDITIONS)
_NO_CONDITION = delete(CONDITIONS).where(_SAME)
_CONDITIONS_OF = sa_select(CONDITIONS).where(CONDITIONS.c.model == bindparam("model"))
_OTHER_HALF = sa_select(CONDITIONS.c.status).where(
    CONDITIONS.c.model == MODELS.c.name, CONDITIONS.c.type == bindparam("of_other"), CONDITIONS.c.status == "True"
)
_READY_IS = (
    update(MODELS)
    .where(MODELS.c.name == bindparam("of_name"))
    .values(ready=and_(bindparam("this", type_=Boolean), _OTHER_HALF.exists()))
)

_HALVES = {
    ConditionType.SERVING: ConditionType.UP_TO_DATE,
    ConditionType.UP_TO_DATE: ConditionType.SERVING,
}
"""Each half of `Ready` -> the other one."""


class Journal(UnitOfWork):
    """Conditions and events."""

    def set_condition(
        self,
        model: str,
        type: ConditionType,  # noqa: A002 - the written name of the field
        status: Literal["True", "False", "Unknown"],
        reason: Reason,
        message: str = "",
    ) -> None:
        """Write a condition; `last_transition_time` changes only with the status. Raises NotFound.

        `Ready` follows from others and is not written: that would be a fault of the caller's code, so RuntimeError.
        """
        self._writing(model)
        if type is ConditionType.READY:
            msg = "Ready follows from Serving and UpToDate; write these"
            raise RuntimeError(msg)
        said, now = {"status": status, "reason": reason.value, "message": message}, self._now()
        if not self._write(_CONDITION_IS, of_model=model, of_type=type.value, stays=status, now=now, **said):
            self._check_known(model)
            self._write(_NEW_CONDITION, model=model, type=type.value, last_transition_time=now, **said)
        if (other := _HALVES.get(type)) is not None:
            self._write(_READY_IS, of_name=model, of_other=other.value, this=status == "True")

    def delete_condition(
        self,
        model: str,
        type: ConditionType,  # noqa: A002 - the written name of the field
    ) -> None:
        """Delete a condition that does not apply to a model any more; a missing one is no error."""
        self._writing(model)
        self._write(_NO_CONDITION, of_model=model, of_type=type.value)

    def conditions(self, model: str) -> tuple[Condition, ...]:
        """Return a model's conditions in the order of a rollout's stages, with `Ready`. Raises NotFound."""
        found = [_condition(row) for row in self._run(_CONDITIONS_OF, model=model)]
        if not found:
            self._check_known(model)
        return with_ready(found)

    def held_models(self, models: Collection[str]) -> Mapping[str, str]:
        """Map those of these models whose changes are blocked to the reason."""
        row = ConditionRow
        query = select(row.model, row.reason, row.message).where(
            row.type == ConditionType.PROGRESSING.value, row.status == "False"
        )
        found = (
            item
            for some in batches(models)
            for item in self._session.exec(query.where(self._among(col(row.model), some)))
        )
        return {model: f"{reason}: {message}" for model, reason, message in found}

    def add_event(
        self,
        model: str | None,
        kind: str,
        message: str,
        *,
        run_id: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Event:
        """Add an event to the history; if `model` is None, it concerns the fleet. `detail` is plain JSON data."""
        if model is None:
            self._writing_any()
        else:
            self._writing(model)
        event = Event(
            at=self._now(),
            model=model,
            kind=kind,
            message=message,
            run_id=run_id,
            detail=None if detail is None else dict(detail),
        )
        self._run(_EVENT, **dict(event) | {"detail": None if detail is None else document(dict(detail))})
        return event

    def events(self, model: str | None = None, *, limit: int = 100) -> tuple[Event, ...]:
        """Return the events, newest first: of one model, or of all."""
        query = select(EventRow).order_by(col(EventRow.ordinal).desc()).limit(rows(limit))
        if model is not None:
            query = query.where(EventRow.model == model)
        return tuple(_event(row) for row in self._session.exec(query))

    def has_fleet_event(self, detail: Mapping[str, Any], *, limit: int) -> bool:
        """Return whether one of the newest events of the fleet has this detail."""
        query = select(EventRow.detail).where(col(EventRow.model).is_(None)).order_by(col(EventRow.ordinal).desc())
        found = self._session.exec(query.limit(rows(limit)))
        return any(text is not None and plain(text) == detail for text in found)


def _condition(row: Any) -> Condition:
    return Condition(
        type=ConditionType(row.type),
        status=row.status,
        reason=Reason(row.reason),
        message=row.message,
        last_transition_time=row.last_transition_time,
    )


def _event(row: EventRow) -> Event:
    return Event(
        at=row.at,
        model=row.model,
        kind=row.kind,
        message=row.message,
        run_id=row.run_id,
        detail=None if row.detail is None else plain(row.detail),
    )
