"""The audit in the store: an entry for each unit that writes on behalf of a principal; on both engines."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from ipnext.access.acting import ACTING, RequestAuthority, acting
from ipnext.access.keys import draw_key
from ipnext.errors import Conflict, RateLimited, Unauthenticated, Unavailable
from ipnext.model.access.audit import GENESIS, AuditHead, hash_of
from ipnext.model.access.audit_chain import verify
from ipnext.model.access.rights import ApiKey, Grant, Principal, Role
from ipnext.store.access.audit import AuditFilter
from ipnext.store.copy import move
from ipnext.store.database import dialects
from ipnext.store.store import Store
from tests.waiting import PATIENCE_SECONDS

ANN = Principal(kind="key", id="abcdefghijklmnop", name="ann")


@contextmanager
def ann(action="models.apply", **fields):
    with acting(RequestAuthority(ANN, "10.0.0.1", action, "a-policy", **fields)) as who:
        yield who


def exported(store):
    found, after = [], None
    while True:
        with store.read() as unit:
            page = unit.audit_page(after=after, limit=100, oldest_first=True)
        found += [entry.plain() for entry in page.items]
        after = page.next
        if after is None:
            return found


def note(store, number, model=None):
    """A unit that writes, on behalf of Ann."""
    with ann(kind="Model", name="ctr"), store.begin(model) as unit:
        unit.add_event(model, "Noted", f"number {number}")
        unit.note_audit(reason=f"number {number}")


class KeyAuthority:
    """Lets a key act until it ends, for as many entries as it may cause."""

    def __init__(self, most=9):
        self.most = most

    def prove_in(self, who, unit):
        if any(end.is_past(datetime.now(UTC)) for end in unit.key_ends(who.principal.id)):
            msg = "the key has ended"
            raise Unauthenticated(msg)
        return who

    def count_entry(self, _, size_bytes):
        assert size_bytes < 100
        self.most -= 1
        if self.most < 0:
            msg = "too many entries"
            raise RateLimited(msg)


def add_key_of_ann(store):
    with store.begin() as unit:
        unit.add_key(
            ApiKey(
                id=ANN.id,
                name="ann",
                kind="key",
                digest="",
                proof_key="",
                grants=(),
                created_at=datetime.now(UTC),
                created_by="x",
            )
        )


def write(store):
    with store.begin("ctr") as unit:
        unit.add_event("ctr", "Noted", "text")


def test_a_unit_begins_for_a_principal_only_while_its_key_is_valid(applied):
    """What an entry has announced is completed."""
    add_key_of_ann(applied)
    with ann(authority=KeyAuthority()):
        write(applied)
    with ann(authority=KeyAuthority()) as announced:
        applied.record(announced, "asked")
        with applied.begin() as unit:
            unit.revoke_key(ANN.id)
        write(applied)
    with ann(authority=KeyAuthority()) as who:
        with pytest.raises(Unauthenticated):
            write(applied)
        with pytest.raises(Unauthenticated), applied.begin_free(()):
            pytest.fail("the unit has begun")
        with pytest.raises(Unauthenticated):
            applied.record(who, "asked")
        applied.record(who, "refused")
    assert [entry["outcome"] for entry in exported(applied)] == ["done", "asked", "refused"]
    with applied.read() as unit:
        assert [event.message for event in unit.events("ctr")].count("text") == 2


def test_a_unit_beyond_the_budget_of_entries_is_rolled_back(applied):
    add_key_of_ann(applied)
    with ann(authority=KeyAuthority(most=1)) as who:
        write(applied)
        with pytest.raises(RateLimited):
            write(applied)
        with pytest.raises(RateLimited):
            applied.record(who, "asked")
        with applied.begin("ctr"):
            pass  # it writes nothing, and causes no entry
    assert len(exported(applied)) == 1
    with applied.read() as unit:
        assert [event.message for event in unit.events("ctr")].count("text") == 1


def test_a_session_ends_with_the_key_that_it_acts_for(applied):
    add_key_of_ann(applied)
    with applied.read() as unit:
        (valid,) = unit.key_ends(ANN.id)
        assert not valid.is_past(datetime.now(UTC))
        assert unit.key_ends("unknown") == ()
        assert unit.key_ends("unknown", ANN.id) == (valid,)
    with applied.begin() as unit:
        unit.revoke_key(ANN.id)
        (ended,) = unit.key_ends("unknown", ANN.id)
        assert ended.is_past(datetime.now(UTC))


def test_a_unit_that_writes_on_behalf_of_a_principal_has_an_entry(applied):
    with ann(kind="Model", name="ctr", model="ctr", said="ann's boss") as who, applied.begin("ctr") as unit:
        unit.add_event("ctr", "Noted", "text")
        unit.note_audit(before={"a": 1}, reason="why")
        unit.note_audit(after={"b": [1.5, "ü"]}, change_id="c1")
    (entry,) = exported(applied)
    assert entry == {
        "sequence": 1,
        "at": entry["at"],
        "who": {"kind": "key", "id": ANN.id, "name": "ann"},
        "said": "ann's boss",
        "source": "10.0.0.1",
        "action": "models.apply",
        "policy": "a-policy",
        "object": {"kind": "Model", "name": "ctr"},
        "model": "ctr",
        "owner": "default",
        "outcome": "done",
        "before": '{"a":1}',
        "after": '{"b":[1.5,"ü"]}',
        "reason": "why",
        "changeId": "c1",
        "requestId": who.trail.request_id,
        "prevHash": GENESIS,
        "hash": hash_of(entry),
    }
    with applied.read() as unit:
        assert unit.audit_head() == AuditHead(sequence=1, hash=entry["hash"])


def test_units_without_a_principal_and_those_that_write_nothing_leave_none(applied, make):
    with applied.begin("ctr") as unit:
        unit.add_event("ctr", "Noted", "by a worker")
    with ann(), applied.begin() as unit:
        unit.put_model(make.manifest(), expected_version=None)
        unit.note_audit(after={"as": "before"})
        unit.models()
    with ann(), applied.begin_free(["ctr"]) as unit:
        assert unit.model("ctr").name == "ctr"
    with ann(), applied.read() as unit:
        unit.models()
    assert exported(applied) == []


def test_when_a_key_was_used_is_no_news_and_all_else_of_the_same_unit_is(applied):
    drawn, now = draw_key(), datetime.now(UTC)
    grants = (Grant(role=Role.ADMIN),)
    key = ApiKey(
        id=drawn.id,
        name="bot",
        kind="key",
        digest=drawn.digest,
        proof_key=drawn.proof_key,
        grants=grants,
        created_at=now,
        created_by="a test",
    )
    with applied.begin() as unit:
        unit.add_key(key)
    with ann(), applied.begin_free(()) as unit:
        unit.touch_key(key.id, now)
    assert exported(applied) == []
    with ann(), applied.begin() as unit:
        unit.add_event(None, "Before", "")
        unit.touch_key(key.id, now + timedelta(minutes=5))
    with ann(), applied.begin() as unit:
        unit.touch_key(key.id, now + timedelta(minutes=9))
        unit.add_event(None, "After", "")
    assert [entry["sequence"] for entry in exported(applied)] == [1, 2]


def test_a_unit_that_rolls_back_leaves_nothing_and_the_next_one_follows_without_a_gap(applied):
    note(applied, 1)
    with pytest.raises(Conflict), ann(), applied.begin() as unit:  # noqa: PT012 - what it wrote before it failed is the point
        unit.add_event(None, "Noted", "")
        raise Conflict("no")
    note(applied, 2)
    assert [entry["reason"] for entry in exported(applied)] == ["number 1", "number 2"]
    assert verify(exported(applied)).last == 2


def test_an_entry_that_can_not_be_written_takes_its_unit_with_it(applied, monkeypatch):
    def fails(*_):
        msg = "the database is full"
        raise Unavailable(msg)

    monkeypatch.setattr(dialects, "lock_audit", fails)
    with pytest.raises(Unavailable), ann(), applied.begin() as unit:
        unit.add_event(None, "Noted", "")
    with applied.read() as unit:
        assert unit.newest_event() == 0


def test_texts_that_a_column_can_not_hold_are_sealed_as_they_are_held(applied):
    with ann(said="a\0b\ud800", name="x" * 1000), applied.begin() as unit:
        unit.add_event(None, "Noted", "")
        unit.note_audit(reason="\udfff", after={"\0": "\ud800"})
    assert verify(exported(applied)).fault is None
    (entry,) = exported(applied)
    assert (entry["said"], entry["reason"]) == ("a\ufffdb" + "\ufffd" * 3, "\ufffd" * 3)


def test_many_writers_at_once_make_one_chain_without_gap_or_fork(applied, make, url):
    others = [Store.open(url) for _ in range(2)]
    writers, each = 8, 6
    models = [f"m{number}" for number in range(writers)]
    with applied.begin() as unit:
        for model in models:
            unit.put_model(make.manifest(model), expected_version=None)
    ready = threading.Barrier(writers)

    def write(number):
        ready.wait(PATIENCE_SECONDS)
        store = (applied, *others)[number % 3]
        for turn in range(each):
            note(store, number * each + turn, models[number] if turn % 3 else None)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    entries = exported(applied)
    result = verify(entries)
    assert (result.entries, result.fault) == (writers * each, None)
    assert {entry["reason"] for entry in entries} == {f"number {number}" for number in range(writers * each)}
    with applied.read() as unit:
        assert len(unit.event_page(limit=1000).items) == writers * each
    for store in others:
        store.close()


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_a_unit_that_has_an_entry_to_write_holds_nobody_up_before_its_end(applied, make, url, monkeypatch):
    with applied.begin() as unit:
        unit.put_model(make.manifest("other"), expected_version=None)
    monkeypatch.setattr(dialects, "LOCK_SECONDS", 1)
    with closing(Store.open(url)) as impatient, ann(), applied.begin("ctr") as unit:
        unit.add_event("ctr", "Open", "this unit is open")
        unit.note_audit(reason="first begun")
        note(impatient, 2, "other")
    assert [entry["reason"] for entry in exported(applied)] == ["number 2", "first begun"]


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_the_lock_of_the_chain_is_the_last_one_of_a_unit(applied):
    seen = []

    def before(_connection, _cursor, statement, *_):
        seen.append(statement)

    event.listen(applied._engine, "before_cursor_execute", before)
    note(applied, 1, "ctr")
    locks = [at for at, statement in enumerate(seen) if "advisory" in statement]
    assert str(dialects._AUDIT_LOCK) in seen[locks[-1]]
    assert [statement.split()[0] for statement in seen[locks[-1] + 1 :]] == ["SELECT", "INSERT"]


COST = {"sqlite": 2, "postgresql": 3}
"""Statements of an entry: head and insert; on PostgreSQL the lock. One more for the owner of a model."""


def test_what_an_entry_costs_in_statements(applied):
    def statements(write):
        seen = []

        def before(_connection, _cursor, statement, *_):
            seen.append(statement)

        event.listen(applied._engine, "before_cursor_execute", before)
        write()
        event.remove(applied._engine, "before_cursor_execute", before)
        return len(seen)

    def unit(model):
        with applied.begin(model) as repository:
            repository.add_event(model, "Noted", "text")

    def on_behalf(model):
        with ann(model=model or ""):
            unit(model)

    cost = COST[applied._engine.dialect.name]
    assert statements(lambda: on_behalf(None)) - statements(lambda: unit(None)) == cost
    assert statements(lambda: on_behalf("ctr")) - statements(lambda: unit("ctr")) == cost + 1


TAMPERING = (
    "UPDATE audit_entries SET reason = 'x' WHERE sequence = 2",
    "DELETE FROM audit_entries WHERE sequence = 2",
    "DELETE FROM audit_entries",
)


@pytest.mark.parametrize("statement", TAMPERING)
def test_the_database_refuses_to_change_or_delete_an_entry(applied, statement):
    for number in range(3):
        note(applied, number)
    before = exported(applied)
    with pytest.raises(DBAPIError, match="the audit is only ever added to"), applied._engine.begin() as connection:
        connection.execute(text(statement))
    assert exported(applied) == before


ONE_ENGINE = {
    "sqlite": ("INSERT OR REPLACE INTO audit_entries SELECT * FROM audit_entries WHERE sequence = 2",),
    "postgresql": (
        "TRUNCATE audit_entries",
        (
            "INSERT INTO audit_entries SELECT * FROM audit_entries WHERE sequence = 2 ON CONFLICT (sequence) DO "
            "UPDATE SET reason = 'x'"
        ),
    ),
}


def test_the_database_refuses_what_is_a_change_by_another_word(applied):
    for number in range(3):
        note(applied, number)
    before = exported(applied)
    for statement in ONE_ENGINE[applied._engine.dialect.name]:
        with pytest.raises(DBAPIError, match="the audit is only ever added to"), applied._engine.begin() as connection:
            connection.execute(text(statement))
    assert exported(applied) == before


@pytest.fixture
def tamper(applied):
    """Five entries, and a superuser who takes the triggers away."""
    for number in range(1, 6):
        note(applied, number)

    def run(*statements):
        with applied._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                for name in ("update", "delete", "replace"):
                    connection.execute(text(f"DROP TRIGGER audit_entries_no_{name}"))
            else:
                connection.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER USER"))
            for statement in statements:
                connection.execute(text(statement))
        fault = verify(exported(applied)).fault
        return None if fault is None else (fault.kind, fault.sequence)

    return run


CHANGED = {
    "at": "'2026-01-01 00:00:00+00'",
    "who_kind": "'user'",
    "who_id": "'x'",
    "who_name": "'bob'",
    "said": "'x'",
    "source": "'x'",
    "action": "'x'",
    "operation": "'x'",
    "policy": "'x'",
    "object_kind": "'x'",
    "object_name": "'x'",
    "model": "'x'",
    "owner": "'x'",
    "outcome": "'refused'",
    "before": "'{}'",
    "after": "'{}'",
    "reason": "NULL",
    "change_id": "'x'",
    "request_id": "'x'",
    "left_out": "7",
    "prev_hash": f"'{'f' * 64}'",
    "hash": f"'{'f' * 64}'",
}


def test_every_column_is_part_of_the_chain(tamper, applied):
    with applied._engine.connect() as connection:
        found = connection.execute(text("SELECT * FROM audit_entries")).keys()
    assert set(found) == CHANGED.keys() | {"sequence"}


@pytest.mark.parametrize("column", CHANGED)
def test_a_column_that_a_superuser_changed_is_found_at_its_entry(tamper, column):
    value = "'2026-01-01 00:00:00'" if column == "at" else CHANGED[column]
    assert tamper(f'UPDATE audit_entries SET "{column}" = {value} WHERE sequence = 3') == ("changed", 3)


@pytest.mark.parametrize("column", ["who_name", "reason", "hash", "at"])
def test_text_that_is_not_utf8_is_found_at_its_entry(tamper, engine_name, column):
    """SQLite stores it, and its driver refuses to read the row; PostgreSQL stores none."""
    if engine_name != "sqlite":
        pytest.skip("PostgreSQL refuses such text")
    changed = f"UPDATE audit_entries SET \"{column}\" = CAST(x'ff61' AS TEXT) WHERE sequence = 3"
    assert tamper(changed) == ("changed", 3)


@pytest.mark.parametrize("spelling", ["at || 'Z'", "at || '+00:00'", "replace(at, ' ', 'T')"])
def test_another_spelling_of_a_time_is_found_at_its_entry(tamper, engine_name, spelling):
    if engine_name != "sqlite":
        pytest.skip("PostgreSQL stores a time, not its spelling")
    assert tamper(f"UPDATE audit_entries SET at = {spelling} WHERE sequence = 3") == ("changed", 3)


@pytest.mark.parametrize("sequence", [1, 3, 4])
def test_an_entry_that_a_superuser_deleted_is_found_at_its_place(tamper, sequence):
    assert tamper(f"DELETE FROM audit_entries WHERE sequence = {sequence}") == ("removed", sequence)


def test_entries_that_a_superuser_swapped_are_found_at_the_first(tamper):
    swap = "UPDATE audit_entries SET sequence = {} WHERE sequence = {}"
    assert tamper(swap.format(99, 2), swap.format(2, 4), swap.format(4, 99)) == ("changed", 2)


def test_an_entry_that_a_superuser_put_between_others_is_found_at_its_place(tamper, applied):
    shift = [f"UPDATE audit_entries SET sequence = {n + 1} WHERE sequence = {n}" for n in (5, 4, 3)]
    with applied._engine.connect() as connection:
        found = connection.execute(text("SELECT * FROM audit_entries")).keys()
        names = [name for name in found if name != "sequence"]
    quoted = ", ".join(f'"{name}"' for name in names)
    copy = f"INSERT INTO audit_entries (sequence, {quoted}) SELECT 3, {quoted} FROM audit_entries WHERE sequence = 2"
    assert tamper(*shift, copy) == ("changed", 3)


def test_a_tail_that_a_superuser_cut_off_needs_an_anchor(tamper, applied):
    with applied.read() as unit:
        anchor = unit.audit_head()
    assert tamper("DELETE FROM audit_entries WHERE sequence > 3") is None
    fault = verify(exported(applied), anchors=(anchor,)).fault
    assert (fault.kind, fault.sequence) == ("truncated", 4)
    note(applied, "after the cut")
    note(applied, "and one more")
    fault = verify(exported(applied), anchors=(anchor,)).fault
    assert (fault.kind, fault.sequence) == ("changed", 5), "the chain went on, and is another one"


def test_a_refusal_is_a_unit_of_its_own_that_waits_for_no_model(applied, url, engine_name):
    with ann(kind="Model", name="ctr", model="ctr") as who:
        if engine_name == "postgres":
            with closing(Store.open(url)) as other, other.begin("ctr") as unit:
                unit.add_event("ctr", "Open", "")
                applied.record(who, "refused")
        else:
            applied.record(who, "refused")
    refused = [entry for entry in exported(applied) if entry["outcome"] == "refused"]
    assert [(entry["owner"], entry["object"]["name"]) for entry in refused] == [("default", "ctr")]
    assert ACTING.get() is None


def test_the_chain_moves_to_another_database_as_it_is(applied, tmp_path):
    for number in range(3):
        note(applied, number)
    with closing(Store.open(f"sqlite:///{tmp_path}/target.db")) as target:
        target.migrate()
        move(applied, target)
        assert exported(target) == exported(applied)
        note(target, 4)
        assert verify(exported(target)).last == 4
        with pytest.raises(Conflict):
            move(applied, target)


def test_lists_of_the_audit_go_through_an_index(applied):
    for number in range(3):
        note(applied, number)
    seen = []

    def before(_connection, _cursor, statement, parameters, *_):
        seen.append((statement, parameters))

    event.listen(applied._readers, "before_cursor_execute", before)
    filters = (
        AuditFilter(),
        AuditFilter(who="ann"),
        AuditFilter(action="models.apply"),
        AuditFilter(action="models.*"),
        AuditFilter(object="ctr"),
        AuditFilter(since=datetime(2026, 1, 1, tzinfo=UTC)),
    )
    with applied.read() as unit:
        for wanted in filters:
            assert len(unit.audit_page(wanted, limit=2).items) == 2
            unit.audit_page(wanted, after="2", oldest_first=True)
        unit.audit_head()
    event.remove(applied._readers, "before_cursor_execute", before)
    with applied._engine.connect() as connection:
        postgresql = connection.dialect.name != "sqlite"
        if postgresql:
            connection.exec_driver_sql("SET enable_seqscan = off")
        for statement, parameters in seen:
            explain = "EXPLAIN" if postgresql else "EXPLAIN QUERY PLAN"
            plan = [str(row) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)]
            scanned = [step for step in plan if "Seq Scan" in step or "SCAN audit_entries" in step]
            assert not scanned or "WHERE" not in statement, plan
