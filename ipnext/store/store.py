"""The store and its units of work: everything in `with store.begin()` happens, or nothing of it."""

import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL

from ipnext.access.acting import ACTING, RequestAuthority
from ipnext.errors import Unavailable
from ipnext.model.access.audit import AuditEntry, AuditNote, Outcome
from ipnext.store.database import dialects
from ipnext.store.database.errors import translate_errors
from ipnext.store.repository import Repository
from ipnext.store.schema.migration import SchemaRange, schema_range, upgrade


class Store:
    """The state store on SQLite or PostgreSQL. One per process; any thread may use it.

    All calls raise Unavailable while the database is down, absent, locked by another writer for over 10 s, full or not
    migrated.
    """

    def __init__(self, engine: Engine, url: URL) -> None:
        self._engine = engine
        self._readers = dialects.reading(engine)
        self._url = url
        self._revisions = dialects.Revisions(engine)
        self._turn = threading.Lock() if url.drivername == "sqlite" else None

    @classmethod
    def open(cls, url: str) -> "Store":
        """Create a store for `sqlite:///FILE` or `postgresql+psycopg://...`; InvalidInput for another.

        Connects later.
        """
        parsed = dialects.parse(url)
        return cls(dialects.connect(parsed), parsed)

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self._url.render_as_string(hide_password=True)

    @property
    def absent_file(self) -> Path | None:
        """The file of a missing SQLite database; None if it exists, and on PostgreSQL."""
        return dialects.file_of(self._url) if dialects.is_absent(self._url) else None

    def migrate(self) -> None:
        """Create the database and its tables, or migrate them to this version.

        Any number of processes may do so at once.
        """
        with self._translate_errors():
            upgrade(self._engine)

    def schema_range(self) -> SchemaRange | None:
        """Return the version of the tables and the builds that can use them; None before the first migration.

        Writes nothing.
        """
        if dialects.is_absent(self._url):
            return None
        with self._translate_errors():
            return schema_range(self._readers)

    @contextmanager
    def begin(self, model: str | None = None) -> Iterator[Repository]:
        """Begin one unit of work: it commits at the end, and rolls back on an exception.

        Units run one after another, so data that a unit reads does not change before it writes. A unit that names a
        model may write only that model, and on PostgreSQL waits only for units of that model. Keep units short: nothing
        slow inside, and no unit inside another (it would wait for itself). If a principal acts
        (`ipnext.access.acting`), the unit first proves that it still may: Unauthenticated, Forbidden or NotFound. If
        the unit writes, an entry of the audit is its last statement.
        """
        with self._transaction() as connection:
            dialects.claim_turn(connection, model)
            yield from _audit_unit(connection, None if model is None else frozenset({model}))

    @contextmanager
    def begin_free(self, models: Collection[str]) -> Iterator[Repository]:
        """Begin a unit of work for those of these models that no other unit writes now: `Repository.scope` names them.

        On PostgreSQL it waits for no unit of a model. The caller handles the other models in further units.
        """
        with self._transaction() as connection:
            scope = dialects.claim_free_turns(connection, models)
            yield from _audit_unit(connection, scope)

    def record(self, acting: RequestAuthority, outcome: Outcome, note: AuditNote | None = None) -> AuditEntry:
        """Append an audit entry in a separate unit.

        It is of a refusal, or of an action outside the store that is about to begin.

        Before such an action the principal is proved again, as in `begin`, and its entry is counted: RateLimited.
        """
        with (
            self._transaction() as connection,
            closing(Repository(connection, scope=frozenset(), writable=True)) as unit,
        ):
            if outcome == "asked":
                dialects.lock_audit(connection)  # a revocation is committed before, or after this entry
                acting = acting.prove(unit)
                acting.count_entry((note or AuditNote()).size_bytes)
            entry = unit.append_audit(acting, outcome, note or AuditNote())
        acting.trail.asked = acting.trail.asked or outcome == "asked"
        return entry

    @contextmanager
    def read(self, visible: frozenset[str] | None = None) -> Iterator[Repository]:
        """Begin a unit that only reads: one consistent snapshot, without waiting for or blocking any writer.

        `visible` are the owners whose models it lists and counts; None: all.
        """
        with (
            self._translate_errors(),
            self._readers.begin() as connection,
            closing(Repository(connection, scope=None, writable=False, visible=visible)) as repository,
        ):
            yield repository

    def revision(self) -> str:
        """Return a mark of the committed content: equal marks of one store mean that nothing was committed in between.

        SQLite: `PRAGMA data_version` of a connection that never writes. PostgreSQL: `pg_current_snapshot()`, which
        other databases of the server change too.
        """
        with self._translate_errors():
            return self._revisions.mark()

    def close(self) -> None:
        """End all connections; that of an open unit ends with the unit."""
        self._revisions.close()
        dialects.close(self._engine)

    def _translate_errors(self) -> AbstractContextManager[None]:
        return translate_errors(self.name, is_absent=lambda: dialects.is_absent(self._url))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Begin a transaction that writes, once it is this thread's turn."""
        with self._waiting(), self._translate_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Queue the threads of one process: SQLite's own wait is a sleep that may starve one of them."""
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=dialects.LOCK_SECONDS):
            msg = f"another unit of work has held {self.name} for {dialects.LOCK_SECONDS} s; try again"
            raise Unavailable(msg)
        try:
            yield
        finally:
            self._turn.release()


def _audit_unit(connection: Connection, scope: frozenset[str] | None) -> Iterator[Repository]:
    """Yield the repository of a unit, then append the audit entry of the principal's writes.

    The principal is proved at the unit's turn, which it has until the commit: keys, roles and owners of its models
    change only before or after it. An action that an entry has announced (`asked`) is completed.
    """
    acting = ACTING.get()
    if acting is not None:
        acting.trail.units += 1
    with closing(Repository(connection, scope=scope, writable=True)) as repository:
        if acting is not None and not acting.trail.asked:
            acting = acting.prove(repository)
        yield repository
        repository.flush()
        if acting is not None:
            repository.close_audit(acting)
