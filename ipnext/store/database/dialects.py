"""The two engines: how a connection is made and how a transaction begins on each."""

import threading
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from ipnext.errors import InvalidInput, Unavailable

LOCK_SECONDS = 10
"""Longest wait for another writer."""

IDLE_SECONDS = 60
"""PostgreSQL ends a unit of work whose process has been stopped for this long, so that it blocks no other."""

ALLOWED = ("sqlite:///FILE", "postgresql+psycopg://USER@HOST/DATABASE")

FILE_MODE = 0o644
"""The mode in which SQLite itself creates its files."""

_BEGIN = "ipnext_begin"
_READING = ("SELECT", "WITH", "BEGIN", "PRAGMA", "EXPLAIN", "SET ", "SHOW ")
_WRITES = "ipnext_writes"
_FLEET_LOCK, _MODEL_LOCK, MIGRATION_LOCK, _PLAN_LOCK = 0x49504E01, 0x49504E02, 0x49504E03, 0x49504E04
_AUDIT_LOCK, _OWNER_LOCK, _ARTIFACT_LOCK = 0x49504E05, 0x49504E06, 0x49504E07


def parse(url: str) -> URL:
    """Parse the URL of a supported database. InvalidInput names the allowed forms."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # a ValueError comes from a port that is no number
        msg = f"database url: not of a known form; allowed: {', '.join(ALLOWED)}"
        raise InvalidInput(msg, field="database_url", allowed=ALLOWED) from error
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    in_memory = parsed.drivername == "sqlite" and parsed.database in {None, "", ":memory:"}
    if in_memory or parsed.drivername not in {"sqlite", "postgresql+psycopg"}:
        shown = parsed.render_as_string(hide_password=True)
        msg = f"database url: {shown} is not supported; allowed: {', '.join(ALLOWED)}"
        raise InvalidInput(msg, field="database_url", value=shown, allowed=ALLOWED)
    return parsed


def connect(url: URL) -> Engine:
    """Create an engine for a parsed URL. Connects to nothing yet."""
    engine = _sqlite(url) if url.drivername == "sqlite" else _postgresql(url)
    event.listen(engine, "after_cursor_execute", _count_writes)
    return engine


def is_absent(url: URL) -> bool:
    """Return whether the URL is of SQLite and its file is missing."""
    return url.drivername == "sqlite" and not file_of(url).exists()


def file_of(url: URL) -> Path:
    """Return the file of a SQLite URL, absolute."""
    return Path(str(url.database)).absolute()


def create_file(file: Path) -> None:
    """Create an empty SQLite database with its directory if it is absent. Unavailable names the file and the fault."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=FILE_MODE)
    except OSError as error:
        msg = (
            f"the database {file} can't be created ({error.strerror}); allowed: "
            "a file in a directory that can be written"
        )
        raise Unavailable(msg) from error


def reading(engine: Engine) -> Engine:
    """Return the same connections for units that only read: one snapshot of the data, no lock."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{_BEGIN: "BEGIN"})
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def close(engine: Engine) -> None:
    """Close all connections, those in use once they return.

    `dispose` alone would leave these open in an unused pool.
    """
    event.listen(engine, "checkin", _end)
    engine.dispose()


def _end(_connection: object, record: ConnectionPoolEntry) -> None:
    record.invalidate()


class Revisions:
    """Reads the mark of a database's committed content. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: Any = None

    def mark(self) -> str:
        """Return the mark; it costs one statement without a table."""
        if self._engine.dialect.name != "sqlite":
            with self._engine.connect() as connection:
                return str(connection.scalar(text("SELECT pg_current_snapshot()::text")))
        with self._lock:
            if self._connection is None:
                self._connection = self._engine.connect()
                self._connection.detach()  # kept open: the figure is relative to this connection
            found = self._connection.connection.dbapi_connection
            return str(found.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close the kept connection, if there is one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def claim_turn(connection: Connection, model: str | None) -> None:
    """Wait for this unit's turn to write; the transaction's end releases it.

    SQLite has one writer at a time anyway (BEGIN IMMEDIATE). PostgreSQL gets the same order by advisory locks: a unit
    of all models waits for every other, a unit of one model only for those of that model. The order of locks is fleet,
    model, owner, artifacts, plan, audit, and no unit waits for two models or owners, so there is no deadlock.
    """
    if connection.dialect.name == "sqlite":
        return
    shared = "" if model is None else "_shared"
    connection.execute(text(f"SELECT pg_advisory_xact_lock{shared}({_FLEET_LOCK}, 0)"))
    if model is not None:
        key = {"space": _MODEL_LOCK, "number": _number_of(model)}
        connection.execute(text("SELECT pg_advisory_xact_lock(:space, :number)"), key)


def claim_free_turns(connection: Connection, models: Collection[str]) -> frozenset[str]:
    """Take the turn of those of these models that no other unit writes, without waiting for the others.

    Returns the models whose turn was taken: on SQLite all of them.
    """
    if connection.dialect.name == "sqlite":
        return frozenset(models)
    connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({_FLEET_LOCK}, 0)"))
    numbers = {model: _number_of(model) for model in models}
    query = text(
        "SELECT number FROM unnest(CAST(:numbers AS int[])) AS number WHERE pg_try_advisory_xact_lock(:space, number)"
    )
    found = connection.execute(query, {"space": _MODEL_LOCK, "numbers": sorted(set(numbers.values()))})
    free = frozenset(found.scalars())
    return frozenset(model for model, number in numbers.items() if number in free)


def lock_owner(connection: Connection, owner: str) -> None:
    """Wait until no other unit counts and writes the claims of this owner's models.

    The transaction's end releases the lock.
    """
    if connection.dialect.name != "sqlite":
        key = {"space": _OWNER_LOCK, "number": _number_of(owner)}
        connection.execute(text("SELECT pg_advisory_xact_lock(:space, :number)"), key)


def lock_artifacts(connection: Connection, *, alone: bool) -> None:
    """Block the removal of artifacts until the transaction's end; with `alone`, block their use by other units.

    Taken after the lock of an owner and before that of the plan.
    """
    if connection.dialect.name != "sqlite":
        shared = "" if alone else "_shared"
        connection.execute(text(f"SELECT pg_advisory_xact_lock{shared}({_ARTIFACT_LOCK}, 0)"))


def lock_plan(connection: Connection) -> None:
    """Wait until no other unit adopts a plan or admits a transition; the transaction's end releases the lock."""
    if connection.dialect.name != "sqlite":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_PLAN_LOCK}, 0)"))


def lock_audit(connection: Connection) -> None:
    """Wait until no other unit adds to the audit. The last lock of a unit, right before its commit."""
    if connection.dialect.name != "sqlite":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_AUDIT_LOCK}, 0)"))


def writes_of(connection: Connection) -> int:
    """Return the number of row-writing statements on this connection so far; only its growth is meaningful."""
    found: int = connection.info.get(_WRITES, 0)
    return found


def forget_writes(connection: Connection, since: int) -> None:
    """Treat the writes since then as bookkeeping, which has no entry in the audit."""
    connection.info[_WRITES] = since


def _count_writes(
    connection: Connection, cursor: Any, statement: str, _parameters: object, context: Any, _many: object
) -> None:
    """Count a statement that wrote rows: one that SQLAlchemy made, or a text that does not begin like a reading one."""
    made = context.isinsert or context.isupdate or context.isdelete
    if (made and cursor.rowcount != 0) or (not made and not statement.startswith(_READING)):
        connection.info[_WRITES] = connection.info.get(_WRITES, 0) + 1


def _number_of(model: str) -> int:
    """Return the number of a model's lock. If two models share one, they wait for each other needlessly."""
    return zlib.crc32(model.encode("utf-8", "surrogatepass")) - 2**31


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": LOCK_SECONDS, "check_same_thread": False},
        pool_size=8,
        max_overflow=24,
        pool_timeout=LOCK_SECONDS,
    )
    event.listen(engine, "do_connect", _open_existing)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _open_existing(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> None:
    """Let a connection open only existing files: only a migration creates one (`create_file`)."""
    if not options.get("uri"):
        arguments[0] = f"{Path(arguments[0]).absolute().as_uri()}?mode=rw"
        options["uri"] = True


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Prepare every connection: explicit transactions, enforced foreign keys, commits that survive a power cut.

    `synchronous` FULL and not NORMAL: with NORMAL a WAL database may lose its last commits when the machine loses
    power, and an acknowledged change must never be lost. It costs one fsync a commit.
    """
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN IMMEDIATE"))


def _postgresql(url: URL) -> Engine:
    given = url.query.get("options", "")
    options = [given if isinstance(given, str) else " ".join(given)]
    limits = {"lock_timeout": LOCK_SECONDS, "idle_in_transaction_session_timeout": IDLE_SECONDS}
    options += [f"-c {name}={seconds}s" for name, seconds in limits.items()]
    return create_engine(
        url.difference_update_query(["options"]),
        connect_args={
            "options": " ".join(options).strip(),
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
        pool_timeout=LOCK_SECONDS,
    )
