"""Translation of database errors into errors that a caller can act on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from ipnext.errors import Conflict, InvalidInput, Unavailable

_UNMIGRATED = ("no such table", "no such column", "UndefinedTable", "UndefinedColumn")


_UNUSABLE = ("SQLITE_NOTADB", "SQLITE_CORRUPT")


@contextmanager
def translate_errors(database: str, *, is_absent: Callable[[], bool] = bool) -> Iterator[None]:
    """Raise Unavailable (down, absent, locked, full, not migrated), Conflict (a constraint) or InvalidInput (a value).

    `database` names it in the text, without a password. `is_absent` returns whether it does not exist. Programming
    errors pass unchanged.
    """
    try:
        yield
    except exc.SQLAlchemyError as error:
        text = _first_line(error)
        if any(sign in f"{type(getattr(error, 'orig', None)).__name__} {text}" for sign in _UNMIGRATED):
            msg = f"the database {database} lacks tables of this version ({text}); run the migrations first"
            raise Unavailable(msg) from error
        if _unreachable(error) and is_absent():
            msg = f"the database {database} does not exist; `ipnext platform setup` creates it"
            raise Unavailable(msg) from error
        if getattr(getattr(error, "orig", None), "sqlite_errorname", "") in _UNUSABLE:
            msg = f"the database {database} cannot be used ({text}); name another one, or restore it"
            raise Unavailable(msg) from error
        if _unreachable(error):
            msg = f"the database {database} cannot take this now ({text}); try again"
            raise Unavailable(msg) from error
        if isinstance(error, exc.IntegrityError):
            msg = f"another writer was first ({text}); read again, then write"
            raise Conflict(msg) from error
        if isinstance(error, exc.DataError):
            msg = f"the database cannot hold this value ({text})"
            raise InvalidInput(msg) from error
        raise


def _unreachable(error: exc.SQLAlchemyError) -> bool:
    if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError):
        return True
    return isinstance(error, exc.DBAPIError) and error.connection_invalidated


def _first_line(error: exc.SQLAlchemyError) -> str:
    original = getattr(error, "orig", None)
    return (str(original if original is not None else error).strip() or type(error).__name__).splitlines()[0]
