"""Freezes, changes that may pass them, and changes that wait for them."""

from typing import Any

from sqlalchemy import select as sa_select
from sqlmodel import col, select

from ipnext.errors import Conflict, NotFound, StaleWrite
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.freeze import FreezeManifest, Frozen, Override
from ipnext.model.wire import decode
from ipnext.store.changes.changes import Changes, _change
from ipnext.store.records import FreezeRecord
from ipnext.store.tables.changes import ChangeRow, FreezeOverrideRow, FreezeRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import document, format_known, plain

_ALL = sa_select(METADATA.tables[FreezeRow.__tablename__])


class Freezes(Changes):
    """Freezes apply to all models, so a unit that names one may not write them; an override is for one model."""

    def put_freeze(self, manifest: FreezeManifest, *, expected_version: int | None) -> FreezeRecord:
        """Create or replace a freeze; an equal one stays unchanged.

        `expected_version` is the version that the caller read, 0 if there was none; StaleWrite on another. None: any.
        """
        self._writing(None)
        row = self._get(FreezeRow, manifest.name)
        _check_version(manifest.name, row, expected_version)
        text, now = document(manifest), self._now()
        if row is None:
            row = FreezeRow(name=manifest.name, manifest=text, version=1, created_at=now, updated_at=now)
        elif row.manifest != text:
            row.manifest, row.version, row.updated_at = text, row.version + 1, now
        self._add(row)
        return _freeze(row)

    def delete_freeze(self, name: str, *, expected_version: int | None) -> FreezeRecord:
        """Delete a freeze and return its former record. NotFound; StaleWrite as for `put_freeze`."""
        self._writing(None)
        row = self._freeze_row(name)
        _check_version(name, row, expected_version)
        record = _freeze(row)
        self._session.delete(row)
        self._session.flush()
        return record

    def freeze(self, name: str) -> FreezeRecord:
        """Return one freeze. NotFound names known ones."""
        return _freeze(self._freeze_row(name))

    def find_freeze(self, name: str) -> FreezeRecord | None:
        """Return one freeze, or None if there is none of that name."""
        row = self._get(FreezeRow, name)
        return None if row is None else _freeze(row)

    def freezes(self) -> tuple[FreezeRecord, ...]:
        """Return all freezes, by name."""
        return tuple(sorted(map(_freeze, self._run(_ALL)), key=lambda f: f.manifest.name))

    def override_freezes(self, change_id: str, *, who: str, reason: str, passes: Frozen | None) -> Override:
        """Let one change pass every freeze. `passes` are the freezes that bind it now.

        If repeated, the first override stays. NotFound if the change is unknown; Conflict if it never waits, or has
        ended.
        """
        change = self.change(change_id)
        self._writing(change.model)
        given = self.freeze_override(change_id)
        if given is not None:
            return given
        if change.kind is ChangeKind.ROLLBACK or change.state.final:
            why = (
                "is a rollback, which no freeze holds back" if not change.state.final else f"is {change.state} already"
            )
            msg = f"change {change_id!r} {why}; there is nothing to override"
            raise Conflict(msg)
        names = tuple(each.name for each in passes.freezes) if passes else ()
        row = FreezeOverrideRow(
            change_id=change_id,
            model=change.model,
            at=self._now(),
            who=who,
            reason=reason,
            freezes=document(list(names)),
        )
        self._add(row)
        return _override(row)

    def freeze_override(self, change_id: str) -> Override | None:
        """Return the override of a change, if it has one."""
        row = self._get(FreezeOverrideRow, change_id)
        return None if row is None else _override(row)

    def frozen_changes(self) -> tuple[Change, ...]:
        """Return the changes whose run waits for a freeze to end, in the order of recording."""
        running = (ChangeRow.state == ChangeState.RUNNING.value, ChangeRow.reason == Reason.FROZEN.value)
        query = select(ChangeRow).where(*running).order_by(col(ChangeRow.ordinal))
        return tuple(_change(row) for row in self._session.exec(query))

    def _freeze_row(self, name: str) -> FreezeRow:
        row = self._get(FreezeRow, name)
        if row is None:
            names = sorted(self._session.exec(select(FreezeRow.name)))
            msg = f"freeze {name!r} is not known; {format_known(names)}"
            raise NotFound(msg)
        return row


def _check_version(name: str, row: FreezeRow | None, expected: int | None) -> None:
    current = 0 if row is None else row.version
    if expected is None or expected == current:
        return
    state = f"is at version {current}" if current else "does not exist (version 0)"
    msg = f"freeze {name!r} {state}, the write expects version {expected}; read it again, then write"
    raise StaleWrite(msg)


def _freeze(row: Any) -> FreezeRecord:
    manifest = decode(FreezeManifest, row.manifest)
    return FreezeRecord(manifest=manifest, version=row.version, created_at=row.created_at, updated_at=row.updated_at)


def _override(row: FreezeOverrideRow) -> Override:
    return Override(
        change_id=row.change_id,
        model=row.model,
        at=row.at,
        who=row.who,
        reason=row.reason,
        freezes=tuple(plain(row.freezes)),
    )
