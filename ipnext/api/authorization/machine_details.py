"""Hides details of machines (`ipnext.process.machine_details`) from all but operators and administrators of all owners.

Every answer passes here, errors and the stream of events included, so that no endpoint can miss it.
"""

import json
from functools import lru_cache
from typing import Final

import anyio.to_thread
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipnext.access.acting import RequestAuthority
from ipnext.process.machine_details import shorten, shorten_text

LARGE: Final = 2**10
"""Bytes from which on an answer is shortened in a thread, so that other requests are not blocked: 64 KiB of paths take
half a second, and publishers choose many texts."""
KEPT: Final = 16
"""Cached answers: many clients request the same one."""
_TAG: Final = "-short"
"""Suffix of the entity tags of such answers, since their bytes differ."""
_DATA: Final = b"data: "
_SCHEMA: Final = "/openapi.json"
"""The same for all callers; its paths are no files."""


class MachineDetails:
    """ASGI middleware around the authentication, whose own errors pass here, too."""

    def __init__(self, app: ASGIApp, *, required: bool) -> None:
        """Remove details of the machine from answers.

        If not `required`, callers need no credential, and each sees everything.
        """
        self._app, self._required = app, required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer as the principal may see it."""
        if scope["type"] != "http" or not self._required or scope["path"] == _SCHEMA:
            await self._app(scope, receive, send)
            return
        headers = [_with_own_tag(name, value) for name, value in scope["headers"]]
        scope = {**scope, "headers": headers, "state": {**scope.get("state", {})}}
        await self._app(scope, receive, _Shortening(scope, send))


class _Shortening:
    """Passes one answer on."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._start: Message | None = None
        self._pieces: list[bytes] = []
        self._kind = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._kind = "" if self._sees_all else _kind_of(message)
            if self._kind or (message["status"] == 304 and not self._sees_all):
                _change_tag(message)
            if self._kind in {"json", "text"}:
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._send_whole(self._start)
            return
        elif self._kind == "events":
            message = {**message, "body": _events(message.get("body", b""))}
        await self._send(message)

    @property
    def _sees_all(self) -> bool:
        """Whether the principal may see machine details; False before the authentication, and at public paths."""
        acting: RequestAuthority | None = self._scope["state"].get("acting")
        return acting is not None and acting.principal.sees_machines

    async def _send_whole(self, start: Message) -> None:
        body, make = b"".join(self._pieces), _json if self._kind == "json" else _text
        if len(body) > LARGE:
            body = await anyio.to_thread.run_sync(make, body)
        elif body:
            body = make(body)
        if "content-length" in (headers := MutableHeaders(scope=start)):
            headers["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _kind_of(start: Message) -> str:
    found = MutableHeaders(scope=start).get("content-type", "").partition(";")[0]
    return {"application/json": "json", "text/plain": "text", "text/event-stream": "events"}.get(found, "")


@lru_cache(maxsize=KEPT)
def _json(body: bytes) -> bytes:
    try:
        found = json.loads(body)
    except ValueError:
        return _text(body)
    shown = shorten(found)
    return body if shown == found else json.dumps(shown, separators=(",", ":"), ensure_ascii=False).encode()


def _text(body: bytes) -> bytes:
    return shorten_text(body.decode(errors="replace")).encode()


def _events(chunk: bytes) -> bytes:
    """Shorten whole messages, as the stream sends them."""
    lines = chunk.split(b"\n")
    return b"\n".join(_DATA + _json(line.removeprefix(_DATA)) if line.startswith(_DATA) else line for line in lines)


def _change_tag(start: Message) -> None:
    headers = MutableHeaders(scope=start)
    if "etag" in headers:
        headers["etag"] = f'{headers["etag"][:-1]}{_TAG}"'


def _with_own_tag(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return the endpoint's tag for the tag of a shortened answer."""
    return (name, value.replace(f'{_TAG}"'.encode(), b'"')) if name == b"if-none-match" else (name, value)
