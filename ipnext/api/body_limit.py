"""Limits size and time of request bodies, which the API reads whole into memory.

Blobs are streamed and have another limit.
"""

import asyncio
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipnext.api.errors import answer, error_body
from ipnext.errors import TooLarge, TooSlow

MOST_BYTES: Final = 5 * 2**20
"""Largest body: the largest manifest of a snapshot has 4 MiB. As JSON it takes up to twenty times as much memory."""
BYTES_PER_SECOND: Final = 64 * 2**10
STREAMED: Final = "/v1/artifacts/blobs/"


class BodyLimit:
    """ASGI middleware of the API."""

    def __init__(self, app: ASGIApp, most: int = MOST_BYTES, seconds: float = 20.0) -> None:
        """`seconds` is the time in which a body must arrive, plus a second for each BYTES_PER_SECOND of it."""
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 to a too large body as soon as that is known, 408 to a too slow one, or pass the request on."""
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:18]) > self._most:
            error = TooLarge(self._message)
            await answer(error_body(error), error.http_status)(scope, receive, send)
            return
        read, is_whole, loop = 0, False, asyncio.get_running_loop()
        began = loop.time()

        async def counted() -> Message:
            nonlocal read, is_whole
            if is_whole:  # the next message is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(began + self._seconds + read / BYTES_PER_SECOND):
                    message = await receive()
            except TimeoutError as error:
                msg = f"the body has not come whole in time; {read} bytes of it are here"
                raise HTTPException(TooSlow.http_status, msg) from error
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(TooLarge.http_status, self._message)
            is_whole = not message.get("more_body", False)
            return message

        await self._app(scope, counted, send)

    @property
    def _message(self) -> str:
        return f"the body is larger than {self._most} bytes, the limit of all bodies but blobs"
