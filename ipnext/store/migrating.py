"""Migrations run from code: alembic with the scripts in this package, no alembic.ini, safe for several at once.

Builds of two versions use one database during a rolling upgrade, and runs that are pinned to the older build need it for days.
So a build also starts on a schema that a newer build has migrated, unless that schema's `min_reader` is beyond it: see
"Expand, then contract" in docs/store.md.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, delete, insert, inspect, select, text

from ipnext.errors import Conflict
from ipnext.store import engines
from ipnext.store.tables import METADATA, SchemaCompatRow

SCRIPTS = Path(__file__).parent / "migrations"
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
        """Whether this build may use the database. Revisions are numbers of four digits, so their order is that of the text."""
        return self.min_reader <= self.own


def upgrade(engine: Engine) -> None:
    """Bring the database to this build's version, in one transaction; a newer one that this build can use stays as it is.

    The file of a SQLite database is created if it is absent. Raises Conflict for a newer schema whose range begins beyond
    this build, and Unavailable if the file can't be created.
    """
    if engine.dialect.name == "sqlite":
        file = engines.file_of(engine.url)
        engines.create_file(file)
        with _file_lock(file.with_name(f"{file.name}.migrate.lock")):
            _keep_wal(engine)
            with engine.begin() as connection:
                _run(connection)
        return
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_SECONDS}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({engines.MIGRATION_LOCK}, 0)"))
        _run(connection)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for our scripts; env.py takes the connection from its attributes."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def schema_range(engine: Engine) -> SchemaRange | None:
    """The schema of a database, read only; None before its first migration."""
    with engine.connect() as connection:
        return _range_of(connection, _scripts())


def _run(connection: Connection) -> None:
    scripts = _scripts()
    found = _range_of(connection, scripts)
    if found is not None and found.version not in _revisions(scripts):
        if not found.compatible:
            raise _beyond(found)
        return
    command.upgrade(alembic_config(connection), "head")
    own = _head(scripts)
    connection.execute(delete(_COMPAT))
    connection.execute(insert(_COMPAT).values(id=1, version=own, min_reader=_min_reader(scripts)))


def _beyond(found: SchemaRange) -> Conflict:
    msg = (
        f"the database was migrated by a later version of IPnext to schema {found.version}, which builds of schema "
        f"{found.min_reader} or newer can use; this build knows {found.own}. Run a newer build"
    )
    return Conflict(msg)


def _range_of(connection: Connection, scripts: ScriptDirectory) -> SchemaRange | None:
    version = MigrationContext.configure(connection).get_current_revision()
    if version is None:
        return None
    told = None
    if inspect(connection).has_table(_COMPAT.name):
        query = select(_COMPAT.c.min_reader).where(_COMPAT.c.version == version)
        told = connection.scalar(query)
    return SchemaRange(version=version, min_reader=told or version, own=_head(scripts))


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


def _revisions(scripts: ScriptDirectory) -> frozenset[str]:
    return frozenset(script.revision for script in scripts.walk_revisions())


def _head(scripts: ScriptDirectory) -> str:
    head = scripts.get_current_head()
    if head is None:
        msg = "this build has no migrations"
        raise Conflict(msg)
    return head


def _min_reader(scripts: ScriptDirectory) -> str:
    """What the newest migration that says so states: a migration that only adds states nothing."""
    stated = (getattr(script.module, "min_reader", None) for script in scripts.walk_revisions())
    return next((str(revision) for revision in stated if revision), _head(scripts))


def _keep_wal(engine: Engine) -> None:
    """Write-ahead log: readers wait for no writer. The file remembers it; the switch itself needs the file alone."""
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Held by one process (or thread) at a time; a process that dies gives it back."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
