"""Reads one JSON file into a value of the wire form: strictly, and at the size of a whole fleet.

Called by `planner.io.problem`. Pydantic validates everything; it receives rows a slice at a time, and they are packed
(`Row.from_trusted`), so that a file of a million rows fits into little memory. Every fault becomes one InvalidInput of
one line.
"""

import gc
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import FailFast, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import FigureRow
from ipnext.model.validation_errors import faults_of
from ipnext.model.value import Value

LARGEST_FILE_BYTES = 190_000_000
"""If a file is larger, it is refused by its size, before it is read."""

LONGEST_SHOWN = 80
"""Characters of a given value that a message shows."""

SLICE = 10_000
"""Rows that are validated at once."""

V = TypeVar("V", bound=Value)
Place = tuple[str | int, ...]
"""Location in a document: names of fields and positions in lists."""

_SPACED_NAME = re.compile(rb'"[ \t\r\n]+:')
_SAID = {
    "extra_forbidden": "unknown field",
    "missing": "required, but absent",
    "tuple_type": "must be a list",
    "model_type": "must be an object",
    "too_short": "must not be empty",
    "finite_number": "must be a finite number",
}


def read_value(path: str | Path, kind: type[V]) -> V:
    """Read a value of `kind` from a JSON file: no NaN, no duplicate name in an object, no unknown field.

    Raises InvalidInput.
    """
    content = _content(Path(path))
    with _collector_at_rest():
        reading = _Reading()
        value: V = reading.value(kind, _parse_document(content, path), ())
        if content.count(b'":') + len(_SPACED_NAME.findall(content)) != reading.names:
            _refuse_twice(content, path)
    return value


def format_value(value: object) -> str:
    """Format a given value for a message: on one line, at most 80 characters of it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number beyond 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def path_of(place: Place) -> str:
    """Format a location for a message, such as `models[0].demand[2].qps`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{short(step)}" for step in place).lstrip(".")


def short(name: str) -> str:
    """Format a name for a message: unchanged if it is short and printable."""
    return name if name.isprintable() and len(name) <= LONGEST_SHOWN else format_value(name)


def _format_path(path: str | Path) -> str:
    """Format the whole path, because its end identifies the file."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _content(path: Path) -> bytes:
    allowed = ["a readable JSON file"]
    try:
        size = path.stat().st_size
        if size <= LARGEST_FILE_BYTES:
            with path.open("rb") as file:
                content = file.read((size or LARGEST_FILE_BYTES) + 1)  # a pipe has no size
            size = max(size, len(content))
    except (OSError, ValueError) as error:
        msg = f"file: cannot read {_format_path(path)}: {getattr(error, 'strerror', None) or error}"
        raise InvalidInput(msg, field="file", value=str(path), allowed=allowed) from None
    if size > LARGEST_FILE_BYTES:
        most = f"at most {LARGEST_FILE_BYTES // 10**6} MB ({LARGEST_FILE_BYTES:,} bytes)"
        msg = f"file: {_format_path(path)} has {size:,} bytes; allowed: {most}"
        raise InvalidInput(msg, field="file", value=size, allowed=[most])
    return content


def _parse_document(content: bytes, path: str | Path) -> Any:
    """Parse the document to dicts and lists; equal strings are one string, which saves most of the memory."""
    why = "it begins with a byte order mark" if content.startswith(b"\xef\xbb\xbf") else ""
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        why = why or str(error)
    try:
        content.decode()
    except UnicodeDecodeError:
        why = "it is not UTF-8 text"
    if "recursion" in why:
        why = "it is nested too deeply"
    msg = f"file: {_format_path(path)} is not JSON: {why}; allowed: JSON without NaN or Infinity"
    raise InvalidInput(msg, field="file", value=str(path), allowed=["JSON without NaN or Infinity"])


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Disable Python's cycle collector, which would examine every new object repeatedly and finds no garbage here."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


class _Reading:
    """Conversion of one file from dicts and lists to a value. Rows that have been read are removed from them."""

    def __init__(self) -> None:
        self.names = 0
        """Names of fields so far: the text has more if one is duplicated in an object."""

    def value(self, kind: type[Value], found: Any, place: Place) -> Any:
        """Return a value of `kind`, its lists first."""
        if isinstance(found, dict):
            self.names += len(found)
            for name, inner, many in _inner_kinds(kind):
                given = found.get(name)
                if many and isinstance(given, list):
                    found[name] = self.items(inner, given, (*place, name))
                elif not many and isinstance(given, dict):
                    found[name] = self.value(inner, given, (*place, name))
        return _validate(partial(kind.model_validate, strict=True), found, kind, place)

    def items(self, inner: Any, found: list[Any], place: Place) -> tuple[Any, ...]:
        """Return the items of a list; `inner` is the type of each."""
        if get_origin(inner) is tuple:
            (inner, _) = get_args(inner)
            return tuple(
                self.items(inner, item, (*place, at)) if isinstance(item, list) else item
                for at, item in enumerate(found)
            )
        if not (isinstance(inner, type) and issubclass(inner, Value)):
            return tuple(found)
        if issubclass(inner, FigureRow):
            return tuple(row for start in range(0, len(found), SLICE) for row in self.rows(inner, found, start, place))
        return tuple(self.value(inner, item, (*place, at)) for at, item in enumerate(found))

    def rows(self, kind: type[FigureRow], found: list[Any], start: int, place: Place) -> Iterator[FigureRow]:
        """Yield one slice of rows, packed."""
        given = found[start : start + SLICE]
        found[start : start + SLICE] = [None] * len(given)
        self.names += len(given) * len(kind.model_fields)
        for row in _validate(_slice_of(kind), given, kind, place, start):
            yield kind.from_trusted(*row.__dict__.values())


@cache
def _inner_kinds(kind: type[Value]) -> tuple[tuple[str, Any, bool], ...]:
    """Return the fields that hold lists or values.

    The name in the document, the type (of each item), and whether it is a list.
    """
    found = []
    for name, info in kind.model_fields.items():
        inner, many = info.annotation, get_origin(info.annotation) is tuple
        if many:
            inner = get_args(inner)[0]
        elif not (isinstance(inner, type) and issubclass(inner, Value)):
            continue
        found += [(known, inner, many) for known in dict.fromkeys((info.alias or name, name))]
    return tuple(found)


@cache
def _slice_of(kind: type[FigureRow]) -> Callable[[Any], list[FigureRow]]:
    """Return a validator of a list of rows, up to the first wrong one."""
    rows: Any = Annotated[list[kind], FailFast()]  # type: ignore[valid-type]
    return partial(TypeAdapter(rows).validate_python, strict=True)


def _validate(judge: Callable[[Any], Any], found: Any, kind: type[Value], place: Place, start: int = 0) -> Any:
    """Return pydantic's result. Raises InvalidInput; positions in a list count from `start`."""
    try:
        return judge(found)
    except ValidationError as error:
        detail = faults_of(error)[0]
        steps = detail["loc"]
        if steps and isinstance(steps[0], int):
            steps = (steps[0] + start, *steps[1:])
        raise _to_invalid_input(detail, kind, (*place, *steps)) from None


def _to_invalid_input(detail: ErrorDetails, kind: type[Value], place: Place) -> InvalidInput:
    """Convert one pydantic error to an IPnext error: the field as a path, the given value, the allowed values."""
    field = path_of(place) or "file"
    given = detail["input"]
    context = detail.get("ctx", {})
    allowed: Sequence[str] = ()
    if detail["type"] == "extra_forbidden":
        allowed = [info.alias or name for name, info in kind.model_fields.items()]
    elif "expected" in context:
        allowed = [str(context["expected"])]
    given_in_words = "" if isinstance(given, dict | list | tuple) else f" (given: {format_value(given)})"
    said = _SAID.get(detail["type"], detail["msg"])
    tail = f"; allowed: {', '.join(allowed)}" if allowed else ""
    return InvalidInput(f"{field}: {said}{given_in_words}{tail}", field=field, value=given, allowed=allowed)


def _refuse_twice(content: bytes, path: str | Path) -> None:
    """Raise if an object has a duplicate name.

    Slower than counting, and certain even if texts contain quotes and colons.
    """

    def once(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                msg = (
                    f"file: {_format_path(path)}: {format_value(name)} stands twice in one object; allowed: "
                    "each name once"
                )
                raise InvalidInput(msg, field=short(name), value=name, allowed=["each name once"])
            seen.add(name)

    json.loads(content, object_pairs_hook=once)
