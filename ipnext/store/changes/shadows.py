"""Shadows that changes keep: at most one for each model."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import NamedTuple

from sqlmodel import col, select

from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.shadow import ModelShadow, ShadowSeen
from ipnext.model.wire import decode_frozen
from ipnext.store.tables.changes import ChangeRow, ShadowRow
from ipnext.store.tables.registry import ModelRow
from ipnext.store.unit_of_work import UnitOfWork, batches, document

_FINAL = tuple(state.value for state in ChangeState if state.final)


class StoredShadow(NamedTuple):
    """A shadow, how far it is, and since when it is kept."""

    shadow: ModelShadow
    seen: ShadowSeen
    since: datetime


class Shadows(UnitOfWork):
    """A shadow is written and deleted in the unit of work that writes its replicas and route tables."""

    def shadow(self, model: str) -> ModelShadow | None:
        """Return a model's shadow; None if no change keeps one."""
        row = self._get(ShadowRow, model)
        return None if row is None else decode_frozen(ModelShadow, row.shadow)

    def stored_shadow(self, model: str) -> StoredShadow | None:
        """Return a model's shadow with its last look."""
        row = self._get(ShadowRow, model)
        return None if row is None else _stored(row)

    def shadows(self, models: Collection[str]) -> Mapping[str, StoredShadow]:
        """Return the shadows of these models, by model."""
        wanted = (select(ShadowRow).where(col(ShadowRow.model).in_(some)) for some in batches(models))
        return {row.model: _stored(row) for each in wanted for row in self._session.exec(each)}

    def shadows_but(self, model: str) -> tuple[StoredShadow, ...]:
        """Return the shadows of all other models, by model."""
        query = select(ShadowRow).where(col(ShadowRow.model) != model).order_by(col(ShadowRow.model))
        return tuple(_stored(row) for row in self._session.exec(query))

    def shadows_of_owner(self, owner: str, *, but: str) -> tuple[StoredShadow, ...]:
        """Return the shadows of an owner's models, except one, by model."""
        query = select(ShadowRow).join(ModelRow, col(ModelRow.name) == col(ShadowRow.model))
        query = query.where(col(ModelRow.owner) == owner, col(ShadowRow.model) != but).order_by(col(ShadowRow.model))
        return tuple(_stored(row) for row in self._session.exec(query))

    def put_shadow(self, shadow: ModelShadow, seen: ShadowSeen) -> None:
        """Create or replace a model's shadow. Raises NotFound."""
        self._writing_model(shadow.model)
        row = self._get(ShadowRow, shadow.model)
        if row is None:
            said = {"shadow": document(shadow), "seen": document(seen)}
            row = ShadowRow(model=shadow.model, change_id=shadow.change_id, created_at=self._now(), **said)
        else:
            row.change_id, row.shadow, row.seen = shadow.change_id, document(shadow), document(seen)
        self._add(row)

    def delete_shadow(self, model: str) -> None:
        """Delete a model's shadow, if there is one."""
        self._writing(model)
        row = self._get(ShadowRow, model)
        if row is not None:
            self._session.delete(row)
            self._session.flush()

    def shadows_left(self) -> tuple[tuple[str, str], ...]:
        """Return (model, change) of shadows whose change has ended, by model."""
        query = select(ShadowRow.model, ShadowRow.change_id).join(
            ChangeRow, col(ChangeRow.id) == col(ShadowRow.change_id)
        )
        return tuple(sorted(self._session.exec(query.where(col(ChangeRow.state).in_(_FINAL)))))


def _stored(row: ShadowRow) -> StoredShadow:
    return StoredShadow(decode_frozen(ModelShadow, row.shadow), decode_frozen(ShadowSeen, row.seen), row.created_at)
