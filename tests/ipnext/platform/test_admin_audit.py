"""Keys that are made on the machine that has the database stand in the audit, too."""

from contextlib import closing

import pytest

from ipnext.access.keys import parse_key
from ipnext.errors import InvalidInput
from ipnext.login.credentials import read_key
from ipnext.platform.admin import create_admin_key, ensure_admin_key, make_first_ticket
from ipnext.store.store import Store


def test_keys_and_tickets_made_beside_the_api_leave_an_entry_each(tmp_path):
    url = f"sqlite:///{tmp_path}/ipnext.db"
    with pytest.raises(InvalidInput, match="holds no record; `ipnext platform setup`"):
        create_admin_key(url, "root", created_by="ann")
    assert not (tmp_path / "ipnext.db").exists()
    with closing(Store.open(url)) as store:
        store.migrate()
    made = create_admin_key(url, "root", created_by="ann by ipnext platform")
    for _ in range(2):
        ensure_admin_key(tmp_path / "key", url)
    text = read_key(tmp_path / "key")
    ticket = make_first_ticket(url, text)
    with closing(Store.open(url)) as store, store.read() as unit:
        entries = unit.audit_page(oldest_first=True).items
    found = [(e.who.kind, e.who.name, e.action, e.object.kind, e.object.name) for e in entries]
    assert found == [
        ("local", "ann by ipnext platform", "keys.manage", "Key", made.id),
        ("local", "ipnext dev", "keys.manage", "Key", parse_key(text or "").id),
        ("local", "ipnext dev", "tickets.create", "Ticket", parse_key(ticket).id),
    ]
    assert not any(parse_key(secret).secret in str(entries) for secret in (made.key, text or "", ticket))
