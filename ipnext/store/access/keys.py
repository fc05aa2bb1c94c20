"""API keys, sessions and tickets. The store has only digests of their secrets."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import bindparam
from sqlalchemy import select as sa_select
from sqlmodel import col, delete, func, select

from ipnext.errors import Conflict, NotFound, RateLimited
from ipnext.model.access.rights import ApiKey, Grant
from ipnext.model.wire import decode_plain
from ipnext.store.paging import Page, clamp_limit, ordinal_of, page_of
from ipnext.store.tables.access import KeyRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork, batches, document, plain

KEPT_AFTER_EXPIRY: Final = timedelta(days=1)
"""Sessions and tickets are deleted this long after they ended. Keys stay, so that the audit's ids have names."""


MOST_LOGINS: Final = 500
"""Of one key, until a day after their end: each is a row for so long, and an entry of the audit for ever."""


class KeyEnd(NamedTuple):
    """End of a key, session or ticket."""

    revoked_at: datetime | None
    expires_at: datetime | None

    def is_past(self, at: datetime) -> bool:
        """Return whether the key was revoked or has expired."""
        return self.revoked_at is not None or (self.expires_at is not None and at >= self.expires_at)


_ROWS: Final = METADATA.tables[str(KeyRow.__tablename__)]
_ENDS: Final = sa_select(_ROWS.c.revoked_at, _ROWS.c.expires_at).where(
    _ROWS.c.id.in_((bindparam("key_id"), bindparam("acts_for")))
)


class Keys(UnitOfWork):
    """Keys belong to no model: a unit that names one may not add or revoke them."""

    def add_key(self, key: ApiKey, *, parent: str | None = None) -> ApiKey:
        """Store a key. Conflict if a valid key of kind `key` has its name.

        `parent` is the key on whose behalf a session or ticket acts; it is valid no longer than that one. RateLimited
        if the parent has MOST_LOGINS already.
        """
        self._writing(None)
        if key.kind == "key":
            self._check_name(key.name)
        else:
            self._forget_ended(self._now() - KEPT_AFTER_EXPIRY)
            self._check_logins(parent)
        fields = key.model_dump(exclude={"grants"})
        self._add(
            KeyRow(**fields, grants=document([grant.model_dump(mode="json") for grant in key.grants]), parent=parent)
        )
        return key

    def find_key(self, key_id: str) -> ApiKey | None:
        """Return a key with its end; a session or ticket also ends with its parent."""
        row = self._key_row(key_id)
        if row is None:
            return None
        key = _key(row)
        parent = self._key_row(row.parent) if row.parent is not None else None
        if row.parent is None:
            return key
        if parent is None:
            return key.model_copy(update={"revoked_at": key.revoked_at or key.created_at})
        ends = [end for end in (key.expires_at, parent.expires_at) if end is not None]
        return key.model_copy(
            update={"revoked_at": key.revoked_at or parent.revoked_at, "expires_at": min(ends, default=None)}
        )

    def key_ends(self, key_id: str, acts_for: str = "") -> tuple[KeyEnd, ...]:
        """Return the end of a key, or of a session or ticket and of the key that it acts for. An unknown one has none.

        One statement, for a check in every unit of work.
        """
        return tuple(KeyEnd._make(row) for row in self._run(_ENDS, key_id=key_id, acts_for=acts_for))

    def parent_of_key(self, key_id: str) -> str | None:
        """Return the key on whose behalf a session or ticket acts; for a key itself. None if the key is unknown."""
        row = self._key_row(key_id)
        return None if row is None else row.parent or row.id

    def key_page(self, *, after: str | None, limit: int) -> Page[ApiKey]:
        """Return keys, revoked ones included, without sessions and tickets, the newest first."""
        query = select(KeyRow).where(KeyRow.kind == "key").order_by(col(KeyRow.ordinal).desc())
        ordinal = ordinal_of(after)
        if ordinal is not None:
            query = query.where(col(KeyRow.ordinal) < ordinal)
        found = self._session.exec(query.limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.ordinal, value=_key)

    def valid_key_named(self, name: str) -> ApiKey | None:
        """Return the key of kind `key` with this name that is neither revoked nor expired."""
        query = select(KeyRow).where(KeyRow.kind == "key", KeyRow.name == name)
        found = (_key(row) for row in self._session.exec(query.order_by(col(KeyRow.ordinal).desc())))
        return next((key for key in found if key.is_valid(self._now())), None)

    def valid_keys_over(self, owner: str) -> tuple[ApiKey, ...]:
        """Return the valid keys with a role over an owner's models alone."""
        valid = (col(KeyRow.kind) == "key", col(KeyRow.revoked_at).is_(None))
        found = map(_key, self._session.exec(select(KeyRow).where(*valid).order_by(col(KeyRow.ordinal))))
        now = self._now()
        return tuple(key for key in found if key.is_valid(now) and any(grant.owner == owner for grant in key.grants))

    def revoke_key(self, key_id: str) -> ApiKey:
        """Revoke a key, which also ends its sessions and tickets; a repeated call changes nothing. Raises NotFound."""
        self._writing(None)
        row = self._key_row(key_id)
        if row is None:
            msg = f"no key has the id {key_id!r}; `ipnext keys list` shows them"
            raise NotFound(msg)
        if row.revoked_at is None:
            row.revoked_at = self._now()
            row.revocation = self.revocations() + 1 if row.kind == "key" else None
            self._add(row)
        return _key(row)

    def revocations(self) -> int:
        """Return the number of keys that were revoked. Sessions and tickets do not count: no region has them."""
        return self._session.exec(select(func.max(KeyRow.revocation))).one() or 0

    def end_tickets(self, parent: str) -> None:
        """Revoke the unused tickets of a key."""
        self._writing(None)
        waiting = (KeyRow.parent == parent, KeyRow.kind == "ticket", col(KeyRow.revoked_at).is_(None))
        for row in self._session.exec(select(KeyRow).where(*waiting)):
            row.revoked_at = self._now()
            self._add(row)

    def known_keys(self, key_ids: Collection[str]) -> frozenset[str]:
        """Return those of the given ids that are of keys, sessions or tickets."""
        return frozenset(
            found
            for some in batches(key_ids)
            for found in self._session.exec(select(KeyRow.id).where(self._among(col(KeyRow.id), some))).all()
        )

    def touch_key(self, key_id: str, at: datetime) -> None:
        """Record the use of a key. Allowed in a unit of any scope; the audit has no entry of it."""
        self._writing_any()
        row = self._key_row(key_id)
        if row is not None and (row.last_used_at is None or row.last_used_at < at):
            with self._bookkeeping():
                row.last_used_at = at
                self._add(row)

    def _key_row(self, key_id: str) -> KeyRow | None:
        return self._session.exec(select(KeyRow).where(KeyRow.id == key_id)).first()

    def _check_name(self, name: str) -> None:
        taken = self.valid_key_named(name)
        if taken is not None:
            msg = f"name: key {taken.id} has the name {name!r} and is valid; revoke it, or choose another name"
            raise Conflict(msg)

    def _check_logins(self, parent: str | None) -> None:
        query = select(func.count()).select_from(KeyRow).where(KeyRow.parent == parent)
        if parent is not None and self._session.exec(query).one() >= MOST_LOGINS:
            msg = (
                f"key {parent} has {MOST_LOGINS} sessions and tickets of the last days, the most of one key; "
                "try again later"
            )
            raise RateLimited(msg)

    def _forget_ended(self, before: datetime) -> None:
        ended = col(KeyRow.expires_at) < before
        self._session.exec(delete(KeyRow).where(col(KeyRow.kind) != "key", ended))


def _key(row: KeyRow) -> ApiKey:
    fields = row.model_dump(exclude={"ordinal", "grants", "parent"})
    return ApiKey(**fields, grants=tuple(decode_plain(Grant, grant) for grant in plain(row.grants)))
