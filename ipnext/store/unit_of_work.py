"""Base of the repository's nouns: the connection of one unit of work, and the models that the unit may write."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import ARRAY, ColumnElement, Connection, CursorResult, Executable, any_, bindparam, literal, select
from sqlmodel import Session

from ipnext.errors import NotFound
from ipnext.model.value import canonical_json
from ipnext.store.database import dialects
from ipnext.store.tables.registry import ModelRow
from ipnext.store.tables.row import METADATA, Row

Key = TypeVar("Key", bound=str | int | tuple[Any, ...])
"""Key of a statement for many keys."""

R = TypeVar("R", bound=Row)
T = TypeVar("T")

MODELS = METADATA.tables[ModelRow.__tablename__]

MOST_ROWS = 1000
"""Longest list in one answer."""

NAMED_IN_ERRORS = 5

BATCH = 500
"""Keys of one statement: an engine accepts a limited number of parameters."""


def utc_now() -> datetime:
    """Return the time for rows."""
    return datetime.now(UTC)


_MODEL_EXISTS = select(MODELS.c.name).where(MODELS.c.name == bindparam("name"))


class UnitOfWork:
    """One unit of work. `scope` names the only models that it may write; None may write all.

    `visible` are the owners whose models are listed and counted; None: all. A read by a model's name ignores its owner.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        scope: frozenset[str] | None,
        writable: bool,
        clock: Callable[[], datetime] = utc_now,
        visible: frozenset[str] | None = None,
    ) -> None:
        self._connection = connection
        self._objects: Session | None = None
        self.scope = scope
        self._visible = visible
        self._writable = writable
        self._now = clock
        self._writes = dialects.writes_of(connection)
        """Writes of the connection before this unit."""
        self._known_models: set[str] = set()
        self._got: list[Any] = []
        """Rows that were read by key. The session itself drops a row without a reference, and would read it again."""
        self._read: dict[Any, Any] = {}
        """Results since the last write of this unit, by query."""
        self._by_former = set[str]()
        """Models that this unit reads by what their open change found."""
        self._read_after = self._writes
        """Writes of the connection when the results were read."""

    @property
    def _session(self) -> Session:
        """The session of row objects, for queries that are not prepared.

        Most units need none, and it costs more than a statement.
        """
        if self._objects is None:
            self._objects = Session(self._connection, join_transaction_mode="rollback_only")
        return self._objects

    def now(self) -> datetime:
        """Return the time for rows of this unit."""
        return self._now()

    def connection(self) -> Connection:
        """Return the connection of this unit's transaction, for the store's own modules."""
        return self._connection

    def flush(self) -> None:
        """Send all added row objects to the database."""
        if self._objects is not None:
            self._objects.flush()

    def close(self) -> None:
        """Release the row objects; the owner of the transaction ends it."""
        if self._objects is not None:
            self._objects.close()

    def _run(self, statement: Executable, **parameters: Any) -> CursorResult[Any]:
        """Execute a statement of tables and columns, without the session's objects.

        All added rows are already flushed.
        """
        return self._connection.execute(statement, parameters)

    def _write(self, statement: Executable, **parameters: Any) -> int:
        """Execute a statement that writes, and return the number of changed rows.

        Row objects are read again after it.
        """
        count: int = self._run(statement, **parameters).rowcount
        if self._objects is not None:
            self._objects.expire_all()
        return count

    def _once(self, question: Any, read: Callable[[], T]) -> T:
        """Return the result of `read`, which is called once, and again after a write of this unit.

        Only for rows that no other unit changes at the same time: those of the unit's own model, and those that all
        models share.
        """
        writes = dialects.writes_of(self._connection)
        if writes != self._read_after:
            self._read.clear()
            self._read_after = writes
        if question not in self._read:
            self._read[question] = read()
        found: T = self._read[question]
        return found

    def _forget_read(self) -> None:
        """Drop all cached results: a lock was taken since, and other units may have written before it."""
        self._read.clear()
        if self._objects is not None:
            self._objects.expire_all()

    def _get(self, kind: type[R], key: Any) -> R | None:
        """Return the row of a key; read once for each unit."""
        row = self._session.get(kind, key)
        self._got.append(row)
        return row

    def _is_of_visible_owner(self, model: Any) -> tuple[ColumnElement[bool], ...]:
        """Return the condition that a column names a model of the visible owners; none if all are visible."""
        if self._visible is None:
            return ()
        return (model.in_(select(MODELS.c.name).where(*self._has_visible_owner())),)

    def _has_visible_owner(self) -> tuple[ColumnElement[bool], ...]:
        """Return the condition that a row of `models` has a visible owner; none if all are visible."""
        return () if self._visible is None else (self._among(MODELS.c.owner, self._visible),)

    def _among(self, column: Any, values: Collection[Any]) -> ColumnElement[bool]:
        """Return the condition that a column has one of these values.

        On PostgreSQL they are one parameter, so that the server plans the statement once for any number of values.
        """
        if self._connection.dialect.name == "sqlite":
            found: ColumnElement[bool] = column.in_(values)
        else:
            found = any_(literal(list(values), ARRAY(column.type))) == column
        return found

    @contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """Exclude writes from the audit, such as the time of a key's last use."""
        self.flush()
        before = dialects.writes_of(self._connection)
        yield
        self.flush()
        dialects.forget_writes(self._connection, before)
        self._read.clear()

    def _has_written(self) -> bool:
        """Return whether this unit has written rows, without bookkeeping."""
        self.flush()
        return dialects.writes_of(self._connection) != self._writes

    def _writing(self, model: str | None) -> None:
        """Refuse a write for which this unit holds no lock: a fault of the caller's code, so RuntimeError."""
        if not self._writable:
            msg = "this unit only reads; use Store.begin() to write"
            raise RuntimeError(msg)
        if self.scope is not None and model not in self.scope:
            subject = "what all models share" if model is None else f"model {model!r}"
            own = ", ".join(map(repr, sorted(self.scope))) or "none"
            msg = f"this unit writes model {own} only, not {subject}; use Store.begin() without a model"
            raise RuntimeError(msg)

    def _writing_any(self) -> None:
        """Refuse a write in a unit that only reads. For rows that no other unit writes at the same time."""
        if not self._writable:
            self._writing(None)

    def _writing_model(self, name: str) -> ModelRow:
        """Return the row of a model that is about to be written. NotFound names known models."""
        self._writing(name)
        return self._model_row(name)

    def _check_known(self, name: str) -> None:
        """Check that a model exists, before its first row in a table; later rows prove it.

        NotFound names known models.
        """
        if name in self._known_models:
            return
        if self._run(_MODEL_EXISTS, name=name).first() is None:
            raise self._no_model(name)
        self._known_models.add(name)

    def _model_row(self, name: str) -> ModelRow:
        row = self._get(ModelRow, name)
        if row is None:
            raise self._no_model(name)
        return row

    def _no_model(self, name: str) -> NotFound:
        """Return the error of an unknown model; `Models`, which every repository has, names the known ones."""
        raise NotImplementedError

    def _add(self, row: Any) -> None:
        """Insert or update now, so that a violated constraint is reported at its cause."""
        self._session.add(row)
        self._session.flush()


def document(value: BaseModel | Any) -> str:
    """Return the text of a document column."""
    return canonical_json(value)


def bytes_of(text: str) -> int:
    """Return the bytes of a document, as they count for its owner."""
    return len(text.encode())


def plain(text: str) -> Any:
    """Return a document column as plain data."""
    return json.loads(text)


def rows(limit: int) -> int:
    """Return a limit that both engines accept: 0 to MOST_ROWS."""
    return max(0, min(limit, MOST_ROWS))


def batches(values: Collection[Key]) -> Iterator[list[Key]]:
    """Yield the values, sorted, in batches that fit into the parameters of one statement."""
    found: list[Any] = sorted(set(values))
    for start in range(0, len(found), BATCH):
        yield found[start : start + BATCH]


def read_fields(kind: type[BaseModel], row: Any, *, but: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a value that a row has, except `but`.

    A field that another build added, and of which the table has no column, is left out.
    """
    return {name: getattr(row, name) for name in kind.model_fields if name not in but and hasattr(row, name)}


def format_known(names: list[str], count: int | None = None) -> str:
    """Return `known: a, b` for an error's text, at most five; `count` is the total if `names` are only the first."""
    if not names:
        return "none is known yet"
    more = (len(names) if count is None else count) - NAMED_IN_ERRORS
    return f"known: {', '.join(names[:NAMED_IN_ERRORS])}" + (f" and {more} more" if more > 0 else "")
