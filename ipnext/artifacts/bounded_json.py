"""Reads JSON of unknown origin into objects and values, within limits.

An array of empty arrays takes thirty times its text in memory, and the parser of Python lets no other thread run until
it is done. Every reader of a snapshot's documents uses it. Objects are counted by their separators, before any is made.
"""

import json
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.validation_errors import invalid_input

CHUNK_BYTES: Final = 1 << 20
"""Counted at a time: other threads run in between."""
_SEPARATORS: Final = (b",", b"[", b"{")

M = TypeVar("M", bound=BaseModel)


class TooManyValues(ValueError):
    """A document that would become more objects than a reader allows."""


def load_bounded(content: bytes, *, most_separators: int) -> Any:
    """Return the value of a document.

    Raises:
        TooManyValues: it would become too many objects.
        ValueError: it is not JSON.
        RecursionError: it is nested too deep.
    """
    found = count_separators(content)
    if found > most_separators:
        msg = f"{found} commas and brackets; allowed: {most_separators}"
        raise TooManyValues(msg)
    return json.loads(content)


def count_separators(content: bytes) -> int:
    """Return the number of commas and opening brackets: a bound of a document's values, found without parsing it."""
    if len(content) <= CHUNK_BYTES:
        return sum(map(content.count, _SEPARATORS))
    starts = range(0, len(content), CHUNK_BYTES)
    return sum(content.count(one, start, start + CHUNK_BYTES) for start in starts for one in _SEPARATORS)


def read_document(content: bytes, kind: type[M], *, most_separators: int) -> M:
    """Return the value of a document. Raises InvalidInput with its first fault, without a name of the document."""
    return validate_document(parse_bounded(content, most_separators=most_separators), kind)


def parse_bounded(content: bytes, *, most_separators: int) -> Any:
    """As `load_bounded`. Raises InvalidInput with the fault, without a name of the document."""
    try:
        return load_bounded(content, most_separators=most_separators)
    except TooManyValues as error:
        msg = f"has {error}"
        raise InvalidInput(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"is not JSON: {error}"
        raise InvalidInput(msg) from error


def validate_document(found: Any, kind: type[M]) -> M:
    """Return what `load_bounded` returned as a value. Raises InvalidInput with its first fault."""
    if not isinstance(found, dict):
        msg = f"must be a JSON object, not a {type(found).__name__}"
        raise InvalidInput(msg)
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise invalid_input(error, kind) from error
