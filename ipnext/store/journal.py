"""What a person reads: conditions and the history of events."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from sqlalchemy import bindparam, insert, update
from sqlalchemy import select as sa_select
from sqlmodel import col, select

from ipnext.model.status import Condition, ConditionType, Reason, with_ready
from ipnext.store.records import Event
from ipnext.store.tables import METADATA, ConditionRow, EventRow
from ipnext.store.unit import Unit, batches, document, plain, rows

CONDITIONS = METADATA.tables[ConditionRow.__tablename__]

_EVENT = insert(METADATA.tables[EventRow.__tablename__])
_SAME = (CONDITIONS.c.model == bindparam("of_model")) & (CONDITIONS.c.type == bindparam("of_type"))
_CONDITION = sa_select(CONDITIONS).where(_SAME)
_CONDITION_IS = update(CONDITIONS).where(_SAME)

_HALVES = {
    ConditionType.SERVING: ConditionType.UP_TO_DATE,
    ConditionType.UP_TO_DATE: ConditionType.SERVING,
}
"""Each half of `Ready` -> the other one."""


class Journal(Unit):
    """Conditions and events."""

    def set_condition(
        self,
        model: str,
        type: ConditionType,  # noqa: A002 - the written name of the field
        status: Literal["True", "False", "Unknown"],
        reason: Reason,
        message: str = "",
    ) -> Condition:
        """Write a condition; `last_transition_time` moves only when the status changes. NotFound.

        `Ready` follows from others and is not written: a fault of the caller's code, so RuntimeError.
        """
        self._writing_known(model)
        if type is ConditionType.READY:
            msg = "Ready follows from Serving and UpToDate; write these"
            raise RuntimeError(msg)
        known = self._run(_CONDITION, of_model=model, of_type=type.value).first()
        changed = known is None or known.status != status
        since = self._now() if known is None or changed else known.last_transition_time
        said = {"status": status, "reason": reason.value, "message": message, "last_transition_time": since}
        if known is None:
            self._run(insert(CONDITIONS), model=model, type=type.value, **said)
        else:
            self._run(_CONDITION_IS, of_model=model, of_type=type.value, **said)
        if (other := _HALVES.get(type)) is not None:
            half = self._run(_CONDITION, of_model=model, of_type=other.value).first()
            of = self._model_row(model)
            of.ready = status == "True" and half is not None and half.status == "True"
            self._add(of)
        return Condition(type=type, **said)

    def conditions(self, model: str) -> tuple[Condition, ...]:
        """A model's conditions in the order of a rollout's stages, with `Ready`. NotFound."""
        self._model_row(model)
        found = self._session.exec(select(ConditionRow).where(ConditionRow.model == model))
        return with_ready(_condition(row) for row in found)

    def held_models(self, models: Collection[str]) -> Mapping[str, str]:
        """Model -> why its changes do not go on now, of these models; those that go on are left out."""
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
        """Add a line to the history; `model` None: it concerns the fleet. `detail` is plain JSON data."""
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
        """The history, newest first: of one model, or of all."""
        query = select(EventRow).order_by(col(EventRow.ordinal).desc()).limit(rows(limit))
        if model is not None:
            query = query.where(EventRow.model == model)
        return tuple(_event(row) for row in self._session.exec(query))

    def has_fleet_event(self, detail: Mapping[str, Any], *, limit: int) -> bool:
        """Whether one of the newest events that are no model's has this detail."""
        query = select(EventRow.detail).where(col(EventRow.model).is_(None)).order_by(col(EventRow.ordinal).desc())
        found = self._session.exec(query.limit(rows(limit)))
        return any(text is not None and plain(text) == detail for text in found)


def _condition(row: ConditionRow) -> Condition:
    return Condition.model_validate(row.model_dump(exclude={"model"}))


def _event(row: EventRow) -> Event:
    return Event(
        at=row.at,
        model=row.model,
        kind=row.kind,
        message=row.message,
        run_id=row.run_id,
        detail=None if row.detail is None else plain(row.detail),
    )
