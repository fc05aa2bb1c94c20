"""The little HTTP that host and router need, straight on ASGI: requests, responses, and errors as answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from ipnext.errors import DeadlineExceeded, InvalidInput, IPnextError, NotFound, Unavailable
from ipnext.names import DEADLINE_HEADER

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

MAX_BODY_BYTES: Final = 256 * 2**20
"""A larger request body is refused."""
ERROR_HEADER: Final = "x-ipnext-error"
"""Carries the code of `ipnext.errors` beside the protocol's error text."""
RETRY_AFTER_SECONDS: Final = 1
_MAX_DEADLINE_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back to a client."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class ClientGone(Exception):  # not an error of ours: nobody waits for the answer any more
    """The client closed its connection before the answer."""


class Request:
    """One HTTP request. Header names are lower case."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._raw_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive

    def header(self, name: str) -> str | None:
        """The value of a header, None where it is absent."""
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in self._raw_headers if key == wanted), None)

    async def body(self) -> bytearray:
        """The whole body. It is writable, so that arrays made over it are. InvalidInput beyond the size limit."""
        body = bytearray()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                msg = f"the body is larger than {MAX_BODY_BYTES} bytes; send fewer rows"
                raise InvalidInput(msg, field="body")
        return body

    async def gone(self) -> None:
        """Return once the client has closed the connection (or the answer is sent). Read the body first."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def wait(self, work: asyncio.Future[T], *, seconds: float) -> T:
        """The result of `work`. If the client leaves or the time passes first, `work` is cancelled.

        Raises ClientGone or DeadlineExceeded then.
        """
        watch = asyncio.ensure_future(self.gone())
        try:
            waiting: set[asyncio.Future[Any]] = {work, watch}
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if watch.done():
                raise ClientGone
            msg = f"the deadline of {seconds * 1000:.0f} ms passed"
            raise DeadlineExceeded(msg)
        finally:
            watch.cancel()
            if not work.done():
                work.add_done_callback(_take_exception)
                work.cancel()


def _take_exception(work: asyncio.Future[Any]) -> None:
    """Look at the error of work that nobody waits for, so that asyncio does not report it as lost."""
    if not work.cancelled():
        work.exception()


Handler = Callable[[Request], Awaitable[Response]]


class Application:
    """An ASGI application over one handler: errors of the tree become answers, anything else a logged 500."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        try:
            response = await self._handler(request)
        except ClientGone:
            return
        except IPnextError as error:
            response = error_response(error)
        except Exception:  # noqa: BLE001  # the process edge: the client gets a 500, the log the reason
            structlog.get_logger().exception("request failed", path=request.path)
            response = error_response(IPnextError("internal error; the log of the process has the reason"))
        await _send(send, response)


async def _send(send: Send, response: Response) -> None:
    headers = [(key.encode(), value.encode("latin-1", "replace")) for key, value in response.headers.items()]
    headers.append((b"content-length", str(len(response.body)).encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


def json_response(value: BaseModel | Mapping[str, Any], status: int = 200) -> Response:
    """A JSON answer."""
    text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)
    return Response(status, text.encode(), {"content-type": "application/json"})


def error_response(error: IPnextError) -> Response:
    """The protocol's error form, `{"error": text}`, with the stable code in the header `x-ipnext-error`."""
    headers = {"content-type": "application/json", ERROR_HEADER: error.code}
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return Response(error.http_status, json.dumps({"error": error.message}).encode(), headers)


def not_found(request: Request) -> NotFound:
    """The error for a path that is not served."""
    return NotFound(f"{request.method} {request.path} is not served here")


def parse_model(kind: type[M], body: bytes | bytearray) -> M:
    """A value from a JSON body; InvalidInput with pydantic's first complaint."""
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "body"
        msg = f"{where}: {first['msg']}"
        raise InvalidInput(msg, field=where) from error


def seconds_left(request: Request, *, default: float) -> float:
    """How long the request may take: header `x-ipnext-deadline-ms` (milliseconds from now), else `default` seconds."""
    text = request.header(DEADLINE_HEADER)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text[:18]) <= _MAX_DEADLINE_MS):
        msg = f"{DEADLINE_HEADER}: {text[:40]!r} must be whole milliseconds from 1 to {_MAX_DEADLINE_MS}"
        raise InvalidInput(msg, field=DEADLINE_HEADER, value=text)
    return int(text) / 1000
