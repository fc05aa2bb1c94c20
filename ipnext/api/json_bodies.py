"""Refuses JSON bodies that are ambiguous, or of too many values.

Ambiguous is an object that names a member twice, or another encoding than UTF-8. Each value that does not belong into a
body is a fault that validation describes, so their number bounds what a body costs.
"""

import json
from typing import Final

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipnext.api.body_limit import STREAMED
from ipnext.errors import InvalidInput, IPnextError, TooLarge
from ipnext.model.value import NameTwice, unique_names

MOST_SEPARATORS: Final = 100_000
"""Most commas and opening brackets of a body. The manifest of a snapshot of 10,000 files has 40,000."""
LARGE: Final = 2**18
"""Bytes from which on a body is checked in a thread, so that other requests are not blocked."""


class JsonBodies:
    """ASGI middleware of the API. A body that is no JSON passes: the endpoint that requires JSON reports the fault."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its body is checked once it is complete."""
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self._app(scope, receive, send)
            return
        pieces: list[bytes] = []

        async def checked() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                pieces.append(message.get("body", b""))
                if not message.get("more_body", False):
                    body = b"".join(pieces)
                    pieces.clear()
                    await _check(body)
            return message

        await self._app(scope, checked, send)


async def _check(body: bytes) -> None:
    """Raise an HTTPException whose cause is the error: FastAPI passes no other error while it reads a body."""
    try:
        if len(body) > LARGE:
            await anyio.to_thread.run_sync(check_json, body)
        else:
            check_json(body)
    except IPnextError as error:
        raise HTTPException(error.http_status, error.message) from error


def check_json(body: bytes) -> None:
    """Raise InvalidInput for JSON with a doubled name or in another encoding than UTF-8, TooLarge for too many values.

    Other content passes.
    """
    found = sum(map(body.count, (b",", b"[", b"{")))
    if found > MOST_SEPARATORS:
        msg = f"the body has {found} commas and opening brackets; allowed: at most {MOST_SEPARATORS}"
        raise TooLarge(msg)
    encoding = json.detect_encoding(body) if body else "utf-8"
    try:
        json.loads(body, object_pairs_hook=unique_names)
    except NameTwice as error:
        msg = f"the body: {error}; allowed: each name once"
        raise InvalidInput(msg, field=error.name) from error
    except (ValueError, RecursionError):
        return
    if not encoding.startswith("utf-8"):
        msg = f"the body is JSON in {encoding}; allowed: UTF-8"
        raise InvalidInput(msg)
