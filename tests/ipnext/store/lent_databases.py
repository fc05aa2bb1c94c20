"""One migrated PostgreSQL database, lent to test after test.

To copy a database and to drop it takes the server a tenth of a second of processor time, to empty its tables a
thousandth.
"""

import uuid

import psycopg
from psycopg import sql

from ipnext.store.store import Store
from tests.real_servers import PostgresServer

TEMPLATE = "migrated_template"
WRITTEN_BY_MIGRATIONS = frozenset({"alembic_version", "schema_compat"})
"""Tables that have rows in a migrated database."""
MOST_BYTES = 32 << 20
"""A database that has grown beyond this is dropped: emptied tables keep their pages."""
CATALOG = """
    SELECT
      (SELECT array_agg((oid, relname, relfilenode, relkind, reltuples)::text ORDER BY oid)::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace),
      (SELECT array_agg((attrelid, attnum, attname, atttypid, attnotnull)::text ORDER BY attrelid, attnum)::text
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace),
      (SELECT array_agg(pg_constraint::text ORDER BY oid)::text FROM pg_constraint),
      (SELECT array_agg((oid, tgenabled)::text ORDER BY oid)::text FROM pg_trigger),
      (SELECT count(*) FROM pg_statistic WHERE starelid >= 16384),
      (SELECT array_agg(alembic_version::text)::text FROM alembic_version),
      (SELECT array_agg(schema_compat::text)::text FROM schema_compat)
"""
"""What a test may change beyond rows: relations, columns, constraints, triggers, statistics, the schema's version."""


class LentDatabases:
    """Lends a migrated database of this server that has no rows; one test at a time has it."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._kept: str | None = None
        self._as_migrated: tuple[object, ...] = ()
        server.run(f"CREATE DATABASE {TEMPLATE}")
        store = Store.open(server.url(TEMPLATE))
        store.migrate()
        store.close()

    def lend(self) -> str:
        """Return the name of a database without rows."""
        if self._kept is None:
            self._kept = f"test_{uuid.uuid4().hex}"
            self._server.run(f"CREATE DATABASE {self._kept} TEMPLATE {TEMPLATE}")
            with self._connected(self._kept) as connection:
                self._as_migrated = _catalog(connection)
        return self._kept

    def take_back(self, name: str) -> None:
        """Empty the database for the next test, or drop it if the test changed more than rows."""
        self._server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        with self._connected(name) as connection:
            as_lent = _catalog(connection) == self._as_migrated and _size(connection) < MOST_BYTES
            if as_lent:
                _empty(connection)
        if not as_lent:
            self._server.run(f"DROP DATABASE {name} WITH (FORCE)")
            self._kept = None

    def _connected(self, name: str) -> psycopg.Connection:
        return psycopg.connect(self._server.url(name).replace("+psycopg", ""), autocommit=True)


def _catalog(connection: psycopg.Connection) -> tuple[object, ...]:
    row = connection.execute(CATALOG).fetchone()
    assert row is not None
    return row


def _size(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def _empty(connection: psycopg.Connection) -> None:
    """Delete all rows, past triggers and foreign keys, and let identities begin at one again."""
    names = connection.execute(
        "SELECT relname, relkind = 'S' FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )
    relations = [(name, is_sequence) for name, is_sequence in names.fetchall() if name not in WRITTEN_BY_MIGRATIONS]
    tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    deletes = [sql.SQL("DELETE FROM {}").format(sql.Identifier(name)) for name, _ in relations if name in tables]
    restarts = [
        sql.SQL("SELECT setval({}, 1, false)").format(sql.Literal(f'public."{name}"'))
        for name, is_sequence in relations
        if is_sequence
    ]
    connection.execute(sql.SQL("; ").join([sql.SQL("SET session_replication_role = replica"), *deletes, *restarts]))
