"""The audit: one entry for each unit of work that writes on behalf of a principal, sealed to the entry before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel
from sqlalchemy import LargeBinary, Select, String, cast, insert, or_, select, type_coerce

from ipnext.access.acting import RequestAuthority
from ipnext.model.access.audit import (
    GENESIS,
    LONGEST_NAME,
    LONGEST_REASON,
    AuditEntry,
    AuditHead,
    AuditNote,
    AuditObject,
    AuditWho,
    Outcome,
    document_text,
    seal,
)
from ipnext.store.database import dialects
from ipnext.store.database.columns import storable
from ipnext.store.paging import Page, clamp_limit, ordinal_of, page_of
from ipnext.store.registry.models import Models
from ipnext.store.tables.access import AuditRow
from ipnext.store.tables.row import METADATA

_ENTRIES: Final = METADATA.tables[str(AuditRow.__tablename__)]
_HEAD: Final = select(_ENTRIES.c.sequence, _ENTRIES.c.hash).order_by(_ENTRIES.c.sequence.desc()).limit(1)
_STORED: Final = [type_coerce(column, String).label("at") if column.name == "at" else column for column in _ENTRIES.c]
"""The columns, with times as the driver returns them: an invalid one must not prevent the other entries from being
read."""
_NUMBERS: Final = frozenset({"sequence", "left_out"})
_BYTES: Final = [
    column if column.name in _NUMBERS else cast(column, LargeBinary).label(column.name) for column in _ENTRIES.c
]
"""The columns on SQLite, which also stores text that is not UTF-8: its driver refuses whole rows with such text."""
_FAMILY: Final = ".*"
_SQLITE_TIME: Final = "%Y-%m-%d %H:%M:%S.%f"

CLOCKS_DIFFER: Final = timedelta(minutes=10)
"""Entries are in the order of their commits, but their times come from several machines: a list by time begins this
much earlier."""


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Filter of a list of entries. None: any."""

    who: str | None = None
    """Id or name of a principal."""
    action: str | None = None
    """`models.publish`, or `models.*` for all of models."""
    object: str | None = None
    """Name of the object, or of its model."""
    outcome: Outcome | None = None
    since: datetime | None = None


class Audit(Models):
    """The audit only grows, by the last statements of a unit of work."""

    _noted: AuditNote | None = None

    def note_audit(  # noqa: PLR0913 - the parts of an entry
        self,
        *,
        object: tuple[str, str] | None = None,  # noqa: A002 - as the entry has it
        model: str | None = None,
        owner: str | None = None,
        before: BaseModel | Mapping[str, Any] | None = None,
        after: BaseModel | Mapping[str, Any] | None = None,
        reason: str | None = None,
        change_id: str | None = None,
    ) -> None:
        """Add to the entry of this unit; it is written if the unit writes anything.

        A later call adds to an earlier one.
        """
        note = audit_note(
            object=object,
            model=model,
            owner=owner,
            before=before,
            after=after,
            reason=reason,
            change_id=change_id,
        )
        given = {name: value for name, value in note if value is not None}
        self._noted = (self._noted or AuditNote()).model_copy(update=given)

    def close_audit(self, acting: RequestAuthority) -> None:
        """Append the entry of this unit if it has written anything. The store calls it once, last.

        RateLimited, so that the unit is rolled back, if the principal has caused too many entries.
        """
        if self._has_written() and not acting.trail.asked:
            note = self._noted or AuditNote()
            acting.count_entry(note.size_bytes)
            self.append_audit(acting, "done", note)

    def append_audit(self, acting: RequestAuthority, outcome: Outcome, note: AuditNote) -> AuditEntry:
        """Append an entry. From here to the commit the unit holds the lock of the chain's head; no write may follow."""
        model = note.model or acting.model or None
        owner = note.owner or acting.owner or (None if model is None else self.owner_of(model))
        connection = self._connection
        dialects.lock_audit(connection)
        head = self.audit_head()
        kind, name = note.object or (acting.kind or "Platform", acting.name)
        entry = seal(
            AuditEntry(
                sequence=head.sequence + 1,
                at=self._now(),
                who=AuditWho(kind=acting.principal.kind, id=acting.principal.id, name=storable(acting.principal.name)),
                said=_text(acting.said, LONGEST_NAME),
                source=_text(acting.source, LONGEST_NAME),
                action=acting.action or "unnamed",
                operation=_text(acting.trail.operation(), LONGEST_NAME),
                policy=_text(acting.policy, LONGEST_NAME),
                object=AuditObject(kind=kind, name=_text(name, LONGEST_NAME)),
                model=_text(model, LONGEST_NAME),
                owner=_text(owner, LONGEST_NAME),
                outcome=outcome,
                before=_text(note.before),
                after=_text(note.after),
                reason=_text(note.reason, LONGEST_REASON),
                change_id=_text(note.change_id, LONGEST_NAME),
                request_id=acting.trail.request_id,
                left_out=note.left_out or None,
                prev_hash=head.hash,
                hash=GENESIS,
            )
        )
        connection.execute(insert(_ENTRIES), _row_of(entry))
        return entry

    def audit_head(self) -> AuditHead:
        """Return the newest entry's sequence and hash; sequence 0 before the first."""
        found = self._connection.execute(_HEAD).first()
        return AuditHead(sequence=0, hash=GENESIS) if found is None else AuditHead(sequence=found[0], hash=found[1])

    def audit_page(
        self,
        wanted: AuditFilter | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
        oldest_first: bool = False,
    ) -> Page[AuditEntry]:
        """Return entries by sequence, the newest first unless `oldest_first`."""
        sequence, key = ordinal_of(after), _ENTRIES.c.sequence
        columns = _BYTES if self._connection.dialect.name == "sqlite" else _STORED
        query = _filter_query(select(*columns), wanted or AuditFilter())
        if sequence is not None:
            query = query.where(key > sequence if oldest_first else key < sequence)
        query = query.order_by(key if oldest_first else key.desc()).limit(clamp_limit(limit) + 1)
        found: Sequence[Any] = self._connection.execute(query).mappings().all()
        return page_of(found, clamp_limit(limit), key=lambda row: row["sequence"], value=_entry_of)


def audit_note(
    *,
    before: BaseModel | Mapping[str, Any] | None = None,
    after: BaseModel | Mapping[str, Any] | None = None,
    **fields: Any,
) -> AuditNote:
    """Make a note with the documents in the form of an entry."""
    clean = {name: storable(value) if isinstance(value, str) else value for name, value in fields.items()}
    return AuditNote(before=document_text(before), after=document_text(after), **clean)


def _filter_query(query: Select[Any], wanted: AuditFilter) -> Select[Any]:
    of = _ENTRIES.c
    if wanted.who is not None:
        query = query.where(or_(of.who_id == wanted.who, of.who_name == wanted.who))
    if wanted.action is not None and wanted.action.endswith(_FAMILY):
        first = wanted.action.removesuffix("*")
        query = query.where(of.action >= first, of.action < first[:-1] + chr(ord(first[-1]) + 1))
    elif wanted.action is not None:
        query = query.where(of.action == wanted.action)
    if wanted.object is not None:
        query = query.where(or_(of.object_name == wanted.object, of.model == wanted.object))
    if wanted.outcome is not None:
        query = query.where(of.outcome == wanted.outcome)
    if wanted.since is None:
        return query
    begin = select(of.sequence).where(of.at >= wanted.since - CLOCKS_DIFFER).order_by(of.at).limit(1).scalar_subquery()
    return query.where(of.sequence >= begin, of.at >= wanted.since)


def _text(value: str | None, longest: int | None = None) -> str | None:
    """Return the text as both engines store it, from which the hash is computed. None if it is empty."""
    return storable(value[:longest]) if value else None


def _row_of(entry: AuditEntry) -> Mapping[str, Any]:
    fields = entry.model_dump(exclude={"who", "object", "at"})
    who, of = entry.who, entry.object
    return {
        **fields,
        "at": entry.at,
        "who_kind": who.kind,
        "who_id": who.id,
        "who_name": who.name,
        "object_kind": of.kind,
        "object_name": of.name,
    }


def _entry_of(row: Mapping[str, Any]) -> AuditEntry:
    """Return the entry as it is stored; the verification decides whether it is the one that was written."""
    given = {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in row.items()
    }
    fields = {name: value for name, value in given.items() if not name.startswith(("who_", "object_"))}
    fields["at"] = _time_of(given["at"])
    fields["left_out"] = str(given["left_out"]) if isinstance(given["left_out"], float) else given["left_out"]
    who = {"kind": given["who_kind"], "id": given["who_id"], "name": given["who_name"]}
    of = {"kind": given["object_kind"], "name": given["object_name"]}
    return AuditEntry.model_validate({**fields, "who": who, "object": of})


def _time_of(stored: datetime | str | None) -> datetime | str:
    """Return a time of the driver, which for SQLite is text without a zone.

    Text in any other spelling than the one in which times are stored is returned as text: it was not written here.
    """
    if isinstance(stored, datetime):
        return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored.astimezone(UTC)
    try:
        at = datetime.strptime(str(stored), _SQLITE_TIME).replace(tzinfo=UTC)
    except ValueError:
        at = None
    if at is None or at.strftime(_SQLITE_TIME) != stored:
        return f"not as it was written: {stored}"
    return at
