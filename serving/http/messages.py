"""Requests, responses and errors of the little HTTP that host and router need. The connection is in serving.http.connection."""

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from ipnext.errors import InvalidInput, IPnextError, NotFound, RateLimited, Unauthenticated, Unavailable
from ipnext.machine_details import shorten_text
from ipnext.model.wire import decode
from ipnext.names import DEADLINE_HEADER, ERROR_HEADER

M = TypeVar("M", bound=BaseModel)

RETRY_AFTER_SECONDS: Final = 1
CHALLENGE: Final = 'Bearer realm="ipnext"'
"""How a client proves who it is, in answers with status 401."""
_MAX_DEADLINE_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back to a client."""

    status: int
    body: bytes | memoryview = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """The client's end of an answer that comes in pieces. Exactly one of `end` and `abort` is called, last."""

    def write(self, piece: bytes) -> None:
        """The next piece of the body; not empty."""

    def end(self, last: bytes = b"") -> None:
        """The body is whole with this last piece; empty where all is written."""

    def abort(self) -> None:
        """The body stays without its end, and the client is to see that: its connection closes."""


class Flow(Protocol):
    """Where the body of an answer comes from piece by piece."""

    def start(self, sink: Sink) -> None:
        """Give all that is there, and then what comes, to the sink."""

    def pause(self) -> None:
        """The client takes its answer more slowly than it comes."""

    def resume(self) -> None:
        """The client has taken what was there."""

    def cancel(self) -> None:
        """The client has gone. The sink is not called any more. Called before `start`, after it, or after the end."""


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """An answer whose body comes piece by piece: chunked, unless `headers` have a content-length."""

    status: int
    headers: Mapping[str, str]
    flow: Flow


Answer = Response | Streamed


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One whole HTTP request. Header names are lower case; of a header given twice the last one counts.

    `content` is writable, so that arrays made over it are.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def header(self, name: str) -> str | None:
        """The value of a header, None where it is absent."""
        return self.headers.get(name)


Handler = Callable[[Request], Response | Awaitable[Answer]]
"""Answers at once, or later, whole or in pieces. What it awaits is cancelled when the client leaves."""


def json_response(value: BaseModel | Mapping[str, Any], status: int = 200) -> Response:
    """A JSON answer."""
    text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)
    return Response(status, text.encode(), {"content-type": "application/json"})


def error_response(error: IPnextError) -> Response:
    """The protocol's error form, `{"error": text}`, with the stable code in the header `x-ipnext-error`."""
    return Response(
        error.http_status, json.dumps({"error": shorten_text(error.message)}).encode(), error_headers(error)
    )


def error_headers(error: IPnextError) -> dict[str, str]:
    """Headers of an error's answer, in whatever form its body is: its code, and what a client is to do."""
    headers = {"content-type": "application/json", ERROR_HEADER: error.code}
    if isinstance(error, RateLimited):
        headers["retry-after"] = str(max(1, math.ceil(error.seconds)))
    elif isinstance(error, Unavailable):
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    elif isinstance(error, Unauthenticated):
        headers["www-authenticate"] = CHALLENGE
    return headers


def not_found(request: Request) -> NotFound:
    """The error for a path that is not served."""
    return NotFound(f"{request.method} {request.path} is not served here")


def parse_model(kind: type[M], body: bytes | bytearray) -> M:
    """A value from a JSON body; InvalidInput with pydantic's first complaint."""
    try:
        return decode(kind, bytes(body))
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
