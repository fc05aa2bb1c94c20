"""Refuses JSON bodies that are ambiguous, hold what no text can, or are of too many values.

Ambiguous is an object that names a member twice, or another encoding than UTF-8. Half a surrogate pair is no character:
neither a digest, a file nor a database takes it. Each member that does not belong into
a body is a fault that validation describes, so their number bounds what a body costs.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipnext.api.requests.body_limit import STREAMED
from ipnext.api.requests.slots import holder_of
from ipnext.api.requests.turns import Turns
from ipnext.errors import InvalidInput, IPnextError, TooLarge
from ipnext.model.value import NameTwice, unique_names

MOST_SEPARATORS: Final = 100_000
"""Most commas and opening brackets of a body. The manifest of a snapshot of 10,000 files has 40,000."""
MOST_MEMBERS: Final = 5_000
"""Most members of an object: the node of a graph may have 4,096 inputs."""
LARGE: Final = 2**16
"""Bytes from which on a body is checked and validated in a thread. Smaller ones of few values take about a
millisecond."""
MANY: Final = 500
"""Commas and opening brackets from which on it is large, too, however short: 64 KiB of empty objects take 30 ms."""
LARGE_AT_ONCE: Final = 2
"""Of two clients: Python runs one thread at a time, beside the event loop."""
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""Escaped, or as bytes that Python's reader lets pass."""
PARSED: Final = "ipnext.parsed_body"
"""Name in a request's scope of the value of its large body, which is parsed once."""
NO_JSON: Final = object()


class JsonBodies:
    """ASGI middleware of the API. A body that is no JSON passes: the endpoint that requires JSON reports the fault."""

    def __init__(self, app: ASGIApp, large: Turns) -> None:
        self._app = app
        self._large = large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its body is checked once it is complete."""
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self._app(scope, receive, send)
            return
        pieces: list[bytes] = []

        async def receive_checked() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body = b"".join(pieces)
                    pieces.clear()
                    await self._check(scope, body)
            return message

        await self._app(scope, receive_checked, send)

    async def _check(self, scope: Scope, body: bytes) -> None:
        """Raise an HTTPException whose cause is the error: FastAPI passes no other error while it reads a body."""
        try:
            if len(body) <= LARGE and count_separators(body) <= MANY:
                check_json(body)
                return
            value = await self._large.run(holder_of(scope["state"]["acting"].principal), check_json, body)
        except IPnextError as error:
            raise HTTPException(error.http_status, error.message) from error
        if value is not NO_JSON:
            scope[PARSED] = value


def count_separators(body: bytes) -> int:
    """Return the number of commas and opening brackets: a bound of a body's values, found without parsing it."""
    return sum(map(body.count, (b",", b"[", b"{")))


def check_json(body: bytes) -> Any:
    """Return the value of a JSON body; other content passes as NO_JSON.

    Raises:
        InvalidInput: a name is doubled in an object, the encoding is another one than UTF-8, or a text has half a
            surrogate pair.
        TooLarge: there are too many values, or members of an object.
    """
    found = count_separators(body)
    if found > MOST_SEPARATORS:
        msg = f"the body has {found} commas and opening brackets; allowed: at most {MOST_SEPARATORS}"
        raise TooLarge(msg)
    encoding = json.detect_encoding(body) if body else "utf-8"
    try:
        value = json.loads(body, object_pairs_hook=_members)
    except NameTwice as error:
        msg = f"the body: {error}; allowed: each name once"
        raise InvalidInput(msg, field=error.name) from error
    except (ValueError, RecursionError):
        return NO_JSON
    if not encoding.startswith("utf-8"):
        msg = f"the body is JSON in {encoding}; allowed: UTF-8"
        raise InvalidInput(msg)
    if _SURROGATE.search(body) is not None and not _is_text(value):
        msg = "the body has half a surrogate pair, such as \\ud800; allowed: characters of Unicode"
        raise InvalidInput(msg)
    return value


def _is_text(value: Any) -> bool:
    """Return whether all texts of a value have an encoding in UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a body. Raises NameTwice, TooLarge."""
    if len(pairs) > MOST_MEMBERS:
        msg = (
            f"an object of the body has {len(pairs)} members, from {pairs[0][0][:100]!r} on; allowed: "
            f"at most {MOST_MEMBERS}"
        )
        raise TooLarge(msg)
    return unique_names(pairs)
