"""The schema of a database.

Its version, whether this build can use it, and its migration, safe for several processes at once. Every process checks
it at its start; alembic, whose import takes a tenth of that start, is imported only to migrate
(`ipnext.store.schema.alembic_scripts`).

Builds of two versions use one database during a rolling upgrade, and runs that are pinned to the older build need it
for days. So a build also starts on a schema that a newer build has migrated, unless that schema's `min_reader` is
beyond it: see "Expand, then contract" in docs/store.md.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, delete, insert, inspect, select, text

from ipnext.errors import Conflict
from ipnext.store.database import dialects
from ipnext.store.tables.database import SchemaCompatRow
from ipnext.store.tables.row import METADATA

SCRIPTS = Path(__file__).parents[1] / "migrations"
MIGRATION_SECONDS = 120
"""Longest wait for another process that migrates."""


_COMPAT = METADATA.tables[str(SchemaCompatRow.__tablename__)]


@dataclass(frozen=True)
class SchemaRange:
    """A schema and the builds that may use it."""

    version: str
    """The database's newest revision."""
    min_reader: str
    """The oldest revision whose builds can use it."""
    own: str
    """The newest revision that this build knows."""

    @property
    def behind(self) -> bool:
        """Whether this build would migrate the database."""
        return self.version < self.own

    @property
    def compatible(self) -> bool:
        """Whether this build may use the database. Revisions are numbers of four digits, so they compare as text."""
        return self.min_reader <= self.own


def upgrade(engine: Engine) -> None:
    """Bring the database to this build's version, in one transaction.

    A newer one that this build can use stays unchanged. The file of a SQLite database is created if it is absent.
    Raises Conflict if a newer schema's range begins beyond this build, and Unavailable if the file can't be created.
    """
    if engine.dialect.name == "sqlite":
        file = dialects.file_of(engine.url)
        dialects.create_file(file)
        with _file_lock(file.with_name(f"{file.name}.migrate.lock")):
            _keep_wal(engine)
            with engine.begin() as connection:
                _run(connection)
        return
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_SECONDS}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({dialects.MIGRATION_LOCK}, 0)"))
        _run(connection)


def schema_range(engine: Engine) -> SchemaRange | None:
    """Return the schema of a database, read only; None before its first migration."""
    with engine.connect() as connection:
        return _range_of(connection)


def newest_revision() -> str:
    """Return the newest schema of this build: scripts are named by revisions, numbers of four digits.

    Conflict if there are none.
    """
    found = max((path.name[:4] for path in (SCRIPTS / "versions").glob("[0-9]*.py")), default=None)
    if found is None:
        msg = "this build has no migrations"
        raise Conflict(msg)
    return found


def _run(connection: Connection) -> None:
    found = _range_of(connection)
    if found is not None and found.version > found.own:
        if not found.compatible:
            raise _beyond(found)
        return
    if found is not None and not found.behind and _read_min_reader(connection, found.version) is not None:
        return
    from ipnext.store.schema import alembic_scripts  # noqa: PLC0415 - most starts find the schema up to date

    alembic_scripts.upgrade(connection)
    row = {"id": 1, "version": newest_revision(), "min_reader": alembic_scripts.min_reader()}
    connection.execute(delete(_COMPAT))
    connection.execute(insert(_COMPAT).values(row))


def _beyond(found: SchemaRange) -> Conflict:
    msg = (
        f"the database was migrated by a later version of IPnext to schema {found.version}, which builds of schema "
        f"{found.min_reader} or newer can use; this build knows {found.own}. Run a newer build"
    )
    return Conflict(msg)


def _range_of(connection: Connection) -> SchemaRange | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if version is None:
        return None
    return SchemaRange(
        version=version, min_reader=_read_min_reader(connection, version) or version, own=newest_revision()
    )


def _read_min_reader(connection: Connection, version: str) -> str | None:
    if not inspect(connection).has_table(_COMPAT.name):
        return None
    return connection.scalar(select(_COMPAT.c.min_reader).where(_COMPAT.c.version == version))


def _keep_wal(engine: Engine) -> None:
    """Turn on the write-ahead log, with which readers wait for no writer.

    The file stores the mode; only the switch needs exclusive use.
    """
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Lock a file for one process (or thread) at a time; a process that dies releases it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
