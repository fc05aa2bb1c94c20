"""Bounds the bodies of requests, which the API reads whole into memory. Blobs are streamed and have a limit of their own."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipnext.api.errors import answer, error_body
from ipnext.errors import TooLarge

MOST_BYTES: Final = 17 * 2**20
"""Of one body: the largest manifest of a snapshot has 16 MiB."""
STREAMED: Final = "/v1/artifacts/blobs/"


class BodyLimit:
    """ASGI middleware of the API."""

    def __init__(self, app: ASGIApp, most: int = MOST_BYTES) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 to a body that is too large, as soon as that is known, or pass the request on."""
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:18]) > self._most:
            error = TooLarge(self._message)
            await answer(error_body(error), error.http_status)(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(TooLarge.http_status, self._message)
            return message

        await self._app(scope, counted, send)

    @property
    def _message(self) -> str:
        return f"the body is larger than {self._most} bytes, the limit of all bodies but blobs"
