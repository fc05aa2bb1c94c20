"""JSON between components of different builds: fields unknown to this build are ignored, at every depth.

`decode` reads all messages between API, workers, agents, routers and hosts, and their documents in the store. Tolerance
is thus a property of the channel, and no type can be forgotten. Documents of people (manifests, HTTP bodies) and
documents named by their digest (snapshot.json, delta.json) are read strictly.
"""

from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

MOST_KINDS = 1024

REMEMBERED = 2048
"""Number of documents with remembered values."""

LONGEST_REMEMBERED = 16_384
"""Characters of such a document."""


@lru_cache(maxsize=MOST_KINDS)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def decode(kind: type[T], content: str | bytes | bytearray) -> T:
    """Return the value of JSON that a component of this or another build wrote.

    Raises:
        pydantic.ValidationError: a ValueError; a known field is missing or has a value that this build does not allow.
    """
    key: Any = kind
    found: T = _adapter(key).validate_json(content, extra="ignore", strict=False)
    return found


def decode_frozen(kind: type[T], content: str) -> T:
    """Return a frozen value, which may be shared, as `decode` does: the same document gives the same object."""
    if len(content) > LONGEST_REMEMBERED:
        return decode(kind, content)
    key: Any = kind
    found: T = _decode_cached(key, content)
    return found


@lru_cache(maxsize=REMEMBERED)
def _decode_cached(kind: Any, content: str) -> Any:
    return decode(kind, content)


def decode_plain(kind: type[T], content: object) -> T:
    """Return the value of plain data that was already parsed, as `decode` does."""
    key: Any = kind
    found: T = _adapter(key).validate_python(content, extra="ignore", strict=False)
    return found
