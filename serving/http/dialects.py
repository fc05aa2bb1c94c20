"""The protocol that a path belongs to, as far as a connection has to know it.

The limit of a body, and the form of an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ipnext.errors import IPnextError
from serving.http.messages import Response, error_response


@dataclass(frozen=True, slots=True)
class Dialect:
    """The rules of one protocol. Other limits are those of all connections."""

    body_bytes: int | None = None
    """Largest request body; None: that of all connections."""
    error: Callable[[IPnextError], Response] = error_response
    """Returns the answer to a request that cannot be read."""


V2: Final = Dialect()

DialectOf = Callable[[str], Dialect]
"""Path of a request, which may have a query -> its dialect."""


def always_v2(_: str) -> Dialect:
    """Return the dialect of V2 for every path."""
    return V2
