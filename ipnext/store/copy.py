"""Migration to another database: every row of one store into an empty one, of either engine."""

from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, text

from ipnext.errors import Conflict
from ipnext.store.store import Store
from ipnext.store.tables.database import SchemaCompatRow
from ipnext.store.tables.row import METADATA

BATCH_ROWS = 500


def move(origin: Store, to: Store, *, old_artifacts: str = "", new_artifacts: str = "") -> int:
    """Copy everything into an empty, migrated store; return the number of rows. All or nothing.

    `old_artifacts`, `new_artifacts` are the uris of the artifact stores if those move too; columns that name a snapshot
    are rewritten. Stop API and worker first: later writes to the origin are not copied. Conflict if `to` already has
    rows.
    """
    copied = 0
    with origin.read() as source, to.begin() as target:
        reading, writing = source.connection(), target.connection()
        tables = [table for table in METADATA.sorted_tables if table.name != SchemaCompatRow.__tablename__]
        for table in tables:
            _check_empty(writing, table)
        for table in tables:
            for batch in reading.execution_options(yield_per=BATCH_ROWS).execute(select(table)).mappings().partitions():
                rows = [_rename_uris(dict(row), old_artifacts, new_artifacts) for row in batch]
                writing.execute(insert(table), rows)
                copied += len(rows)
            _count_on(writing, table)
    return copied


def _check_empty(connection: Connection, table: Table) -> None:
    if connection.scalar(select(func.count()).select_from(table)):
        msg = f"table {table.name} of the new database holds rows already; give an empty database"
        raise Conflict(msg)


def _rename_uris(row: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return the row with the new prefix in the columns that name snapshots by uri."""
    for column in ("uri", "deployment"):
        if old and column in row:
            row[column] = row[column].replace(f"{old}/snapshots/", f"{new}/snapshots/")
    return row


def _count_on(connection: Connection, table: Table) -> None:
    """Set the sequence of ordinals, which PostgreSQL keeps apart from the rows."""
    if "ordinal" in table.columns and connection.dialect.name == "postgresql":
        highest = f"(SELECT coalesce(max(ordinal), 0) + 1 FROM {table.name})"  # noqa: S608 - a name of our own
        connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'ordinal'), {highest}, false)"))
