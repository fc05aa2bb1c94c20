"""Migrations run from code: alembic with the scripts in this package, no alembic.ini, safe for several at once."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, text

from ipnext.errors import Conflict
from ipnext.store.engines import MIGRATION_LOCK

SCRIPTS = Path(__file__).parent / "migrations"
MIGRATION_SECONDS = 120
"""Longest wait for another process that migrates."""


def upgrade(engine: Engine) -> None:
    """Bring the database to the newest version, in one transaction."""
    if engine.dialect.name == "sqlite":
        with _file_lock(Path(f"{engine.url.database}.migrate.lock")):
            _keep_wal(engine)
            with engine.begin() as connection:
                _run(connection)
        return
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_SECONDS}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK}, 0)"))
        _run(connection)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for our scripts; env.py takes the connection from its attributes."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _run(connection: Connection) -> None:
    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        msg = f"the database was migrated by a later version of IPnext ({error}); run that version or a newer one"
        raise Conflict(msg) from error


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
