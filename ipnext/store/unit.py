"""What every noun of the repository stands on: the session of one unit of work, and what that unit may write."""

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
from ipnext.store import engines
from ipnext.store.tables import METADATA, ModelRow, Row

Key = TypeVar("Key", bound=str | int | tuple[Any, ...])
"""What one statement asks for many of."""

R = TypeVar("R", bound=Row)
T = TypeVar("T")

MODELS = METADATA.tables[ModelRow.__tablename__]

MOST_ROWS = 1000
"""Longest listing that is given out at once."""

NAMED_IN_ERRORS = 5

BATCH = 500
"""Keys of one statement: an engine takes a limited number of parameters."""


def utc_now() -> datetime:
    """The time that rows carry."""
    return datetime.now(UTC)


_MODEL_EXISTS = select(MODELS.c.name).where(MODELS.c.name == bindparam("name"))


class Unit:
    """One unit of work. `scope` names the only models it may write; None may write all.

    `visible`: owners whose models are listed and counted; None: all. What names a model reads it whatever its owner.
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
        self._writes = engines.writes_of(connection)
        """What the connection had written before this unit."""
        self._known_models: set[str] = set()
        self._got: list[Any] = []
        """Rows that were read by key. The session itself forgets a row that no caller holds, and would read it again."""
        self._read: dict[Any, Any] = {}
        """Answers since the last write of this unit, by question."""
        self._read_after = self._writes
        """What the connection had written when they were read."""

    @property
    def _session(self) -> Session:
        """Row objects, for queries that are not prepared: most units need none, and making them costs more than a statement."""
        if self._objects is None:
            self._objects = Session(self._connection, join_transaction_mode="rollback_only")
        return self._objects

    def connection(self) -> Connection:
        """The connection of this unit's transaction, for the store's own modules."""
        return self._connection

    def flush(self) -> None:
        """Send what was added as row objects to the database."""
        if self._objects is not None:
            self._objects.flush()

    def close(self) -> None:
        """Let go of the row objects; the transaction is its owner's to end."""
        if self._objects is not None:
            self._objects.close()

    def _run(self, statement: Executable, **parameters: Any) -> CursorResult[Any]:
        """Execute a statement of tables and columns, without the objects of the session. All that was added is flushed."""
        return self._connection.execute(statement, parameters)

    def _write(self, statement: Executable, **parameters: Any) -> int:
        """Execute a statement that writes, and return how many rows it changed. Row objects are read again after it."""
        count: int = self._run(statement, **parameters).rowcount
        if self._objects is not None:
            self._objects.expire_all()
        return count

    def _once(self, question: Any, read: Callable[[], T]) -> T:
        """Return what `read` finds: it is asked once, and again after a write of this unit.

        Only for rows that no other unit changes meanwhile: those of the unit's own model, and those that all models share.
        """
        writes = engines.writes_of(self._connection)
        if writes != self._read_after:
            self._read.clear()
            self._read_after = writes
        if question not in self._read:
            self._read[question] = read()
        found: T = self._read[question]
        return found

    def _forget_read(self) -> None:
        """Ask again whatever was read: a lock was taken since, and other units may have written before it."""
        self._read.clear()
        if self._objects is not None:
            self._objects.expire_all()

    def _get(self, kind: type[R], key: Any) -> R | None:
        """The row of a key; read once for each unit."""
        row = self._session.get(kind, key)
        self._got.append(row)
        return row

    def _is_of_visible_owner(self, model: Any) -> tuple[ColumnElement[bool], ...]:
        """Return the condition that a column names a model of the visible owners; none if all are."""
        if self._visible is None:
            return ()
        return (model.in_(select(MODELS.c.name).where(*self._has_visible_owner())),)

    def _has_visible_owner(self) -> tuple[ColumnElement[bool], ...]:
        """Return the condition that a row of `models` has a visible owner; none if all are."""
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
        """Write what the audit has no entry of, such as when a key was used last."""
        self.flush()
        before = engines.writes_of(self._connection)
        yield
        self.flush()
        engines.forget_writes(self._connection, before)
        self._read.clear()

    def _has_written(self) -> bool:
        """Whether this unit has written rows, bookkeeping apart."""
        self.flush()
        return engines.writes_of(self._connection) != self._writes

    def _writing(self, model: str | None) -> None:
        """Refuse a write that this unit holds no lock for: a fault of the caller's code, so RuntimeError."""
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
        """The row of a model that is about to be written. NotFound names known models."""
        self._writing(name)
        return self._model_row(name)

    def _check_known(self, name: str) -> None:
        """Check that a model exists: before the first row of it in a table, as later rows prove it. NotFound names known models."""
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
        raise NotImplementedError

    def _add(self, row: Any) -> None:
        """Insert or update now, so that a constraint speaks where its cause is."""
        self._session.add(row)
        self._session.flush()


def document(value: BaseModel | Any) -> str:
    """What a document column holds."""
    return canonical_json(value)


def bytes_of(text: str) -> int:
    """Bytes of a document, as they count for its owner."""
    return len(text.encode())


def plain(text: str) -> Any:
    """A document column as plain data."""
    return json.loads(text)


def rows(limit: int) -> int:
    """A limit that both engines take: 0 to MOST_ROWS."""
    return max(0, min(limit, MOST_ROWS))


def batches(values: Collection[Key]) -> Iterator[list[Key]]:
    """The values in parts that one statement takes as parameters, sorted."""
    found: list[Any] = sorted(set(values))
    for start in range(0, len(found), BATCH):
        yield found[start : start + BATCH]


def known(names: list[str], count: int | None = None) -> str:
    """`known: a, b` for an error's text, at most five; `count`: how many there are, if `names` are only the first."""
    if not names:
        return "none is known yet"
    more = (len(names) if count is None else count) - NAMED_IN_ERRORS
    return f"known: {', '.join(names[:NAMED_IN_ERRORS])}" + (f" and {more} more" if more > 0 else "")
