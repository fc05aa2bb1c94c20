"""JSON between components of different builds: fields that this build does not know are ignored, at every depth.

Everything that API, workers, agents, routers and hosts tell each other, or leave for each other in the store, is read by
`decode`. Tolerance is thus a property of the channel, and no type can be forgotten. What people write (manifests, HTTP
bodies) and what is named by its digest (snapshot.json, delta.json) is read strictly.
"""

from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

MOST_KINDS = 1024

REMEMBERED = 2048
"""Documents whose values are kept."""

LONGEST_REMEMBERED = 16_384
"""Characters of such a document."""


@lru_cache(maxsize=MOST_KINDS)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def decode(kind: type[T], content: str | bytes | bytearray) -> T:
    """Read JSON that a component of this or another build wrote.

    Raises pydantic's ValidationError (a ValueError) if a known field is missing or holds what this build does not allow.
    """
    key: Any = kind
    found: T = _adapter(key).validate_json(content, extra="ignore")
    return found


def decode_frozen(kind: type[T], content: str) -> T:
    """The same for a frozen value, which may be shared: a document that was read before gives the same object."""
    if len(content) > LONGEST_REMEMBERED:
        return decode(kind, content)
    key: Any = kind
    found: T = _remembered(key, content)
    return found


@lru_cache(maxsize=REMEMBERED)
def _remembered(kind: Any, content: str) -> Any:
    return decode(kind, content)


def decode_plain(kind: type[T], content: object) -> T:
    """The same for plain data that was parsed already."""
    key: Any = kind
    found: T = _adapter(key).validate_python(content, extra="ignore")
    return found
