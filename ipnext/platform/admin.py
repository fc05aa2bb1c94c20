"""Keys of administrators, written into the database itself.

The first one of a platform, and the embedded platform's own.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ipnext.access.acting import acting, on_this_machine
from ipnext.access.keys import NewKey, draw_key, parse_key, proves
from ipnext.errors import InvalidInput, Unauthenticated
from ipnext.login.credentials import read_key, write_private
from ipnext.model.access.rights import ApiKey, CreatedKey, Grant, KeyKind, Role, audited_key, key_view
from ipnext.store.repository import Repository
from ipnext.store.store import Store

DEV_ADMIN: Final = "dev-admin"
BY_DEV: Final = "ipnext dev"
FIRST_TICKET_LASTS: Final = timedelta(minutes=15)


def create_admin_key(database_url: str, name: str, *, created_by: str) -> CreatedKey:
    """Create a key that may do everything.

    InvalidInput if the name is invalid; Conflict if a valid key has it; Unavailable.
    """
    drawn = draw_key()
    try:
        key = _key(drawn, "key", name, created_by=created_by)
    except ValidationError as error:
        msg = f"name: {name!r} is no name; allowed: lower case letters, digits and dashes, at most 63"
        raise InvalidInput(msg, field="name", value=name) from error
    store = Store.open(database_url)
    try:
        if store.schema_range() is None:
            msg = (
                f"database_url (IPNEXT_DATABASE_URL): {store.name} holds no record; `ipnext platform setup` creates one"
            )
            raise InvalidInput(msg, field="database_url", value=store.name)
        with acting(on_this_machine(created_by, "keys.manage")), store.begin() as unit:
            unit.add_key(key)
            unit.note_audit(object=("Key", key.id), after=audited_key(key))
    finally:
        store.close()
    return CreatedKey(**key_view(key).model_dump(), key=drawn.text)


def ensure_admin_key(file: Path, database_url: str) -> None:
    """Ensure that the file has a valid admin key. A key that is unknown to this database, or was revoked, is replaced.

    InvalidInput if others than this user may read the file; Unavailable.
    """
    store = Store.open(database_url)
    try:
        with acting(on_this_machine(BY_DEV, "keys.manage")), store.begin() as unit:
            if _is_valid(unit, read_key(file)):
                return
            former = unit.valid_key_named(DEV_ADMIN)
            if former is not None:
                unit.revoke_key(former.id)
            drawn = draw_key()
            key = unit.add_key(_key(drawn, "key", DEV_ADMIN, created_by=BY_DEV))
            unit.note_audit(
                object=("Key", key.id), before=audited_key(former) if former else None, after=audited_key(key)
            )
            write_private(file, drawn.text + "\n")
    finally:
        store.close()


def make_first_ticket(database_url: str, key: str | None) -> str:
    """Return a ticket that logs one browser in with the admin key, within 15 minutes."""
    drawn, parent = draw_key(), parse_key(key or "")
    store = Store.open(database_url)
    try:
        with acting(on_this_machine(BY_DEV, "tickets.create")), store.begin() as unit:
            ticket = _key(drawn, "ticket", DEV_ADMIN, created_by=BY_DEV, lasts=FIRST_TICKET_LASTS)
            unit.end_tickets(parent.id)
            unit.add_key(ticket, parent=parent.id)
            unit.note_audit(object=("Ticket", ticket.id), after=audited_key(ticket))
    finally:
        store.close()
    return drawn.text


def _is_valid(unit: Repository, text: str | None) -> bool:
    try:
        given = parse_key(text or "")
    except Unauthenticated:
        return False
    key = unit.find_key(given.id)
    return key is not None and proves(given.secret, key.digest) and key.is_valid(datetime.now(UTC))


def _key(drawn: NewKey, kind: KeyKind, name: str, *, created_by: str, lasts: timedelta | None = None) -> ApiKey:
    now = datetime.now(UTC)
    return ApiKey(
        id=drawn.id,
        name=name,
        kind=kind,
        digest=drawn.digest,
        proof_key=drawn.proof_key,
        grants=(Grant(role=Role.ADMIN),),
        created_at=now,
        created_by=created_by,
        expires_at=None if lasts is None else now + lasts,
    )
