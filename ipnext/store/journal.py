"""What a person reads: conditions and the history of events."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from sqlmodel import col, select

from ipnext.model.status import Condition, ConditionType, Reason
from ipnext.store.records import Event
from ipnext.store.tables import ConditionRow, EventRow
from ipnext.store.unit import Unit, batches, document, plain, rows

_SHOWN_FIRST = tuple(ConditionType)


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
        """Write a condition; `last_transition_time` moves only when the status changes. NotFound."""
        of = self._writing_model(model)
        row = self._session.get(ConditionRow, (model, type.value))
        if row is None:
            row = ConditionRow(
                model=model, type=type.value, status="", reason="", message="", last_transition_time=self._now()
            )
        if row.status != status:
            row.last_transition_time = self._now()
        row.status, row.reason, row.message = status, reason.value, message
        if type is ConditionType.READY:
            of.ready = status == "True"
            self._session.add(of)
        self._add(row)
        return _condition(row)

    def conditions(self, model: str) -> tuple[Condition, ...]:
        """A model's conditions in the order of a rollout's stages. NotFound."""
        self._model_row(model)
        found = [_condition(row) for row in self._session.exec(select(ConditionRow).where(ConditionRow.model == model))]
        return tuple(sorted(found, key=lambda condition: _SHOWN_FIRST.index(condition.type)))

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
        row = EventRow(
            at=self._now(),
            model=model,
            kind=kind,
            message=message,
            run_id=run_id,
            detail=None if detail is None else document(dict(detail)),
        )
        self._add(row)
        return _event(row)

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
