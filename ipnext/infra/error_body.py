"""Errors over HTTP: `{"code", "message"}` with the status of the error tree, and back."""

import json
from collections.abc import Iterator

from ipnext.errors import IPnextError, Unavailable


def error_body(error: IPnextError) -> bytes:
    """Return the JSON body of an error."""
    return json.dumps({"code": error.code, "message": error.message}).encode()


def error_from(status: int, body: bytes, *, source: str) -> IPnextError:
    """Return the error of an answer.

    An unknown code becomes Unavailable if the status is 502, 503 or 504, else IPnextError.
    """
    try:
        told = json.loads(body)
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        code, message = "", body[:500].decode(errors="replace")
    known = {kind.code: kind for kind in _tree(IPnextError) if "code" in vars(kind)}
    fallback = Unavailable if status in {502, 503, 504} else IPnextError
    return known.get(code, fallback)(message if code else f"{source} answered {status}: {message}")


def is_retryable(code: str) -> bool:
    """Return whether a retry helps after an error of this code."""
    return any(kind.retryable for kind in _tree(IPnextError) if kind.code == code)


def _tree(kind: type[IPnextError]) -> Iterator[type[IPnextError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
