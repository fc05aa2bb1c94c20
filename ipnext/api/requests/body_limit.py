"""Limits size, time and memory of request bodies, which the API reads whole into memory.

Blobs are streamed and have another limit.
"""

import asyncio
from collections import Counter
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipnext.access.acting import RequestAuthority
from ipnext.api.errors import answer, error_body
from ipnext.api.requests.slots import SHARE, holder_of
from ipnext.errors import IPnextError, RateLimited, TooLarge, TooSlow, Unavailable

MOST_BYTES: Final = 5 * 2**20
"""Largest body: the largest manifest of a snapshot has 4 MiB. As JSON it takes up to twenty times as much memory."""
BYTES_PER_SECOND: Final = 64 * 2**10
STREAMED: Final = "/v1/artifacts/blobs/"
SETTING: Final = "IPNEXT_API_BODY_BUDGET_BYTES"
_AGAIN: Final = {"Retry-After": "1"}


class ApiBodyBudget:
    """Bytes of all bodies that are read, wait for their turn or are worked on. Use it in one event loop."""

    def __init__(self, most: int) -> None:
        """`most` bounds all bodies; one client has at most the SHARE-th part."""
        self.most, self.per_holder = most, most // SHARE
        self._held: Counter[str | None] = Counter()

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies."""
        return self._held.total()

    def check(self, holder: str | None, size: int) -> None:
        """Check that there is room for `size` more bytes of a client; None: no separate count.

        Raises:
            Unavailable: the bodies of all clients take too much.
            RateLimited: those of this client do.
        """
        if self.held_bytes + size > self.most:
            msg = (
                f"the bodies of requests under way have {self.most} bytes, "
                f"the most that this server keeps ({SETTING}); try again later"
            )
            raise Unavailable(msg)
        if holder is not None and self._held[holder] + size > self.per_holder:
            msg = (
                f"the bodies of your requests under way have {self.per_holder} bytes, the most of one client; "
                "send fewer at once"
            )
            raise RateLimited(msg)

    def take(self, holder: str | None, size: int) -> None:
        """Count `size` bytes. Raises as `check`."""
        self.check(holder, size)
        self._held[holder] += size

    def give_back(self, holder: str | None, size: int) -> None:
        """Subtract `size` bytes."""
        self._held[holder] -= size
        if self._held[holder] <= 0:
            del self._held[holder]


class BodyLimit:
    """ASGI middleware of the API, within authentication."""

    def __init__(
        self,
        app: ASGIApp,
        most: int = MOST_BYTES,
        seconds: float = 20.0,
        *,
        budget: ApiBodyBudget,
        authenticated: bool = True,
    ) -> None:
        """`seconds` is the time in which a body must arrive, plus a second for each BYTES_PER_SECOND of it.

        `authenticated`: callers have credentials; those of public paths are told apart by their address.
        """
        self._app = app
        self._most = most
        self._seconds = seconds
        self._budget = budget
        self._authenticated = authenticated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse its body as soon as that is known: 413, 408, 429 or 503."""
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self._app(scope, receive, send)
            return
        holder, length = self._holder(scope), dict(scope["headers"]).get(b"content-length", b"0")
        try:
            self._check_length(holder, int(length[:18]) if length.isdigit() else 0)
        except IPnextError as error:
            headers = None if isinstance(error, TooLarge) else _AGAIN
            await answer(error_body(error), error.http_status, headers)(scope, receive, send)
            return
        read, is_whole, loop = 0, False, asyncio.get_running_loop()
        began = loop.time()

        async def receive_limited() -> Message:
            nonlocal read, is_whole
            if is_whole:  # the next message is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(began + self._seconds + read / BYTES_PER_SECOND):
                    message = await receive()
            except TimeoutError as error:
                msg = f"the body has not come whole in time; {read} bytes of it are here"
                raise HTTPException(TooSlow.http_status, msg) from error
            size = len(message.get("body", b""))
            if read + size > self._most:
                raise HTTPException(TooLarge.http_status, self._message)
            try:
                self._budget.take(holder, size)
            except IPnextError as error:
                raise HTTPException(error.http_status, error.message, _AGAIN) from error
            read += size
            is_whole = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, receive_limited, send)
        finally:
            self._budget.give_back(holder, read)

    def _holder(self, scope: Scope) -> str | None:
        """Return the client by which bodies are counted: a principal, else an address; None without authentication."""
        acting: RequestAuthority = scope["state"]["acting"]
        if not self._authenticated:
            return None
        return holder_of(acting.principal) or f"address {acting.source}"

    def _check_length(self, holder: str | None, size: int) -> None:
        """Refuse a body by its declared length. Raises TooLarge, Unavailable, RateLimited."""
        if size > self._most:
            raise TooLarge(self._message)
        self._budget.check(holder, size)

    @property
    def _message(self) -> str:
        return f"the body is larger than {self._most} bytes, the limit of all bodies but blobs"
