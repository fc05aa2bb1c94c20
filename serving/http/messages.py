"""Requests, responses and errors of the HTTP subset that host and router use.

The connection is in serving.http.connection.
"""

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from ipnext.errors import InvalidInput, IPnextError, NotFound, RateLimited, Unauthenticated, Unavailable
from ipnext.model.echoes import cut_text, join_steps
from ipnext.model.validation_errors import faults_of
from ipnext.model.wire import decode
from ipnext.names import DEADLINE_HEADER, ERROR_HEADER
from ipnext.process.machine_details import shorten_text

M = TypeVar("M", bound=BaseModel)

RETRY_AFTER_SECONDS: Final = 1
CHALLENGE: Final = 'Bearer realm="ipnext"'
"""Authentication scheme named in answers with status 401."""
_MAX_DEADLINE_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer to a client."""

    status: int
    body: bytes | memoryview = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    after_sent: Callable[[], None] | None = None
    """Called after the answer was written to the client's connection; not if the client has left."""


class Sink(Protocol):
    """The client's end of a streamed answer. Exactly one of `end` and `abort` is called, last."""

    def write(self, piece: bytes) -> None:
        """Write the next piece of the body; not empty."""

    def end(self, last: bytes = b"") -> None:
        """Complete the body with this last piece; empty if all is written."""

    def abort(self) -> None:
        """Leave the body without its end and close the connection, so that the client notices."""


class BodySource(Protocol):
    """The source of a streamed answer's body."""

    def start(self, sink: Sink) -> None:
        """Send the pieces available now, and later ones as they arrive, to the sink."""

    def pause(self) -> None:
        """Pause: the client reads its answer more slowly than it arrives."""

    def resume(self) -> None:
        """Resume: the client has read the buffered bytes."""

    def cancel(self) -> None:
        """Stop; the client has gone and the sink is not called any more.

        May come before `start`, after it, or after the end.
        """


@dataclass(frozen=True, slots=True, eq=False)
class StreamedAnswer:
    """An answer whose body is streamed: chunked, unless `headers` has a content-length."""

    status: int
    headers: Mapping[str, str]
    flow: BodySource


Answer = Response | StreamedAnswer


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One complete HTTP request. Header names are lower case; if a header is repeated, the last value counts.

    `content` is writable, and so are arrays made over it.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    def header(self, name: str) -> str | None:
        """Return the value of a header; None if it is absent."""
        return self.headers.get(name)


Handler = Callable[[Request], Response | Awaitable[Answer]]
"""Answers at once or later, complete or streamed. If the client leaves, the awaited answer is cancelled."""


def json_response(value: BaseModel | Mapping[str, Any], status: int = 200) -> Response:
    """Return a JSON answer."""
    text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)
    return Response(status, text.encode(), {"content-type": "application/json"})


def error_response(error: IPnextError) -> Response:
    """Return the protocol's error form, `{"error": text}`, with the stable code in the header `x-ipnext-error`."""
    return Response(
        error.http_status, json.dumps({"error": shorten_text(cut_text(error.message))}).encode(), error_headers(error)
    )


def error_headers(error: IPnextError) -> dict[str, str]:
    """Return the headers of an error's answer, for any form of body: its code, and the client's next step."""
    headers = {"content-type": "application/json", ERROR_HEADER: error.code}
    if isinstance(error, RateLimited):
        headers["retry-after"] = str(max(1, math.ceil(error.seconds)))
    elif isinstance(error, Unavailable):
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    elif isinstance(error, Unauthenticated):
        headers["www-authenticate"] = CHALLENGE
    return headers


def not_found(request: Request) -> NotFound:
    """Return the error for a path that is not served."""
    return NotFound(f"{request.method} {request.path} is not served here")


def parse_model(kind: type[M], body: bytes | bytearray) -> M:
    """Parse a JSON body; InvalidInput with pydantic's first error."""
    try:
        return decode(kind, bytes(body))
    except ValidationError as error:
        first = faults_of(error)[0]
        where = join_steps(first["loc"]) or "body"
        msg = f"{where}: {first['msg']}"
        raise InvalidInput(msg, field=where) from error


def seconds_left(request: Request, *, default: float) -> float:
    """Return the time limit of a request.

    Header `x-ipnext-deadline-ms` (milliseconds from now), else `default` seconds.
    """
    text = request.header(DEADLINE_HEADER)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text[:18]) <= _MAX_DEADLINE_MS):
        msg = f"{DEADLINE_HEADER}: {text[:40]!r} must be whole milliseconds from 1 to {_MAX_DEADLINE_MS}"
        raise InvalidInput(msg, field=DEADLINE_HEADER, value=text)
    return int(text) / 1000
